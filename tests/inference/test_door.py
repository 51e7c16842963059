"""Inference through the door: what training left is served in four scenarios, and mistakes get a sentence."""

import json
import sys

import jax
import numpy as np
import pytest

from configs.resnet50 import get_config
from loadgen_py import Reason, TestMode, TestScenario
from mlperf_jax import import_weights, main
from mlperf_jax.errors import UserError
from mlperf_jax.inference import command, trained
from mlperf_jax.inference.accuracy import read_answers
from mlperf_jax.inference.settings import Asked, Timing, in_flags, make_settings
from mlperf_jax.parallel import mesh
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.folders import read_json
from mlperf_jax.rounds import inference_logs
from tests import door
from tests.inference.served import Served

pytestmark = pytest.mark.timing  # most of them want a VALID run of one trained model

WORKLOAD = ("--workload=tests.inference.served:Served", "--platform=cpu", "--system=here")
ONE_SIZE = ("--mesh=data:8", "--config.inference.batch_sizes=(8,)")
PLACE = "mini/inference/here/tests.inference.served.Served"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder in which a small model was trained."""
    folder = tmp_path_factory.mktemp("trained")
    ended = door.run(door.ROOT, *WORKLOAD, f"--results_dir={folder}", "--seed=1")
    assert ended.returncode == 1, ended.stderr  # it has no target that can be reached
    return folder


@pytest.fixture(scope="module")
def trained_quality(results):
    return read_json(door.run_folder(results) / "status.json")["quality"]


def infer(results, *arguments):
    return main.main([*WORKLOAD, f"--results_dir={results}", "--time=0.3", *arguments])


def result(results, scenario, kind):
    return read_json(results / PLACE / scenario / kind / "result.json")


def test_the_trained_model_serves_in_four_scenarios(results, trained_quality):
    ended = door.run(
        door.ROOT,
        *WORKLOAD,
        f"--results_dir={results}",
        "--scenario=all",
        "--qps=400",
        "--max_latency=1",
        "--time=0.5",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for scenario in TestScenario.__members__:
        assert f"{scenario} performance: VALID" in ended.stdout
        performance, accuracy = (
            result(results, scenario, "performance/run_1"),
            result(results, scenario, "accuracy"),
        )
        assert performance["valid"] and performance["passed"] and accuracy["passed"]
        assert accuracy["quality"] == pytest.approx(trained_quality)
        assert accuracy["quality_target"] == pytest.approx(0.99 * trained_quality)
        folder = results / PLACE / scenario / "performance" / "run_1"
        assert "Result is : VALID" in (folder / "mlperf_log_summary.txt").read_text()
        assert performance["command"][:3] == ["python", "-m", "mlperf_jax.main"]
        reported = inference_logs.read_run(folder, results)
        assert reported.command.startswith("python -m mlperf_jax.main --workload=")
        assert len(reported.latencies) > 0 and (np.diff(reported.latencies) >= 0).all()
        entries = json.loads(
            (results / PLACE / scenario / "accuracy" / "mlperf_log_accuracy.json").read_text()
        )
        assert {entry["qsl_idx"] for entry in entries} == set(range(44))
    assert "unverified, not reviewed by MLCommons" in ended.stdout


@pytest.mark.parametrize("sharding, replicas, sizes", [("dp", 8, "(1,)"), ("fsdp", 1, "(1,8)")])
def test_eight_devices_as_replicas_and_as_one_model(
    results, trained_quality, sharding, replicas, sizes, capsys
):
    assert jax.device_count() == 8
    sizes = f"--config.inference.batch_sizes={sizes}"
    status = infer(results, "--scenario=all", "--mode=accuracy", f"--sharding={sharding}", "--qps=500", sizes)
    assert status == 0, capsys.readouterr()
    for scenario in TestScenario.__members__:
        found = result(results, scenario, "accuracy")
        assert found["replicas"] == replicas
        assert found["quality"] == pytest.approx(trained_quality)


def test_samples_in_device_memory_get_the_same_answers(results, trained_quality):
    switch = "--config.inference.samples_on_device=True"
    assert infer(results, "--scenario=Offline", "--mode=accuracy", *ONE_SIZE, switch) == 0
    assert result(results, "Offline", "accuracy")["quality"] == pytest.approx(trained_quality)


def test_the_rate_of_server_is_found_and_both_packages_compared(results, capsys):
    pytest.importorskip("mlperf_loadgen", reason="the official package is compared with")
    arguments = ("--scenario=Server", "--mode=performance", "--max_latency=0.05", "--loadgen=official")
    infer(
        results, *arguments, *ONE_SIZE
    )  # whether the official run is VALID too, the load of the machine decides
    out = capsys.readouterr().out
    found, measured = (result(results, "Server", kind) for kind in ("find_peak", "performance/run_1"))
    assert found["valid"] and measured["valid"], out
    assert found["settings"]["min_duration_ms"] == 500  # ten times the bound
    assert measured["settings"]["server_target_latency_ns"] == 50_000_000
    assert measured["settings"]["server_target_qps"] < found["metrics"]["result_scheduled_samples_per_sec"]
    official = result(results, "Server", "official/performance/run_1")
    assert official["metrics"]["result_query_count"] == measured["metrics"]["result_query_count"]
    assert "loadgen_py" in out and "result_99.00_percentile_latency_ns" in out


def test_submission_mode_and_fewer_samples(results):
    assert infer(results, "--scenario=SingleStream", "--mode=submission", "--count=20", "--mesh=data:8") in (
        0,
        1,
    )
    found = result(results, "SingleStream", "submission")
    assert found["valid"] and found["metrics"]["result_query_count"] >= 64
    answers = json.loads(
        (results / PLACE / "SingleStream" / "submission" / "mlperf_log_accuracy.json").read_text()
    )
    assert {entry["qsl_idx"] for entry in answers} == set(range(20))


def test_imported_weights_answer_as_the_model_they_came_from(results, trained_quality, tmp_path):
    """The trained model under torchvision's names, imported and served."""
    source = trained.from_checkpoint(door.run_folder(results))
    workload = Served(Served.get_config("mini"), POLICIES["float32"], data_dir=tmp_path)
    state = source.load(workload, mesh.single_device_layout())
    np.savez(tmp_path / "published.npz", **torchvision_names(state["params"], state["model_state"]))
    arguments = [
        WORKLOAD[0],
        "--preset=mini",
        f"--from={tmp_path / 'published.npz'}",
        f"--to={tmp_path / 'ours'}",
    ]
    assert import_weights.main(arguments) == 0
    status = infer(
        results, "--scenario=Offline", "--mode=accuracy", "--mesh=data:8", f"--weights={tmp_path / 'ours'}",
        "--config.data.mean=(128.0,)", "--config.data.std=(64.0,)", "--config.inference.published_quality=0.1",
        "--config.inference.batch_sizes=(8,)",
    )  # fmt: skip
    found = result(results, "Offline", "accuracy")
    assert status == 0 and found["quality"] == pytest.approx(trained_quality)
    assert found["trained_quality"] == 0.1 and "published.npz" in found["model"]


def torchvision_names(params, stats):
    named = {"conv1.weight": params["stem"]["conv"]["kernel"], "fc.weight": params["head"]["kernel"].T}
    norms = {"bn1": (params["norm"], stats["norm"])}
    for block, layers in params["blocks"].items():
        stage, number = block.removeprefix("stage").split("_block")
        theirs = f"layer{stage}.{int(number) - 1}"
        for k, names in {
            "1": ("conv1", "bn1"),
            "2": ("conv2", "bn2"),
            "3": ("conv3", "bn3"),
            "_shortcut": ("downsample.0", "downsample.1"),
        }.items():
            named[f"{theirs}.{names[0]}.weight"] = layers[f"conv{k}"]["kernel"]
            norms[f"{theirs}.{names[1]}"] = (layers[f"norm{k}"], stats["blocks"][block][f"norm{k}"])
    named = {
        k: np.asarray(a).transpose(3, 2, 0, 1) if a.ndim == 4 else np.asarray(a) for k, a in named.items()
    }
    for name, (weights, running) in norms.items():
        named |= {f"{name}.weight": weights["scale"], f"{name}.bias": weights["bias"]}
        named |= {f"{name}.running_mean": running["mean"], f"{name}.running_var": running["var"]}
    return named | {"fc.bias": params["head"]["bias"]}


def test_answers_that_are_not_good_enough_fail(results, capsys):
    status = infer(
        results,
        "--scenario=Offline",
        "--mode=accuracy",
        "--mesh=data:8",
        "--config.inference.quality_share=1.5",
    )
    assert status == 1
    assert "NOT REACHED" in capsys.readouterr().out


def test_a_profile_of_a_window(results):
    assert infer(results, "--scenario=SingleStream", "--mode=performance", "--mesh=data:8", "--profile") == 0
    assert list((results / PLACE / "SingleStream/performance/run_1/profile").rglob("*.xplane.pb"))


def test_mistakes_get_a_sentence_and_status_2(results, tmp_path, capsys):
    for folder, arguments, said in (
        (tmp_path, ["--scenario=Offline"], "There is no trained mini model of resnet in"),
        (results, ["--mode=accuracy"], "--mode goes with --scenario"),
        (results, ["--scenario=Offline", "--qps=0"], "--qps=0 leaves nothing"),
        (results, ["--scenario=Offline", "--mode=find_peak"], "--mode=find_peak searches Server's rate"),
        (results, ["--scenario=Offline", "--count=45"], "--count=45 is more than the 44 samples"),
        (results, ["--scenario=Offline", "--checkpoint=a", "--weights=b"], "give one of them"),
        (results, ["--scenario=Offline", f"--checkpoint={tmp_path}"], "There is no checkpoint in"),
        (results, ["--scenario=Offline", f"--weights={tmp_path}"], "There are no imported weights in"),
        (results, ["--scenario=Offline", "--config.model.width=8"], "holds another model: "),
        (results, ["--scenario=Offline", "--loadgen=official", "--mode=accuracy"], "compares performance"),
        (results, ["--scenario=Server", "--max_latency=1e-7", *ONE_SIZE], "longer than Server's bound"),
        # With a rate of the user's, too: none can be low enough.
        (
            results,
            ["--scenario=Server", "--qps=5", "--max_latency=1e-7", "--mode=performance", *ONE_SIZE],
            "longer than Server's bound",
        ),
        (
            results,
            ["--scenario=Server", "--qps=1e9", "--time=60"],
            "for 60 s asks for 60,000,000,000 samples",
        ),
        (results, ["--scenario=Offline", "--time=1e14", *ONE_SIZE], "a shorter --time"),
    ):
        assert main.main([*WORKLOAD, f"--results_dir={folder}", *arguments]) == 2
        assert said in capsys.readouterr().err
    assert "train one with `python -m mlperf_jax.main --workload=" in _said_without_a_model(tmp_path, capsys)


def _said_without_a_model(folder, capsys):
    main.main([*WORKLOAD, f"--results_dir={folder}", "--scenario=Offline"])
    return capsys.readouterr().err


def test_accuracy_logs_that_are_damaged_or_incomplete_are_refused(tmp_path):
    path = tmp_path / "mlperf_log_accuracy.json"
    path.write_text(
        '[\n{ "seq_id" : 0, "qsl_idx" : 1, "data" : "0A00" },\n{ "seq_id" : 1, "qsl_idx" : 0, "data" : "FF" }\n]\n'
    )
    indices, answers = read_answers(path, 2)
    assert indices.tolist() == [0, 1] and answers == [b"\xff", b"\n\0"]
    with pytest.raises(UserError, match="answers to 2 of 3 samples"):
        read_answers(path, 3)
    path.write_text('[{"qsl_idx": 0, "data": "XY"}]')
    with pytest.raises(UserError, match="no accuracy log"):
        read_answers(path, 1)


def test_closed_settings_are_the_official_ones():
    numbers = get_config("closed").inference
    timings = [Timing(1.0, {1: 1e-3, 8: 2e-3})]
    for scenario in TestScenario:
        made = make_settings(scenario, TestMode.PerformanceOnly, numbers, Asked(), timings, 1)
        assert made.min_duration_ms == 600_000
        assert made.qsl_rng_seed == 2085463073848966840
    server = make_settings(TestScenario.Server, TestMode.PerformanceOnly, numbers, Asked(qps=50), timings, 1)
    assert (server.server_target_latency_ns, server.server_target_qps) == (15_000_000, 50)
    offline = make_settings(TestScenario.Offline, TestMode.PerformanceOnly, numbers, Asked(), timings, 1)
    assert offline.min_query_count == 24576 and offline.offline_warmup_ms == 2000
    trial = make_settings(TestScenario.Offline, TestMode.PerformanceOnly, numbers, Asked(1.0), timings, 1)
    assert (
        trial.min_query_count == 1 and trial.min_duration_ms == 1000
    )  # by its time, not by the official count
    multi = make_settings(TestScenario.MultiStream, TestMode.PerformanceOnly, numbers, Asked(), timings, 1)
    assert (multi.multi_stream_samples_per_query, multi.min_query_count) == (8, 662)
    assert multi.multi_stream_expected_latency_ns < 2e6


def test_the_official_package_is_looked_for_before_anything_is_measured(results, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)  # what makes an import fail
    arguments = [*WORKLOAD, f"--results_dir={results}", "--scenario=Offline", "--loadgen=official"]
    assert main.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        "mlperf_jax: The official LoadGen is not installed; run `pip install mlcommons-loadgen`, or leave "
        "--loadgen=official out."
    ]


def test_memory_that_runs_out_is_a_sentence(results, capsys, monkeypatch):
    def full(options, scenarios):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.")

    monkeypatch.setattr(command, "_measure", full)
    assert main.main([*WORKLOAD, f"--results_dir={results}", "--scenario=Offline"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("mlperf_jax: Memory ran out (RESOURCE_EXHAUSTED: Out of memory")
    assert "--config.inference.batch_sizes" in said and "--count" in said


def test_advice_is_given_in_flags_that_the_command_has():
    def said(text, **try_next):
        return in_flags(Reason("condition", text, try_next))

    assert (
        said("p99 is over. Try server_target_qps=90.", server_target_qps=90.0) == "p99 is over. Try --qps=90."
    )
    assert said("Too few. Try min_duration_ms=1500.", min_duration_ms=1500) == "Too few. Try --time=2."
    assert said("Too few. Try min_query_count=70.", min_query_count=70) == "Too few. Try a longer --time."
    for name in ("offline_expected_qps", "single_stream_expected_latency_ns"):
        assert "repeat the command" in said(f"Too short. Try {name}=5.", **{name: 5})
    assert said("Cut short. Raise or remove max_query_count.") == "Cut short."
