"""The door: what bad input gets, and what a run prints and leaves."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from mlperf_logging.system_desc_checker import system_desc_checker

from mlperf_jax import main as door_module
from mlperf_jax.results.folders import read_json
from tests import door

RESNET = ("--workload=resnet50", "--platform=cpu")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """What the door decides about devices does not outlive a test."""
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):
        if name in os.environ:
            monkeypatch.setenv(name, os.environ[name])
        else:
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)


def refused(capsys, *arguments: str) -> str:
    """The one sentence that a failing command says."""
    assert door_module.main(arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line != "mlperf_jax: compiling"]
    assert out == "" and len(lines) == 1 and lines[0].startswith("mlperf_jax: "), (out, err)
    return lines[0].removeprefix("mlperf_jax: ")


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sed=1"], "There is no flag --sed, did you mean --seed?"),
        (["--confg.batch_size=1"], "There is no flag --confg.batch_size"),
        (["--config=x"], "There is no flag --config, did you mean --config.KEY?"),
        (["--workload"], "Missing value for flag --workload"),
        ([], "--workload is missing; --list shows what there is"),
        (["--workload="], "--workload is missing"),
        (["resnet50"], "'resnet50' is not a flag; write --name=value"),
        (["--workload=resnet5"], "There is no --workload=resnet5; did you mean resnet50?"),
        (["--workload=zzz"], "There is no --workload=zzz; there are bert"),
        (["--platform=cup"], "flag --platform=cup: value should be one of <cpu|gpu|tpu>"),
        (["--preset=big"], "flag --preset=big: value should be one of <mini|closed>"),
        (["--runs=0"], "flag --runs=0: 0 is not a positive integer"),
        (["--runs=many"], "flag --runs=many: not an integer"),
        (["--seed=-1"], "flag --seed=-1: "),
        (["--seed=4294967296"], "not an integer in the range [0, 2147483647]"),
        (["--profile=perhaps"], "flag --profile=perhaps: neither true nor false"),
        ([*RESNET, "--results_dir="], "--results_dir is empty; name a folder"),
        ([*RESNET, "--cpu_devices=-1"], "flag --cpu_devices=-1: "),
        (
            ["--workload=resnet50", "--platform=gpu", "--cpu_devices=2"],
            "--cpu_devices=2 goes with --platform=cpu",
        ),
        ([*RESNET, "--sharding=ddp"], "There is no --sharding=ddp; use dp, zero1"),
        ([*RESNET, "--mesh=data"], "--mesh=data is not of the form axis:size"),
        ([*RESNET, "--mesh=data:0"], "--mesh=data:0 is not of the form axis:size"),
        ([*RESNET, "--mesh=rows:1"], "Strategy dp has no mesh axis 'rows'; its axes are data."),
        ([*RESNET, "--mesh=data:3"], "Mesh data:3 of strategy dp does not make up"),
        ([*RESNET, "--process_id=0"], "--coordinator, --num_processes and --process_id go together"),
    ],
)
def test_flags(capsys, arguments, said):
    assert said in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("batchsize=3", "The config has no key 'batchsize'; did you mean --config.batch_size?"),
        ("optimizer.base_lrr=3", "did you mean --config.optimizer.base_lr?"),
        ("optimizer=3", "The config has no key 'optimizer'; did you mean --config.optimizer.name?"),
        ("zzzzzz=3", "The config has no key 'zzzzzz'; there are batch_size, "),
        ("=3", "The config has no key ''"),
        ("batch_size", "--config.batch_size has no value; write --config.batch_size=value."),
        ("batch_size=", "--config.batch_size= is of the wrong type"),
        (
            "batch_size=many",
            "--config.batch_size=many is of the wrong type: --config.batch_size is of type int, as ",
        ),
        ("batch_size=1.5", "--config.batch_size=1.5 is of the wrong type"),
        (
            "model.stages=(1,",
            "--config.model.stages=(1, is of the wrong type: --config.model.stages is of type tuple",
        ),
        ("batch_size=0", "--config.batch_size=0 "),
        ("batch_size=-4", "--config.batch_size=-4 "),
        ("max_epochs=0", "--config.max_epochs=0 "),
        ("eval_every_epochs=0", "--config.eval_every_epochs=0 "),
        ("steps_per_dispatch=0", "--config.steps_per_dispatch=0 "),
        ("eval_batch_size=0", "--config.eval_batch_size=0 "),
        ("precision=fp99", "There is no precision 'fp99'; use auto, float32"),
        ("reference_point=123", "There is no reference point at batch 123"),
        ("data.name=fashion", "There is no data set 'fashion'; there are "),
    ],
)
def test_configs(capsys, tmp_path, override, said):
    results = tmp_path / "results"
    assert said in refused(
        capsys, *RESNET, f"--results_dir={results}", "--synthetic_data", f"--config.{override}"
    )
    assert not results.exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.name=adamm", "There is no optimizer 'adamm'; use one of adam"),
        ("model.stem=other", "stem 'other' is neither 'imagenet' nor 'small'"),
        ("model.width=0", "ResNet50 cannot be compiled with this config"),
    ],
)
def test_a_config_that_no_model_can_have_leaves_no_run_that_binds_the_next(capsys, tmp_path, override, said):
    base = (*RESNET, f"--results_dir={tmp_path}", "--synthetic_data", "--seed=1")
    assert said in refused(capsys, *base, f"--config.{override}")
    # Mended, it is a run of another config, and must not be told to finish the first one.
    assert "cannot be compiled" in refused(capsys, *base, "--config.model.width=-8")
    assert len(list(tmp_path.glob("mini/runs/*/*/run_*"))) == 1


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("no_such_module:Name", None, "cannot be loaded (No module named 'no_such_module')"),
        (":Name", None, "cannot be loaded"),
        ("users_own:Absent", "", "has no attribute 'Absent'"),
        ("users_own:number", "number = 3", "is no subclass of mlperf_jax.workload.Workload"),
        ("users_own:Name", "from json import no_such_name", "cannot import name 'no_such_name'"),
        ("users_own:Name", "def", "invalid syntax"),
        ("mlperf_jax.workload:Workload", None, "is neither trained nor served"),
        ("mlperf_jax.workload:TrainedWorkload", None, "has no get_config(preset)"),
    ],
)
def test_workloads_of_ones_own(capsys, tmp_path, monkeypatch, name, source, said):
    if source is not None:
        (tmp_path / "users_own.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    sentence = refused(capsys, f"--workload={name}", "--platform=cpu", "--synthetic_data")
    assert f"--workload={name}" in sentence and said in sentence
    monkeypatch.delitem(sys.modules, "users_own", raising=False)


def test_closed_without_data_says_how_to_get_it_and_what_to_run_instead(capsys, tmp_path):
    sentence = refused(
        capsys, *RESNET, "--preset=closed", f"--data_dir={tmp_path}", f"--results_dir={tmp_path / 'r'}"
    )
    for part in (
        "ImageNet is not in",
        "image-net.org",
        "--preset=mini",
        "--synthetic_data",
        "mlperf_jax.prepare",
        "--fake",
    ):
        assert part in sentence
    assert not (tmp_path / "r").exists()


def test_mini_without_data(capsys, tmp_path):
    sentence = refused(capsys, *RESNET, f"--data_dir={tmp_path}", f"--results_dir={tmp_path / 'r'}")
    assert "no prepared data set in" in sentence and "mlperf_jax.prepare" in sentence
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def fake_imagenet(tmp_path_factory):
    """Sixteen made-up images in ImageNet's form, prepared by the command for it."""
    data = tmp_path_factory.mktemp("data")
    command = [sys.executable, "-P", "-m", "mlperf_jax.prepare", "--workload=resnet50", "--preset=closed"]
    done = subprocess.run(
        [*command, "--fake=16", f"--data_dir={data}"],
        env=door.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Fake ImageNet" in done.stdout and "16 train" in done.stdout
    return data


def test_damaged_data(capsys, tmp_path, fake_imagenet):
    folder = tmp_path / "imagenet_fake_16"
    shutil.copytree(fake_imagenet / "imagenet_fake_16", folder)
    arguments = (
        *RESNET,
        "--preset=closed",
        f"--data_dir={tmp_path}",
        "--config.data.fake=16",
        "--results_dir=unused",
    )
    image = next(folder.glob("train/*/*.JPEG"))
    image.write_bytes(image.read_bytes()[:100])
    assert str(image.relative_to(tmp_path)) in refused(capsys, *arguments)
    (folder / "manifest.json").write_text("{")
    assert "manifest.json" in refused(capsys, *arguments)
    (folder / "manifest.json").write_text('{"schema_version": 99, "files": {}}')
    assert "99" in refused(capsys, *arguments)


def test_results_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = (*RESNET, "--synthetic_data")
    sentence = refused(capsys, *arguments, f"--results_dir={tmp_path / 'file'}")
    assert f"{tmp_path / 'file'}" in sentence and "another --results_dir" in sentence
    assert "cannot name a folder" in refused(
        capsys, *arguments, f"--results_dir={tmp_path}", "--system=../../x"
    )
    assert "The organisation's name '../x' cannot" in refused(capsys, *arguments, "--org=../x")
    assert "/proc/" in refused(capsys, *arguments, "--results_dir=/proc/mlperf_jax")


def test_results_of_an_unknown_schema(capsys, tmp_path):
    folder = tmp_path / "mini/runs/box/resnet/run_0"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text('{"schema_version": 99, "state": "running", "seed": 1}')
    sentence = refused(capsys, *RESNET, "--synthetic_data", "--system=box", f"--results_dir={tmp_path}")
    assert "status.json has schema_version 99" in sentence and "another --results_dir" in sentence
    (folder / "status.json").write_text("junk")
    assert "status.json is damaged" in refused(
        capsys, *RESNET, "--synthetic_data", "--system=box", f"--results_dir={tmp_path}"
    )


def test_a_batch_that_does_not_divide(tmp_path):
    ended = door.run(tmp_path, *RESNET, "--cpu_devices=8", "--config.batch_size=100", "--synthetic_data")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "A batch of 100 does not divide over 8 devices" in ended.stderr
    assert "--config.batch_size=104" in ended.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(tmp_path):
    began = time.monotonic()
    ended = door.run(tmp_path, "--workload=resnet50", "--platform=gpu")
    assert time.monotonic() - began < 60  # at once, not after a timeout of minutes
    assert ended.returncode == 2 and ended.stdout == "" and "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert (
        last.startswith("mlperf_jax: jax finds no gpu here")
        and "--platform=cpu" in last
        and ".[cuda]" in last
    )
    assert not (tmp_path / "results").exists()


# What the door knows without running anything.


def test_help_says_every_flag(capsys):
    assert door_module.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Trains a reference model")
    for flag in [*door_module.FLAGS, "config.KEY"]:
        assert re.search(rf"^  --{flag}(=<[^>]+>)? +\S", text, re.MULTILINE), flag
    for part in (
        "Exit status: 0",
        "--list",
        "--platform=tpu",
        "the same command again continues".capitalize(),
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 140


def test_list_shows_workloads_presets_and_targets(capsys):
    assert door_module.main(["--list"]) == 0
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head[:3] == ["workload", "preset", "target"]
    assert ["resnet50", "closed", "0.759", "4096", "imagenet"] in rows
    (mini,) = [row for row in rows if row[:2] == ["resnet50", "mini"]]
    assert float(mini[2]) >= 0.90 and mini[4] == "fashion_mnist"


def test_nothing_imports_jax_before_the_platform_is_decided():
    script = """
import sys
from mlperf_jax import main, platform
def configure(*args, **kwargs):
    assert "jax" not in sys.modules, "too early"
    raise SystemExit(7)
platform.configure = configure
assert main.main(["--help"]) == 0 and "jax" not in sys.modules
main.main(["--workload=resnet50", "--config.batch_size=64"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=door.environment(), capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr


# What a run prints and leaves.


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three runs that reach their target, traced."""
    cwd = tmp_path_factory.mktemp("three")
    arguments = (*door.TINY, "--runs=3", "--seed=7", "--profile", "--results_dir=results")
    ended = door.run(cwd, *arguments, "--config.target=0.0", "--config.max_epochs=2")
    assert ended.returncode == 0, ended.stderr
    return cwd / "results", ended


def test_three_runs_end_with_a_mean_that_is_no_score(three):
    results, ended = three
    assert [path.name for path in door.logs(results)] == ["result_0.txt", "result_1.txt", "result_2.txt"]
    assert [door.values(door.events_of(results, i), "seed") for i in range(3)] == [[7], [8], [9]]
    out = ended.stdout
    for log in door.logs(results):
        assert f"result file    results/{log.relative_to(results)}" in out
    for part in (
        "mini: not MLPerf's data or model",
        "unverified, not reviewed by MLCommons",
        "synthetic data",
    ):
        assert out.count(part) == 3
    for label in ("quality", "time to train", "whole time", "throughput"):
        assert len(re.findall(rf"^  {label} ", out, re.MULTILINE)) == 3, label
    assert re.search(r"^  no score +3 of 5 runs$", out, re.MULTILINE)
    assert re.search(
        r"^  mean +[\d.]+ min \(of the 3 that converged, which is no score\)$", out, re.MULTILINE
    )
    assert "step 20/40 | epoch 1.00 | eval top-1 accuracy" in ended.stderr


def test_a_mini_log_passes_the_official_checker(three):
    results, _ = three
    for log in door.logs(results):
        assert not door.complaints(log, "4.0.0")
    assert door.values(door.events_of(results), "submission_division") == ["open"]


def test_the_run_folder_holds_what_ran(three):
    results, _ = three
    folder = door.run_folder(results)
    config = read_json(folder / "config.json")["config"]
    assert config["batch_size"] == 128 and config["optimizer"]["base_lr"] == 0.05
    assert config["precision"]["compute"] == "float32" and config["layout"] == {
        "strategy": "dp",
        "mesh": {"data": 1},
    }
    assert {"jax", "flax", "optax", "orbax-checkpoint"} <= read_json(folder / "versions.json").keys()
    assert read_json(folder / "devices.json")["platform"] == "cpu"
    status = read_json(folder / "status.json")
    assert (status["state"], status["seed"], status["step"]) == ("success", 7, 20)
    assert list((folder / "checkpoints").glob("20/*"))


def test_the_profile_is_there(three):
    results, _ = three
    assert list(door.run_folder(results).glob("profile/plugins/profile/*/*.xplane.pb"))


def test_tensorboard_events_can_be_read_back(three):
    from tensorboardX import record_writer  # noqa: F401  (the writer's own package; below is its record format)
    from tensorboardX.proto.event_pb2 import Event

    results, _ = three
    (file,) = (door.run_folder(results) / "tensorboard").iterdir()
    data, offset, found = file.read_bytes(), 0, {}
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 8], "little")
        event = Event.FromString(data[offset + 12 : offset + 12 + length])
        offset += 12 + length + 4
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    assert {"train/loss", "eval/quality"} <= found.keys()
    (logged,) = door.values(door.events_of(results), "eval_accuracy")
    ((step, quality),) = found["eval/quality"]
    assert step == 20 and quality == pytest.approx(logged, rel=1e-6)


def test_the_system_description_satisfies_the_official_checker(three):
    results, _ = three
    (path,) = (results / "systems").glob("*.json")
    valid, *_ = system_desc_checker.check_system_desc(str(path), "training", "4.0.0")
    assert valid
    assert json.loads(path.read_text())["schema_version"] == 1


def test_a_finished_run_is_kept_and_the_next_index_taken_on_any_layout(three):
    """Also: the user's XLA flags stand beside ours, and a switch of the dispatch changes no number."""
    results, _ = three
    before = {path: path.read_bytes() for path in door.logs(results)}
    ended = door.run(
        results.parent,
        *door.TINY,
        "--seed=7",
        "--results_dir=results",
        "--config.target=0.0",
        "--config.max_epochs=2",
        "--config.steps_per_dispatch=7",
        XLA_FLAGS="--xla_cpu_enable_fast_math=false",
    )
    assert ended.returncode == 0, ended.stderr
    assert len(door.logs(results)) == 4
    assert {path: path.read_bytes() for path in before} == before
    assert door.values(door.events_of(results, 3), "seed") == [10]  # 7, 8 and 9 are taken


def test_closed_on_made_up_data_lacks_nothing_but_the_target(fake_imagenet, tmp_path):
    """The whole of ResNet-50 at 224 x 224."""
    ended = door.run(
        tmp_path,
        *RESNET,
        "--preset=closed",
        f"--data_dir={fake_imagenet}",
        "--config.data.fake=16",
        "--config.batch_size=8",
        "--config.eval_batch_size=8",
        "--config.model.bn_span=8",
        "--config.eval_offset_epochs=1",
        "--config.max_epochs=1",
    )
    assert ended.returncode == 1, ended.stderr
    assert (
        "Fake ImageNet (random images, not MLPerf's data)" in ended.stdout and "not reached" in ended.stdout
    )
    assert not (tmp_path / "results/mini").exists()
    (log,) = door.logs(tmp_path / "results", "closed")
    complaints = door.complaints(log, "4.0.0")
    assert len(complaints) == 1 and "eval_accuracy" in complaints[0] and "0.7590" in complaints[0], complaints
