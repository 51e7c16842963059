"""Planted defects of training results are found, by line and rule; what the official checkers find is found."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mlperf_jax import check, report
from mlperf_jax.judging.tree import judge_tree
from tests.judging import planted_training as planted
from tests.judging.planted_training import index, of

RUNS = {"resnet": 5, "transformer": 10}


def official_passes(root: Path, ruleset: str, caplog) -> bool:
    from mlperf_logging.package_checker import package_checker

    caplog.clear()
    with caplog.at_level(logging.INFO):
        package_checker.check_training_package(
            str(root), "training", ruleset, False, False, False, False, False, "none"
        )
    return "PACKAGE CHECKER FOUND NO ERRORS" in caplog.text


@pytest.mark.parametrize("benchmark", RUNS)
def test_a_clean_tree_is_clean(tmp_path, caplog, benchmark):
    planted.clean_tree(tmp_path, benchmark, runs=RUNS[benchmark])
    assert official_passes(tmp_path, planted.KINDS[benchmark][0], caplog)
    report = judge_tree(tmp_path, planted.KINDS[benchmark][0])
    assert report.findings == ()
    assert report.training == RUNS[benchmark]


def test_closed_dlrm_on_which_the_official_package_checker_fails(tmp_path, caplog):
    """Its rcp_checker knows no number of runs for dlrm."""
    planted.clean_tree(tmp_path, "dlrm", runs=5)
    with pytest.raises(KeyError, match="dlrm"):
        official_passes(tmp_path, "2.1.0", caplog)
    assert judge_tree(tmp_path, "2.1.0").findings == ()


def _set(key, value):
    return lambda events: of(events, key).update(value=value)


def _meta(key, **metadata):
    return lambda events: of(events, key)["metadata"].update(metadata)


def _drop(key, at=0):
    return lambda events: events.pop(index(events, key, at))


def _drop_evaluation(events):
    for key in ("eval_start", "eval_accuracy", "eval_stop"):
        events.pop(index(events, key, 3))


def _extra_evaluation(events):
    at = index(events, "eval_stop", 2) + 1
    for event in reversed([dict(of(events, k, 2)) for k in ("eval_start", "eval_accuracy", "eval_stop")]):
        events.insert(at, {**event, "metadata": {**event["metadata"], "epoch_num": 12}})


def _shift(key, by_ms, at=0):
    def change(events):
        of(events, key, at)["time_ms"] += by_ms

    return change


def _append(key, **rest):
    def change(events):
        last = events[-2]
        events.insert(-1, {**last, "key": key, "value": None, "metadata": {"file": "a", "lineno": 1}, **rest})

    return change


def _compile_inside(events):
    event = events.pop(index(events, "compile_time"))
    at = index(events, "run_start") + 1
    events.insert(at, {**event, "time_ms": events[at - 1]["time_ms"] + 1})


def _bad_quality(events):
    for event in events:
        if event["key"] == "eval_accuracy":
            event["value"] = min(event["value"], 0.7)


# name -> (change, files that it is done to, rule, key of the event at whose line it must be found)
PLANTS = {
    "missing hyperparameter": (_drop("lars_opt_momentum"), 1, "official-4.0.0", None),
    "wrong hyperparameter": (_set("lars_epsilon", 1e-5), 1, "official-4.0.0", "lars_epsilon"),
    "no gradient accumulation": (_drop("gradient_accumulation_steps"), 1, "official-4.0.0", None),
    "an evaluation left out": (_drop_evaluation, 1, "evaluation-schedule", "eval_accuracy"),
    "an evaluation too many": (_extra_evaluation, 1, "evaluation-schedule", "eval_accuracy"),
    "evaluation begins before": (_shift("eval_stop", -2000, 2), 1, "time-backwards", "eval_stop"),
    "run ends before it begins": (_shift("run_stop", -10_000_000), 1, "time-backwards", "run_stop"),
    "a block in the past": (_shift("block_start", -9_000_000, 4), 1, "time-backwards", "block_start"),
    "the same seed": (_set("seed", 7), 2, "seed", "seed"),
    "no seed": (_drop("seed"), 1, "seed", None),
    "under the target": (_bad_quality, 1, "under-target", "run_stop"),
    "resumed": (_append("resumed"), 1, "resumed", "resumed"),
    "compiled inside the clock": (_compile_inside, 1, "compile-time", "compile_time"),
    "compiled longer than there was": (_set("compile_time", 500.0), 1, "compile-time", "compile_time"),
    "a smaller data set": (_set("train_samples", 60_000), 5, "count", "train_samples"),
    "fewer evaluated": (_set("eval_samples", 1000), 5, "count", "eval_samples"),
    "another batch size": (_set("global_batch_size", 2048), 1, "runs-differ", "global_batch_size"),
    "of another benchmark": (_set("submission_benchmark", "bert"), 1, "naming", "submission_benchmark"),
    "no end": (_drop("run_stop"), 1, "unfinished", None),
    "too slow to start": (_shift("init_start", -2_000_000), 1, "official-4.0.0", "init_stop"),
    "a hostile name": (_set("submission_division", "../../../../tmp/evil"), 1, "official-4.0.0", None),
    "made-up data": (_append("run_labels", value=["fake data"]), 1, "made-up-data", "run_labels"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_defect_is_found(tmp_path, caplog, name):
    change, files, rule, key = PLANTS[name]
    logs = planted.spoiled(
        planted.clean_tree(tmp_path / "clean", runs=5), change, *(f"result_{i}.txt" for i in range(files))
    )
    root = tmp_path / "spoiled"
    root.mkdir()
    planted.write_tree(root, "resnet", logs)
    report = judge_tree(root)
    found = [f for f in report.findings if f.rule == rule and f.severity == "error"]
    assert found, report.findings
    assert all(f.mend and f.text for f in found)
    if key is not None:
        told = {
            (finding.path.name, json.loads(_line(finding).removeprefix(":::MLLOG "))["key"])
            for finding in found
        }
        assert key in {told_key for _, told_key in told}
        assert {file for file, _ in told} <= {f"result_{i}.txt" for i in range(files)}
    if not official_passes_or_fails(root, caplog):
        assert report.errors


def official_passes_or_fails(root, caplog) -> bool:
    try:
        return official_passes(root, "4.0.0", caplog)
    except Exception:  # some defects are too much for it
        return False


def _line(finding) -> str:
    return finding.path.read_text().splitlines()[finding.line - 1]


def test_a_benchmark_is_judged_by_its_own_rules(tmp_path):
    logs = planted.spoiled(
        planted.clean_tree(tmp_path / "a", "transformer", runs=10), _set("opt_adam_epsilon", 1e-8)
    )
    root = tmp_path / "b"
    root.mkdir()
    planted.write_tree(root, "transformer", logs)
    finding, differing = judge_tree(root, "0.7.0").findings
    assert (finding.rule, differing.rule) == ("official-0.7.0", "runs-differ")
    assert finding.path.name == "result_0.txt"
    assert "opt_adam_epsilon" in finding.text
    assert json.loads(_line(finding).removeprefix(":::MLLOG "))["key"] == "opt_adam_epsilon"


def test_too_few_runs_for_a_closed_score(tmp_path, caplog):
    planted.clean_tree(tmp_path, runs=3)
    assert not official_passes(tmp_path, "4.0.0", caplog)
    (finding,) = judge_tree(tmp_path).findings
    assert (finding.rule, finding.severity) == ("runs", "error")
    assert "3 runs" in finding.text and "takes 5" in finding.text


@pytest.mark.parametrize(
    ("last", "rules"),
    [
        ({"BBOX": 0.378, "SEGM": 0.340}, set()),
        ({"BBOX": 0.378, "SEGM": 0.330}, {"under-target"}),
        ({"BBOX": 0.370, "SEGM": 0.340}, {"under-target"}),
    ],
)
def test_mask_r_cnn_reaches_boxes_and_masks_by_one_evaluation(tmp_path, last, rules):
    events = planted.clean_run("resnet", 1)
    for event in events:
        if event["key"] == "eval_accuracy":
            event["value"] = {"BBOX": 0.38, "SEGM": 0.33}
    of(events, "submission_benchmark")["value"] = "maskrcnn"
    [event for event in events if event["key"] == "eval_accuracy"][-1]["value"] = last
    planted.write_tree(tmp_path, "maskrcnn", {"result_0.txt": events})
    assert {f.rule for f in judge_tree(tmp_path).findings} & {"under-target"} == rules


@pytest.mark.parametrize(
    ("last", "target", "rules"),
    [
        (0.057, 0.058, set()),
        (0.95, 0.058, {"under-target"}),
        (0.057, 0.9, {"target"}),
        (0.057, 0.05, {"under-target"}),
    ],
)
def test_an_error_rate_falls(tmp_path, last, target, rules):
    """RNN-T by the rules: at most 0.058."""
    events = planted.clean_run("resnet", 1)
    for event in events:
        if event["key"] == "eval_accuracy":
            event["value"] = 0.95
    of(events, "submission_benchmark")["value"] = "rnnt"
    [event for event in events if event["key"] == "eval_accuracy"][-1]["value"] = last
    events.insert(2, {**of(events, "seed"), "key": "quality_target", "value": target})
    planted.write_tree(tmp_path, "rnnt", {"result_0.txt": events})
    assert {f.rule for f in judge_tree(tmp_path).findings} & {"under-target", "target"} == rules


def test_one_run_may_miss_the_target_and_two_may_not(tmp_path):
    def miss(events):
        _bad_quality(events)
        of(events, "run_stop")["metadata"]["status"] = "aborted"

    clean = planted.clean_tree(tmp_path / "clean", runs=5)
    for count in (1, 2):
        root = tmp_path / str(count)
        root.mkdir()
        planted.write_tree(
            root, "resnet", planted.spoiled(clean, miss, *(f"result_{i}.txt" for i in range(count)))
        )
        rules = {f.rule for f in judge_tree(root).findings if f.severity == "error"}
        assert rules == (set() if count == 1 else {"no-score"})


def test_converging_faster_than_the_reference(tmp_path, caplog):
    def quick(events):
        last = [event for event in events if event["metadata"].get("epoch_num", 0) <= 26]
        kept = [e for e in last if e["metadata"].get("first_epoch_num", 0) <= 26]
        events[:] = kept
        [e for e in events if e["key"] == "eval_accuracy"][-1]["value"] = 0.7595

    logs = planted.spoiled(
        planted.clean_tree(tmp_path / "clean", runs=5), quick, *(f"result_{i}.txt" for i in range(5))
    )
    root = tmp_path / "quick"
    root.mkdir()
    planted.write_tree(root, "resnet", logs)
    report = judge_tree(root)
    assert [f.rule for f in report.findings if f.severity == "error"] == ["reference-convergence"]
    official_passes(root, "4.0.0", caplog)
    assert "RCP Test Failed" in caplog.text or "scaling" in caplog.text.lower()


def test_the_system_and_its_division(tmp_path, caplog):
    planted.clean_tree(tmp_path, runs=5)
    path = tmp_path / "systems" / "acme-1.json"
    told = json.loads(path.read_text())
    for change in ({"status": "onprem"}, {"division": "open"}):
        path.write_text(json.dumps({**told, **change}))
        assert {f.rule for f in judge_tree(tmp_path).findings} <= {"system-description", "division"}
        assert judge_tree(tmp_path).errors
    del told["cooling"]
    path.write_text(json.dumps(told))
    assert not official_passes(tmp_path, "4.0.0", caplog)
    assert [f.rule for f in judge_tree(tmp_path).findings] == ["system-description"]
    path.unlink()
    assert judge_tree(tmp_path).errors


def test_damaged_and_hostile_logs_are_findings_not_failures(tmp_path):
    planted.clean_tree(tmp_path, runs=5)
    folder = tmp_path / "results" / "acme-1" / "resnet"
    with open(folder / "result_0.txt", "a") as file:
        file.write(':::MLLOG {"key": "eval_accuracy", "value": ' + "[" * 100_000 + "\n:::MLLOG {}\n")
    (folder / "result_1.txt").write_bytes(b"\x00\xff no log at all\n")
    (folder / "result_2.txt").write_text(':::MLLOG {"key": "seed"}\n')
    report = judge_tree(tmp_path)
    assert {"damaged-line", "unreadable"} <= {f.rule for f in report.findings}
    assert {f.path.name for f in report.findings if f.severity == "error"} >= {"result_0.txt", "result_1.txt"}


def test_a_yaml_in_the_tree_is_never_evaluated(tmp_path):
    """The official checker forms a file's name from the log, and evaluates what it finds there."""
    evil = tmp_path / "x_common.yaml"
    evil.write_text(f"- BEGIN:\n    CODE: \"open({str(tmp_path / 'owned')!r}, 'w')\"\n")
    import mlperf_logging

    base = Path(mlperf_logging.__file__).parent / "compliance_checker" / "training_4.0.0"
    up = "../" * len(base.parts) + str(tmp_path).lstrip("/") + "/x"
    logs = planted.clean_tree(tmp_path / "tree", runs=5)
    planted.write_tree(tmp_path / "tree", "resnet", planted.spoiled(logs, _set("submission_division", up)))
    assert judge_tree(tmp_path / "tree").errors
    assert not (tmp_path / "owned").exists()


def test_the_command(tmp_path, capsys):
    planted.clean_tree(tmp_path, runs=5)
    assert check.main([str(tmp_path)]) == 0
    assert "0 error(s), 0 warning(s)" in capsys.readouterr().out
    logs = planted.spoiled(planted.clean_tree(tmp_path, runs=5), _drop("lars_opt_momentum"))
    planted.write_tree(tmp_path, "resnet", logs)
    assert check.main([str(tmp_path)]) == 1
    assert "results/acme-1/resnet/result_0.txt: error [official-4.0.0]" in capsys.readouterr().out
    assert check.main([str(tmp_path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1 and told["errors"] == 1
    assert set(told["findings"][0]) == {"path", "rule", "text", "mend", "severity", "line"}
    for wrong in (
        [],
        [str(tmp_path / "none")],
        [str(tmp_path / "systems")],
        [str(tmp_path), "--ruleset=9.9.9"],
    ):
        assert check.main(wrong) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_two_attempts_in_one_file_are_told_once_and_not_scored(tmp_path, capsys):
    def again(events):
        broken = [dict(event) for event in events[: index(events, "eval_stop", 4)]]
        for event in broken:
            event["time_ms"] -= 3_600_000
        events[:0] = broken

    logs = planted.spoiled(
        planted.clean_tree(tmp_path, runs=5), again, *(f"result_{i}.txt" for i in range(5))
    )
    planted.write_tree(tmp_path, "resnet", logs)
    found = [f for f in judge_tree(tmp_path).findings if f.path.name == "result_3.txt"]
    assert [(f.severity, "two runs in one file" in f.text) for f in found] == [("error", True)]
    assert report.main([str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "5 of 5 runs did not converge" in told.out and told.err.count("two runs in one file") == 5
