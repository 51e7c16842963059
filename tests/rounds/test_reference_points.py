"""The convergence test against the official rcp_checker on random submissions."""

from __future__ import annotations

import functools
import math
import random
import types

import pytest

from mlperf_jax.rounds import reference_points, training_rules
from mlperf_jax.rounds.reference_points import judge_result, load_points
from mlperf_jax.rounds.training_logs import read_run
from tests.reporting import result_trees as trees

official = pytest.importorskip("mlperf_logging.rcp_checker.rcp_checker")
pytest.importorskip("scipy")
ROUNDS = {
    "resnet": "v4.0",
    "bert": "v2.1",
    "unet3d": "v2.0",
    "rnnt": "v3.1",
    "maskrcnn": "v1.0",
    "llama2_70b_lora": "v4.1",
}
ROUNDS |= {"llama31_405b": "v5.0", "gpt3": "v3.1", "ssd": "v1.1", "flux1": "v5.1"}


@functools.cache
def checker(benchmark: str, round_name: str):
    return official.RCP_Checker("training", f"{round_name[1:]}.0", benchmark, False)


@pytest.mark.parametrize("benchmark", ROUNDS)
def test_points_and_pruning_agree(benchmark):
    theirs, ours = checker(benchmark, ROUNDS[benchmark]), load_points(benchmark, ROUNDS[benchmark])
    for record in theirs.rcp_data.values():
        point = next(p for p in ours.points if p.batch_size == record["BS"])
        assert point.mean == pytest.approx(record["RCP Mean"])
        assert point.std == pytest.approx(record["RCP Stdev"])
        assert point.fastest == pytest.approx(record["Min Epochs"], abs=2e-4)
    assert [p.batch_size for p in ours.pruned] == sorted(r["BS"] for r in theirs.pruned_rcp_data.values())


@pytest.mark.parametrize("benchmark", ROUNDS)
def test_verdicts_agree(benchmark, tmp_path):
    """60 submissions a benchmark: batch sizes at, between and beyond the points, speeds around the border."""
    generator = random.Random(benchmark)
    round_name = ROUNDS[benchmark]
    theirs, ours = checker(benchmark, round_name), load_points(benchmark, round_name)
    runs = training_rules.BENCHMARKS[benchmark].required_runs(round_name)
    sizes = [p.batch_size for p in ours.points]
    seen = set()
    for _ in range(60):
        size = generator.choice([*sizes, generator.randint(min(sizes) // 2, max(sizes)), max(sizes) * 2])
        point, _ = ours.find(size)
        centre = point.mean * generator.uniform(0.85, 1.05) if point else 10.0
        epochs = [centre * generator.uniform(0.97, 1.03) for _ in range(runs)]
        if generator.random() < 0.3:
            epochs[0] = math.inf
        verdict = ours.judge(size, epochs)
        expected, norm = _official_verdict(
            theirs, size, [1e18 if e == math.inf else e for e in epochs], str(tmp_path)
        )
        if verdict.mean is not None and point and abs(verdict.mean - point.fastest) < 3e-4:
            continue  # they search the border to 1e-4
        assert verdict.passed == expected, (size, epochs, verdict)
        if verdict.point:
            assert verdict.normalization == pytest.approx(norm)
        seen.add(verdict.passed)
    assert seen == {True, False}


def _official_verdict(theirs, size, epochs, folder):
    """As check_directory decides once it has read the logs."""
    if record := theirs._find_rcp(size, "pruned_rcps"):
        return theirs._eval_submission_record(dict(record), epochs, folder)
    low, high = (
        theirs._find_top_min_rcp(size, "pruned_rcps"),
        theirs._find_bottom_max_rcp(size, "pruned_rcps"),
    )
    if low and high:
        return theirs._eval_submission_record(theirs._create_interp_rcp(size, low, high)[1], epochs, folder)
    if high:
        return theirs._eval_submission_record(dict(theirs._find_min_rcp("pruned_rcps")), epochs, folder)
    return False, 1.0


@pytest.mark.parametrize("epochs", [30.0, 34.0, 36.0])
@pytest.mark.parametrize("batch_size", [3264, 4096, 100])
def test_from_logs_as_the_official_command_judges(tmp_path, epochs, batch_size):
    logs = []
    for i in range(5):
        text = trees.mllog_run(30.0 + i, epochs=epochs + i % 2, batch_size=batch_size)
        logs.append(read_run(trees.write(tmp_path / f"result_{i}.txt", text)))
    passed, _, _ = official.check_directory(
        str(tmp_path), "training", "2.1.0", False, False, rcp_pass="pruned_rcps"
    )
    assert judge_result(logs, training_rules.BENCHMARKS["resnet"], "v2.1").passed == passed


def test_what_the_rules_have_no_say_on(tmp_path):
    logs = [read_run(trees.write(tmp_path / "result_0.txt", trees.mllog_run(30.0)))]
    assert judge_result(logs, training_rules.BENCHMARKS["resnet"], "v0.7").passed is None
    assert judge_result(logs, training_rules.BENCHMARKS["resnet"], "v2.1").passed is None  # one run
    assert "same" in judge_result([], training_rules.BENCHMARKS["resnet"], "v2.1").text


def test_a_local_run_is_held_against_the_latest_points():
    assert load_points("resnet", "local").points == load_points("resnet", "v4.0").points


def test_our_own_ssd_is_not_the_retinanet_that_took_its_name():
    ssd, local = training_rules.BENCHMARKS["ssd"], training_rules.LOCAL
    assert (ssd.title(local), ssd.target(local), ssd.title("v2.0")) == ("SSD", 0.230, "RetinaNet")
    assert {point.batch_size for point in load_points("ssd", local).points} == {1024, 1536, 2048, 4096}


@pytest.mark.parametrize("logged", [2200.0, 2200.0 * 168])
def test_points_of_unet_count_samples_and_its_logs_may_count_epochs(logged, monkeypatch):
    monkeypatch.setattr(reference_points, "epochs_to_converge", lambda *_: logged)
    log = types.SimpleNamespace(resumed=False, batch_size=56, value={"train_samples": 168}.get)
    verdict = judge_result([log] * 40, training_rules.BENCHMARKS["unet3d"], training_rules.LOCAL)
    assert verdict.passed and verdict.mean == pytest.approx(2200 * 168)
