"""The system description, judged by the official checker, on machines that are and are not there."""

import json
import types

import pytest
from mlperf_logging.system_desc_checker import system_desc_checker

from mlperf_jax.errors import UserError
from mlperf_jax.results import system
from mlperf_jax.results.folders import Runs


def device(kind="cpu", platform="cpu", process=0):
    return types.SimpleNamespace(device_kind=kind, platform=platform, process_index=process)


CPU = [device()]
TPU = [device("TPU v5 lite", "tpu", process) for process in (0, 0, 0, 0, 1, 1, 1, 1)]
GPU = [device("NVIDIA H200", "gpu")]


@pytest.mark.parametrize("devices", [CPU, TPU, GPU], ids=["cpu", "tpu", "gpu"])
@pytest.mark.parametrize("preset", ["mini", "closed"])
def test_the_official_checker_accepts_every_description(tmp_path, devices, preset):
    path = tmp_path / "systems" / "box.json"
    system.write_system(path, system.describe_system(devices, name="box", preset=preset))
    valid, name, prefix, _ = system_desc_checker.check_system_desc(path, "training", "4.0.0")
    assert valid and name == "box" and prefix.startswith("mlperf_jax,box,")
    described = json.loads(path.read_text())
    assert described["schema_version"] == 1
    assert described["division"] == {"mini": "open", "closed": "closed"}[preset]
    assert "unverified, not reviewed by MLCommons" in described["sw_notes"]
    assert ("mini: not MLPerf's data or model" in described["sw_notes"]) == (preset == "mini")


def test_accelerators_are_counted_per_node():
    described = system.describe_system(TPU, name="pod", preset="closed")
    assert described["number_of_nodes"] == "2" and described["accelerators_per_node"] == "4"
    assert described["accelerator_model_name"] == "TPU v5 lite"
    one_host = system.describe_system(TPU, name="pod", preset="closed", nodes=1)
    assert one_host["number_of_nodes"] == "1" and one_host["accelerators_per_node"] == "8"


def test_cpu_devices_are_no_accelerators():
    described = system.describe_system(CPU * 8, name="box", preset="mini")
    assert described["accelerators_per_node"] == "0" and described["accelerator_model_name"] == "none"


def test_what_the_machine_does_not_tell_is_not_invented():
    described = system.describe_system(CPU, name="box", preset="mini")
    for field in ("cooling", "host_networking", "accelerator_interconnect", "host_storage_type"):
        assert described[field] == "not stated"


def test_what_people_filled_in_stays_and_what_changed_is_renewed(tmp_path):
    path = tmp_path / "box.json"
    described = system.describe_system(CPU, name="box", preset="mini")
    system.write_system(path, described)
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"cooling": "air", "framework": "JAX 0.1", "mine": 1})
    )
    system.write_system(path, described)
    after = json.loads(path.read_text())
    assert after["cooling"] == "air" and after["mine"] == 1 and after["framework"] == described["framework"]


def test_a_damaged_description_is_not_overwritten(tmp_path):
    path = tmp_path / "box.json"
    path.write_text("{")
    with pytest.raises(UserError, match="box.json is damaged"):
        system.write_system(path, system.describe_system(CPU, name="box", preset="mini"))
    assert path.read_text() == "{"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "intel-xeon-platinum-8481c"),
        ("AMD EPYC 9B14 96-Core Processor", "amd-epyc-9b14"),
        ("AMD EPYC", "amd-epyc"),
        ("../../etc", "etc"),
        ("", "unknown"),
    ],
)
def test_a_cpu_machine_is_named_by_its_processor(monkeypatch, model, name):
    monkeypatch.setattr(system, "cpu_model", lambda: model)
    monkeypatch.setattr(system, "_sockets_and_cores", lambda: (2, 96))
    assert system.default_system_name(CPU * 4) == f"cpu-2x-{name}-96c"


def test_an_accelerator_machine_is_named_by_its_chips():
    assert system.default_system_name(TPU) == "8xTPU-v5-lite"
    assert system.default_system_name(GPU) == "1xNVIDIA-H200"


def test_every_default_name_can_name_a_folder(tmp_path):
    for devices in (CPU, TPU, GPU):
        Runs(tmp_path, "mini", system.default_system_name(devices), "resnet")


def test_a_machine_without_linux_files_is_still_described(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "_read", lambda _: "")
    monkeypatch.setattr(system, "_CPUS", tmp_path)
    described = system.describe_system(CPU, name="box", preset="mini")
    assert (
        int(described["host_processors_per_node"]) == 1 and int(described["host_processor_core_count"]) >= 1
    )
    assert described["host_processor_caches"] == "not stated"


def test_the_record_of_devices_and_versions():
    record = system.describe_devices(TPU)
    assert (record["kind"], record["count"], record["processes"]) == ("TPU v5 lite", 8, 2)
    assert {"jax", "jaxlib", "flax", "numpy"} <= system.versions().keys()
