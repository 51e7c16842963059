"""Packages of training runs, judged by mlperf-logging's own checkers."""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import shutil

import pytest

from mlperf_jax import package
from mlperf_jax.judging.tree import judge_tree
from tests import door
from tests.packaging import packed_runs


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Five mini runs that reached their target, and a description that a person has completed."""
    results = packed_runs.train(tmp_path_factory.mktemp("five"), "--runs=5", "--org=acme")
    packed_runs.fill_in(results)
    return results


def pack(results, out, *arguments):
    flags = [f"--training={results}", f"--out={out}", "--org=acme", "--division=open"]
    return package.main([*flags, *arguments])


def complaints(out, caplog, ruleset="4.0.0") -> list[str]:
    """What package_checker (and in it system_desc_checker) says, without its own verdict."""
    from mlperf_logging.package_checker import package_checker
    from mlperf_logging.system_desc_checker.system_desc_checker import check_system_desc

    caplog.clear()
    with caplog.at_level(logging.INFO):
        package_checker.check_training_package(
            str(out), "training", ruleset, False, True, False, False, False, "none"
        )
        for path in (out / "systems").glob("*.json"):
            valid, *_ = check_system_desc(str(path), "training", ruleset)
            assert valid
    passed = "PACKAGE CHECKER FOUND NO ERRORS" in caplog.text
    told = [" ".join(r.getMessage().split()) for r in caplog.records if r.levelno >= logging.WARNING]
    assert passed == (not [r for r in caplog.records if r.levelno >= logging.ERROR])
    return told


def test_a_package_of_open_runs_is_complete_and_passes(five, tmp_path, caplog, capsys):
    out = tmp_path / "out"
    assert pack(five, out) == 0, capsys.readouterr().out
    assert complaints(out / "acme", caplog) == []
    report = judge_tree(out / "acme")
    assert report.findings == () and report.training == 5
    for log in door.logs(five):
        place = f"acme/results/{log.parents[1].name}/resnet/{log.name}"
        assert (out / place).read_bytes() == log.read_bytes()
    (system,) = (out / "acme" / "systems").glob("*.json")
    told = json.loads(system.read_text())
    assert (told["division"], told["submitter"], told["cooling"]) == ("open", "acme", "air")
    manifest = json.loads((out / "package.json").read_text())
    assert manifest["schema_version"] == 1 and manifest["complete"] and not manifest["missing"]
    there = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} - {"package.json"}
    assert there == manifest["files"].keys()
    for name, facts in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == facts["sha256"]
        assert str(five) not in facts["from"]
    code = out / "acme" / "benchmarks" / "resnet" / "implementations" / "mlperf_jax"
    assert (code / "mlperf_jax" / "main.py").is_file() and not list(code.rglob("__pycache__"))
    assert "--runs=5" in (code.parents[1] / "README.md").read_text()
    assert "python -m mlperf_logging.package_checker" in capsys.readouterr().out


def test_what_runs_do_not_have_is_missing(five, tmp_path, caplog, capsys):
    results = tmp_path / "results"
    shutil.copytree(five, results)
    door.logs(results)[4].unlink()
    with open(door.logs(results)[3], "a") as log:
        event = {"key": "resumed", "value": None, "time_ms": 1, "metadata": {"file": "a", "lineno": 1}}
        log.write(":::MLLOG " + json.dumps(event) + "\n")
    (path,) = results.glob("systems/*.json")
    path.write_text(path.read_text().replace('"air"', '"not stated"'))
    out = tmp_path / "out"
    assert pack(results, out, "--org=another") == 1
    told = capsys.readouterr().out
    for words in ("2 of 5 runs", "cooling", "submission_org another", "result_3.txt was resumed"):
        assert words in told
    assert "submission_org" in (out / "INCOMPLETE.md").read_text()
    assert not json.loads((out / "package.json").read_text())["complete"]
    (complaint,) = complaints(out / "another", caplog)
    assert complaint.startswith("Incorrect number of files in dir") and complaint.endswith(
        "found 3, expected 5"
    )


def test_made_up_data_in_closed(tmp_path, caplog, capsys):
    """All that a closed package of synthetic data draws follows from the data."""
    cwd = tmp_path / "run"
    cwd.mkdir()
    ended = door.run(
        cwd,
        *door.TINY,
        "--preset=closed",
        "--org=acme",
        "--config.model.bn_span=32",
        "--config.max_epochs=1",
        "--config.eval_offset_epochs=1",
        "--config.data.image_size=32",
        "--config.model.image_size=32",
        "--results_dir=results",
        "--seed=7",
    )
    assert ended.returncode == 1, ended.stderr
    results = cwd / "results"
    packed_runs.fill_in(results)
    (log,) = door.logs(results, "closed")
    packed_runs.closed_logs(results, log, 5)
    out = tmp_path / "out"
    assert pack(results, out, "--division=closed") == 1
    assert collections.Counter(complaints(out / "acme", caplog)) == {
        "Failed checks for eval_accuracy : v['value'] >= 0.7590 and v['value'] < 1.0": 5,
        "5 files do not comply, directory cannot be accepted": 1,
        "Run incomplete or did not converge. Marking as infinite.": 5,
        "RCP Test Failed: Insufficient convergence": 1,
    }
    rules = {f.rule for f in judge_tree(out / "acme").findings if f.severity == "error"}
    assert rules == {"made-up-data", "count", "no-score"}


def test_mistakes_get_a_sentence_and_leave_nothing(five, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("keep")
    mistakes = (
        ((five, out), "is not overwritten"),
        ((five, tmp_path / "a", "--division=closed"), "needs runs that logged it"),
        ((five, tmp_path / "a", "--org=../x"), "cannot name a folder"),
        ((five, five / "package"), "among the results"),
        ((tmp_path / "none", tmp_path / "a"), "is no folder"),
        ((five, tmp_path / "a", f"--inference={five}"), "Give one of"),
    )
    for arguments, words in mistakes:
        assert pack(*arguments) == 2
        told = capsys.readouterr().err
        assert words in told and "Traceback" not in told
    assert (out / "mine").read_text() == "keep"
    results = tmp_path / "results"
    shutil.copytree(five, results)
    log = door.logs(results)[0]
    log.rename(log.with_name("elsewhere"))
    log.symlink_to(log.with_name("elsewhere"))
    assert pack(results, tmp_path / "b", "--org=another") in (1, 2)
    capsys.readouterr()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "b") == ["out", "results"]
