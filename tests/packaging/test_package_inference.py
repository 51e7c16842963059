"""Packages of inference runs, and the compliance tests that closed needs.

With MLPERF_INFERENCE_REPOSITORY set to a checkout of mlcommons/inference its submission checker and its
verifiers judge the same runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loadgen_py import TestScenario
from mlperf_jax import package
from mlperf_jax.errors import UserError
from mlperf_jax.goals import Goal
from mlperf_jax.inference import compliance as tests
from mlperf_jax.judging import compliance
from mlperf_jax.judging.accuracy_log import read_answers
from mlperf_jax.judging.loadgen_run import read_loadgen_run
from mlperf_jax.judging.tree import judge_tree
from tests import door
from tests.packaging import packed_runs

REPOSITORY = os.environ.get("MLPERF_INFERENCE_REPOSITORY")
# As many samples as MLPerf's ResNet answers, so that nothing is left to complain of but how long was measured.
SIZE = ("--config.data.num_eval=50000", "--config.eval_batch_size=1000")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A tiny model served Offline for half a second, and its compliance tests."""
    cwd = tmp_path_factory.mktemp("served")
    results = packed_runs.train(cwd, *SIZE)
    packed_runs.fill_in(results)
    shared = (*door.TINY, *SIZE, "--results_dir=results", "--scenario=Offline", "--time=0.5")
    for mode in ((), ("--mode=compliance",)):
        ended = door.run(cwd, *shared, *mode)
        assert "Offline" in ended.stdout, ended.stderr
    return results


def scenario_folder(results: Path) -> Path:
    (folder,) = (results / "mini" / "inference").glob("*/resnet50/Offline")
    return folder


def pack(results, out, *arguments):
    flags = [f"--inference={results}", f"--out={out}", "--org=acme", "--division=open"]
    return package.main([*flags, *arguments])


def official_complaints(out: Path) -> list[str]:
    command = [sys.executable, "-m", "submission_checker.main", "--version", "v6.1", "--input", out]
    done = subprocess.run(
        [*command, "--csv", out.with_suffix(".csv")],
        cwd=Path(REPOSITORY) / "tools" / "submission",
        capture_output=True,
        text=True,
    )
    return [line for line in (done.stdout + done.stderr).splitlines() if " ERROR]" in line]


def test_a_short_run_draws_the_complaint_on_its_duration_alone(results, tmp_path, capsys):
    out = tmp_path / "out"
    assert pack(results, out) == 1
    (finding,) = judge_tree(out).findings
    assert (finding.rule, finding.severity) == ("duration", "error")
    manifest = json.loads((out / "package.json").read_text())
    (missing,) = manifest["missing"]
    assert "effective_min_duration_ms is 500" in missing["what"]
    assert "duration" in (out / "INCOMPLETE.md").read_text()
    if REPOSITORY:
        told = official_complaints(out)
        assert [line for line in told if "Test duration less than 600s" in line]
        rest = [line for line in told if "duration" not in line and "Checks failed" not in line]
        assert [line for line in rest if "NoResults" not in line and "SUMMARY" not in line] == []


def test_what_the_tree_holds(results, tmp_path, capsys):
    out = tmp_path / "out"
    pack(results, out)
    runs = scenario_folder(results)
    system = runs.parents[1].name
    folder = out / "open" / "acme" / "results" / system / "resnet50" / "Offline"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    logs = ("mlperf_log_detail.txt", "mlperf_log_summary.txt")
    assert names == {
        "measurements.json",
        "user.conf",
        "README.md",
        *(f"performance/run_1/{name}" for name in logs),
        *(f"accuracy/{name}" for name in (*logs, "accuracy.txt", "mlperf_log_accuracy.json")),
    }
    for name in names:
        if name.endswith(logs):
            assert (folder / name).read_bytes() == (runs / name).read_bytes()
    whole = (runs / "accuracy" / "mlperf_log_accuracy.json").read_bytes()
    cut = (folder / "accuracy" / "mlperf_log_accuracy.json").read_bytes()
    assert cut == whole[:4096] + b"\n\n...\n\n" + whole[-4096:] and len(cut) <= 10_240
    record = json.loads((runs / "accuracy" / "result.json").read_text())
    accuracy, digest = (folder / "accuracy" / "accuracy.txt").read_text().splitlines()
    assert digest == f"hash={hashlib.sha256(whole).hexdigest()}"
    assert accuracy.startswith(f"accuracy={100 * record['quality']:.3f}%") and "total=50000" in accuracy
    told = json.loads((folder / "measurements.json").read_text())
    assert told["weight_data_types"] == "fp32" and told["weight_transformations"] == "none"
    assert told["input_data_types"] == "uint8" and told["starting_weights_filename"].endswith("step 20")
    assert "*.Offline.min_duration = 500" in (folder / "user.conf").read_text()
    assert "--scenario=Offline" in (folder / "README.md").read_text()
    described = json.loads((out / "open" / "acme" / "systems" / f"{system}.json").read_text())
    assert (described["division"], described["submitter"], described["status"]) == ("open", "acme", "rdi")
    assert (out / "open" / "acme" / "src" / "loadgen_py" / "run.py").is_file()


def test_compliance_runs_are_made_under_their_own_settings(results):
    folder = scenario_folder(results)
    reference = read_loadgen_run(folder / "performance" / "run_1")
    for test in ("TEST01", "TEST04"):
        run = read_loadgen_run(folder / test / "performance" / "run_1")
        assert compliance.audited(test, run.values) == ""
        assert compliance.audited(test, reference.values)
        same = ("effective_scenario", "effective_min_duration_ms", "effective_sample_index_rng_seed")
        assert all(run.value(key) == reference.value(key) for key in same)
        verdict = compliance.verify_performance(test, reference.values, run.values)
        assert (folder / test / "verify_performance.txt").read_text() == verdict.text
    sampled = read_answers(folder / "TEST01" / "accuracy" / "mlperf_log_accuracy.json")
    whole = read_answers(folder / "accuracy" / "mlperf_log_accuracy.json")
    verdict = compliance.verify_accuracy(whole, sampled)
    assert sampled.count > 0 and verdict.passed
    assert (folder / "TEST01" / "verify_accuracy.txt").read_text() == verdict.text
    assert not (folder / "TEST01" / "performance" / "run_1" / "mlperf_log_accuracy.json").exists()


@pytest.mark.skipif(
    not REPOSITORY, reason="MLPERF_INFERENCE_REPOSITORY names no checkout of mlcommons/inference"
)
def test_the_official_verifiers_say_the_same(results):
    folder, scripts = scenario_folder(results), Path(REPOSITORY) / "compliance"

    def verdict(script, one, other):
        done = subprocess.run(
            [sys.executable, scripts / script, "-r", one, "-t", other], capture_output=True, text=True
        )
        return "TEST PASS" in done.stdout

    def ours(path):
        return compliance.PASS in (folder / path).read_text()

    logs = "performance/run_1/mlperf_log_"
    for test, kind in (("TEST01", "detail.txt"), ("TEST04", "summary.txt")):
        told = verdict(
            f"{test}/verify_performance.py", folder / f"{logs}{kind}", folder / test / f"{logs}{kind}"
        )
        assert told == ours(f"{test}/verify_performance.txt")
    log = "accuracy/mlperf_log_accuracy.json"
    assert verdict("TEST01/verify_accuracy.py", folder / log, folder / "TEST01" / log)
    assert ours("TEST01/verify_accuracy.txt")


def test_closed_packs_the_tests_and_says_what_is_missing(results, tmp_path, capsys):
    """Runs of the closed preset lie beside mini; here the mini ones are moved there."""
    closed = tmp_path / "results"
    shutil.copytree(results, closed)
    shutil.move(closed / "mini" / "inference", closed / "inference")
    out = tmp_path / "out"
    assert pack(closed, out, "--division=closed") == 1
    told = capsys.readouterr().out
    (folder,) = (out / "closed" / "acme" / "results").glob("*/resnet50/Offline")
    for test in ("TEST01", "TEST04"):
        assert (folder / test / "verify_performance.txt").is_file()
        assert (folder / test / "performance" / "run_1" / "mlperf_log_detail.txt").is_file()
    assert "scenarios are missing: SingleStream, MultiStream" in told
    assert (folder / "TEST01" / "accuracy" / "mlperf_log_accuracy.json").stat().st_size <= 10_240
    shutil.rmtree(closed / "inference")
    assert pack(closed, tmp_path / "again", "--division=closed") == 2
    assert "holds no inference runs" in capsys.readouterr().err


def test_what_the_runs_do_not_say_is_asked_of_people(results, tmp_path, capsys):
    changed = tmp_path / "results"
    shutil.copytree(results, changed)
    folder = scenario_folder(changed)
    record = json.loads((folder / "performance" / "run_1" / "result.json").read_text())
    del record["inputs"], record["command"]
    (folder / "performance" / "run_1" / "result.json").write_text(json.dumps(record))
    (folder / "accuracy" / "mlperf_log_detail.txt").unlink()
    assert pack(changed, tmp_path / "one") == 1
    told = capsys.readouterr().out
    for words in ("measurements.json: input_data_types", "README.md", "accuracy/mlperf_log_detail.txt"):
        assert words in told
    (folder.parent / "measurements.json").write_text('{"input_data_types": "uint8", "retraining": "no"}')
    assert pack(changed, tmp_path / "two") == 1
    (path,) = (tmp_path / "two" / "open").rglob("measurements.json")
    told = json.loads(path.read_text())
    assert told["input_data_types"] == "uint8"
    assert told["retraining"].startswith("yes")  # what a run says, nobody says otherwise


def test_other_answers_are_judged_by_how_good_they_are(results, tmp_path):
    """As with a model that answers otherwise in another batch."""
    folder = tmp_path / "Offline"
    shutil.copytree(scenario_folder(results), folder)
    log = folder / "TEST01" / "accuracy" / "mlperf_log_accuracy.json"
    entries = json.loads(log.read_text())
    entries[0]["data"] = "FF000000" if entries[0]["data"] != "FF000000" else "00000000"
    shutil.move(log, folder / "TEST01" / "performance" / "run_1" / log.name)
    (folder / "TEST01" / "performance" / "run_1" / log.name).write_text(json.dumps(entries))
    verdicts = tests.verify(folder, "TEST01", read_loadgen_run(folder / "performance" / "run_1"))
    assert not verdicts["accuracy"].passed

    class Session:
        root, numbers = tmp_path, {"loadgen_model": "resnet50"}
        goals = (Goal("quality", 0.7, metric="top-1 accuracy"),)

        class workload:
            @staticmethod
            def answered_figures(indices, answers):
                assert len(indices) == len(answers)
                return {"quality": 0.5 + 0.0001 * answers.count(b"\xff\0\0\0")}

    assert tests.judge_answers(Session, folder).passed
    said = [(log.parent / name).read_text() for name in compliance.OTHERWISE]
    assert said[0].startswith("accuracy=50.000%") and said[0] != said[1]


def test_a_run_that_is_not_valid_cannot_be_tested(results, tmp_path):
    changed = tmp_path / "results"
    shutil.copytree(results, changed)
    folder = scenario_folder(changed)
    path = folder / "performance" / "run_1" / "mlperf_log_detail.txt"
    path.write_text(path.read_text().replace('"value": "VALID"', '"value": "INVALID"'))

    class Session:
        root, numbers = folder.parent, {"loadgen_model": "resnet50"}
        name_of = staticmethod(lambda scenario: scenario.name)

    with pytest.raises(UserError, match="not VALID"):
        list(tests.run_tests(Session, TestScenario.Offline))
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no performance and accuracy run"):
        list(tests.run_tests(Session, TestScenario.Offline))
