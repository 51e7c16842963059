"""Planted defects of inference results are found, by line and rule.

With MLPERF_INFERENCE_REPOSITORY set to a checkout of mlcommons/inference its submission checker judges
the same trees.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlperf_jax.judging import compliance
from mlperf_jax.judging.accuracy_log import read_answers
from mlperf_jax.judging.tree import judge_tree
from mlperf_jax.rounds.inference_rules import MODELS
from tests.judging import planted_inference as planted

REPOSITORY = os.environ.get("MLPERF_INFERENCE_REPOSITORY")


def official_passes(root: Path) -> bool:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "submission_checker.main",
            "--input",
            root,
            "--version",
            "v6.1",
            "--csv",
            root / "s.csv",
        ],
        cwd=Path(REPOSITORY) / "tools" / "submission",
        capture_output=True,
        text=True,
    )
    return done.returncode == 0


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp("clean")
    planted.clean_submission(root)
    return root


def test_a_clean_submission_is_clean(clean):
    report = judge_tree(clean)
    assert report.findings == ()
    assert report.inference == 12
    if REPOSITORY:
        assert official_passes(clean)


def _fields(where, mode="PerformanceOnly", errors=(), **changed):
    def plant(model):
        folder = model / where
        planted.run(folder, planted.fields(Path(where).parts[0], mode, **changed), errors)

    return plant


def _write(where, text):
    return lambda model: planted.write(model / where, text)


def _remove(where):
    def plant(model):
        path = model / where
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return plant


def _system(**changed):
    def plant(model):
        path = model.parents[2] / "systems" / "acme-1.json"
        told = {**json.loads(path.read_text()), **changed}
        path.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))

    return plant


def _under_target(model):
    path = model / "Offline" / "accuracy" / "accuracy.txt"
    path.write_text(path.read_text().replace("76.456", "71.2"))


def _line_before(model):
    path = model / "Offline" / "performance" / "run_1" / "mlperf_log_detail.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:8], lines[-1], *lines[8:-1]]) + "\n")


RUN = "SingleStream/performance/run_1"
SERVER = {"effective_scenario": "Server"}
# name -> (what is done, rule, key at whose line it must be found, whether the official checker lets it pass)
PLANTS = {
    "INVALID": (_fields(RUN, result_validity="INVALID"), "invalid", "result_validity", True),
    "an error in the log": (
        _fields(RUN, errors=("ran out of queries",)),
        "loadgen-error",
        "error_runtime",
        True,
    ),
    "too short": (
        _fields(RUN, effective_min_duration_ms=10_000),
        "duration",
        "effective_min_duration_ms",
        False,
    ),
    "another seed": (_fields(RUN, effective_qsl_rng_seed=1), "seed", "effective_qsl_rng_seed", False),
    "early stopping": (_fields(RUN, early_stopping_met=False), "early-stopping", "early_stopping_met", False),
    "few in memory": (
        _fields(RUN, effective_performance_sample_count=8),
        "performance-samples",
        "effective_performance_sample_count",
        False,
    ),
    "a small offline query": (
        _fields("Offline/performance/run_1", effective_samples_per_query=1000),
        "offline-samples",
        "effective_samples_per_query",
        False,
    ),
    "another scenario": (_fields(RUN, **SERVER), "naming", "effective_scenario", False),
    "an accuracy run for performance": (
        _fields(RUN, result_validity="VALID", effective_test_mode="AccuracyOnly"),
        "naming",
        "effective_test_mode",
        True,
    ),
    "percentiles that fall": (
        _fields(RUN, **{"result_99.00_percentile_latency_ns": 1}),
        "time-backwards",
        "result_99.00_percentile_latency_ns",
        True,
    ),
    "time backwards": (_line_before, "time-backwards", None, True),
    "half of the data set": (
        _fields("Offline/accuracy", "AccuracyOnly", effective_accuracy_sample_count=25_000),
        "dataset",
        "effective_accuracy_sample_count",
        False,
    ),
    "under the target": (_under_target, "under-target", None, False),
    "no hash": (_write("Offline/accuracy/accuracy.txt", "accuracy=76.456%\n"), "accuracy-hash", None, False),
    "another model for accuracy": (
        _fields("Offline/accuracy", "AccuracyOnly", sut_name="other"),
        "runs-differ",
        "sut_name",
        True,
    ),
    "the whole accuracy log": (
        _write("Offline/accuracy/mlperf_log_accuracy.json", planted.accuracy_log()),
        "accuracy-log-size",
        None,
        False,
    ),
    "no accuracy log": (_remove("Offline/accuracy/mlperf_log_accuracy.json"), "missing-file", None, False),
    "no summary": (_remove(RUN + "/mlperf_log_summary.txt"), "missing-file", None, True),
    "a summary that says otherwise": (
        _write(RUN + "/mlperf_log_summary.txt", "Result is : INVALID\n"),
        "logs-differ",
        None,
        True,
    ),
    "no measurements": (_remove("Offline/measurements.json"), "missing-file", None, False),
    "measurements without an answer": (
        _write("Offline/measurements.json", '{"retraining": "no"}'),
        "measurements",
        None,
        False,
    ),
    "no user.conf": (_remove("Offline/user.conf"), "missing-file", None, False),
    "an empty README": (_write("Offline/README.md", ""), "missing-file", None, False),
    "no source": (lambda model: shutil.rmtree(model.parents[2] / "src"), "missing-file", None, False),
    "a scenario is missing": (_remove("MultiStream"), "scenarios", None, False),
    "a field of the system": (_system(cooling=None), "system-description", None, False),
    "an empty field": (_system(host_storage_type=""), "system-description", None, False),
    "no number": (_system(accelerators_per_node="a few"), "system-description", None, False),
    "another submitter": (_system(submitter="Other"), "naming", None, False),
    "another division": (_system(division="open"), "naming", None, False),
    "no such status": (_system(status="maybe"), "system-description", None, False),
    "no TEST04": (_remove("Offline/TEST04"), "compliance", None, False),
    "TEST01 failed": (_write("Offline/TEST01/verify_accuracy.txt", "TEST FAIL\n"), "compliance", None, False),
    "TEST04 made without its settings": (
        _fields("Offline/TEST04/performance/run_1"),
        "compliance",
        "effective_test_mode",
        True,
    ),
    "TEST04 answers from a cache": (
        _fields(
            "Offline/TEST04/performance/run_1",
            result_samples_per_second=9000.0,
            **{f"effective_{k}": v for k, v in planted.TEST04.items()},
        ),
        "compliance",
        None,
        True,
    ),
}


def test_one_time_that_is_far_ahead_is_one_finding(tmp_path, clean):
    shutil.copytree(clean, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "closed/Acme/results/acme-1/resnet50/Offline/performance/run_1/mlperf_log_detail.txt"
    lines = log.read_text().splitlines()
    lines[3] = re.sub(r'"time_ms": [\d.]+', f'"time_ms": {2**64 / 1e6}', lines[3])
    log.write_text("\n".join(lines) + "\n")
    (found,) = [f for f in judge_tree(tmp_path).findings if f.rule == "time-backwards"]
    assert (found.path, found.line) == (log, 4)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_defect_is_found(tmp_path, clean, name):
    plant, rule, key, passes_officially = PLANTS[name]
    shutil.copytree(clean, tmp_path, dirs_exist_ok=True)
    plant(tmp_path / "closed" / "Acme" / "results" / "acme-1" / "resnet50")
    report = judge_tree(tmp_path)
    found = [f for f in report.findings if f.rule == rule and f.severity == "error"]
    assert found, report.findings
    assert {f.severity for f in report.findings if f.rule == rule} == {"error"}
    if key:
        lines = [f.path.read_text().splitlines()[f.line - 1] for f in found if f.line]
        assert any(f'"key": "{key}"' in line for line in lines)
    if REPOSITORY:
        assert official_passes(tmp_path) == passes_officially


@pytest.mark.parametrize(("percent", "passes"), [(76.0, True), (74.0, False)])
def test_other_answers_in_test01_must_be_as_good(tmp_path, clean, percent, passes):
    shutil.copytree(clean, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "closed" / "Acme" / "results" / "acme-1" / "resnet50" / "Offline" / "TEST01"
    planted.write(folder / "verify_accuracy.txt", "TEST FAIL\n")
    planted.write(folder / "accuracy" / "accuracy.txt", "hash=" + "0" * 64 + "\n")
    planted.write(folder / "accuracy" / "baseline_accuracy.txt", "accuracy=76.400%, good=764, total=1000\n")
    planted.write(folder / "accuracy" / "compliance_accuracy.txt", f"accuracy={percent:.3f}%, total=1000\n")
    assert [f.rule for f in judge_tree(tmp_path).findings] == ([] if passes else ["compliance"])
    if REPOSITORY:
        assert official_passes(tmp_path) == passes


def _as_model(root, clean, name, text, scenario="Offline", **told):
    """The clean submission with one scenario under another benchmark's name, and what accuracy.txt says of it."""
    shutil.copytree(clean, root, dirs_exist_ok=True)
    model = root / "closed" / "Acme" / "results" / "acme-1" / "resnet50"
    for other in ("SingleStream", "MultiStream"):
        shutil.rmtree(model / other)
    model = model.rename(model.with_name(name))
    folder = (model / "Offline").rename(model / scenario)
    planted.write(folder / "accuracy" / "accuracy.txt", f"{text}\nhash={'0' * 64}\n")
    run = folder / "performance" / "run_1"
    real = {"Interactive": "Server"}.get(scenario, scenario)
    planted.run(run, planted.fields(real, "PerformanceOnly", **told))
    report = judge_tree(root)
    kinds = ("under-target", "over-limit", "accuracy", "sources-differ", "latency-bound")
    return [(f.rule, f.severity, f.text) for f in report.findings if f.rule in kinds]


# How the references print what the official checker's patterns look for.
STATED = {
    "accuracy": "accuracy={:.9f}%",
    "f1": '{{"exact_match": 80.0, "f1": {:.9f}}}',
    "mean": "Accuracy: mean = {:.9f}, kidney = 0.9347, tumor = 0.7887",
    "mAP": "mAP={:.9f}%",
    "AUC": "AUC={:.9f}%",
    "lifetime_ne/rating": "metric/lifetime_ne/rating: {:.9f}",
    "lifetime_gauc/rating": "metric/lifetime_gauc/rating: {:.9f}",
    "lifetime_accuracy/rating": "metric/lifetime_accuracy/rating: {:.9f}",
}


def _stated(figures):
    return "\n".join(
        STATED.get(name, f"{{{{'{name}': {{:.9f}}}}}}").format(value) for name, value in figures.items()
    )


def _inside(limit):
    return limit.least * 1.001 if limit.most == math.inf else limit.most * 0.999


@pytest.mark.parametrize(
    "name", [name for name, model in MODELS.items() if model.last == "v6.1" and "interactive" not in name]
)
def test_every_accuracy_of_a_model_is_judged_on_both_sides(tmp_path, clean, name):
    limits = MODELS[name].limits
    good = {limit.name: _inside(limit) for limit in limits}
    found = _as_model(tmp_path / "good", clean, name, _stated(good))
    assert [f for f in found if f[1] == "error"] == []
    for i, limit in enumerate(limits):
        for rule, bound, outwards in (
            ("under-target", limit.least, 0.9999),
            ("over-limit", limit.most, 1.0001),
        ):
            if math.isfinite(bound):
                bad = good | {limit.name: bound * outwards}
                found = _as_model(tmp_path / f"{i}{rule}", clean, name, _stated(bad))
                assert [f[0] for f in found if f[1] == "error"] == [rule], found
        missing = {key: value for key, value in good.items() if key != limit.name}
        found = _as_model(tmp_path / f"{i}missing", clean, name, _stated(missing))
        severity = "error" if limit.stated else "warning"
        assert ("accuracy", severity, f"{limit.name} is not stated.") in found


def test_a_fid_of_90_fails(tmp_path, clean):
    text = "Accuracy Results: {{'FID_SCORE': '{}', 'CLIP_SCORE': '31.75'}}"
    assert _as_model(tmp_path / "good", clean, "stable-diffusion-xl", text.format("23.5")) == []
    found = _as_model(tmp_path / "bad", clean, "stable-diffusion-xl", text.format("90.0"))
    assert found == [("over-limit", "error", "FID_SCORE is 90, over the limit 23.9501.")]


def test_a_bad_figure_behind_a_good_one_is_seen(tmp_path, clean):
    found = _as_model(tmp_path, clean, "rgat", "accuracy=0.73%\naccuracy=0.70%")
    assert [f[0] for f in found] == ["under-target"]


def test_where_official_sources_part_both_are_told(tmp_path, clean):
    told = "{{'exact_match': {}}} {{'tokens_per_sample': 3900.0}}"
    rules = []
    for i, figure in enumerate((80.0, 80.8, 81.5)):
        found = _as_model(tmp_path / str(i), clean, "deepseek-r1", told.format(figure))
        rules.append([f[:2] for f in found])
        for _, _, text in found:
            assert "submission checker" in text and "at least 81.0941 (inference_rules.adoc)" in text
    assert rules == [[("under-target", "error")], [("sources-differ", "warning")], []]


@pytest.mark.parametrize(
    ("each_ms", "rules"),
    [(14, []), (17, ["latency-limit", "sources-differ"]), (21, ["latency-limit"])],
)
def test_tokens_may_take_so_long(tmp_path, clean, each_ms, rules):
    latencies = {
        "result_first_token_99.00_percentile_latency_ns": 1_900_000_000,
        "result_time_per_output_token_99.00_percentile_ns": each_ms * 1_000_000,
    }
    text = "{'exact_match': 83.0}, {'tokens_per_sample': 1000.0}"
    found = _as_model(tmp_path, clean, "gpt-oss-120b", text, "Interactive", **latencies)
    assert [f[0] for f in found] == [{"latency-limit": "over-limit"}.get(rule, rule) for rule in rules]
    for _, _, text in found:
        assert "inference_rules.adoc" in text


def test_what_open_may_do(tmp_path):
    """Open needs no target, no compliance tests and not every scenario; but VALID runs."""
    model = planted.clean_submission(tmp_path, "open")
    _under_target(model)
    for where in ("MultiStream", "Offline/TEST01", "Offline/TEST04"):
        _remove(where)(model)
    assert judge_tree(tmp_path).findings == ()
    if REPOSITORY:
        assert official_passes(tmp_path)
    _fields(RUN, result_validity="INVALID")(model)
    assert judge_tree(tmp_path).errors


def test_a_network_of_links_is_not_followed(tmp_path, clean):
    planted.clean_submission(tmp_path)
    (tmp_path / "closed" / "Acme" / "results" / "other").symlink_to(clean)
    assert judge_tree(tmp_path).inference == 12


def test_runs_at_home(tmp_path):
    planted.own_results(tmp_path)
    assert judge_tree(tmp_path).findings == ()


@pytest.mark.parametrize(
    ("samples", "words", "line"),
    [
        ([i for i in range(100) if i != 17], "lost: 17", None),
        ([*range(100), 30], "more than once: 30", 102),
        ([*range(99), 120], "the data set has not: 120", None),
    ],
)
def test_samples_lost_and_counted_twice(tmp_path, samples, words, line):
    folder = planted.own_results(tmp_path, samples)
    found = [f for f in judge_tree(tmp_path).findings if words in f.text]
    assert [(f.rule, f.line, f.path) for f in found] == [
        ("samples", line, folder / "accuracy" / "mlperf_log_accuracy.json")
    ]


@pytest.mark.parametrize(
    ("quality", "target", "direction", "texts"),
    [
        (0.95, 0.05, {"wer": "error"}, ["top-1 accuracy is 0.95, over the target 0.05."]),
        (0.04, 0.05, {"wer": "error"}, []),
        (0.95, 0.05, {"quality": "higher"}, []),
        ({"e": 0.04, "l": 0.7}, {"e": 0.05, "l": 0.8}, {"e": "error", "l": "loss"}, []),
        (
            {"e": 0.04, "l": 0.9},
            {"e": 0.05, "l": 0.8},
            {"e": "error", "l": "loss"},
            ["l is 0.9, over the target 0.8."],
        ),
        ({"e": 0.04}, {"e": 0.05, "l": 0.8}, {"e": "error", "l": "loss"}, ["l is nan, over the target 0.8."]),
    ],
)
def test_figures_of_ours_that_fall_and_several(tmp_path, quality, target, direction, texts):
    planted.own_results(tmp_path, quality=quality, quality_target=target, direction=direction)
    found = [f for f in judge_tree(tmp_path).findings if f.rule == "under-target"]
    assert [f.text for f in found] == texts


def test_what_our_runs_say_of_themselves(tmp_path):
    folder = planted.own_results(tmp_path, quality=0.5, model="run_7", accuracy_log_sha256="0" * 64)
    assert {f.rule for f in judge_tree(tmp_path).findings} == {"under-target", "runs-differ", "accuracy-hash"}
    planted.write(folder / "accuracy" / "mlperf_log_accuracy.json", '[{"seq_id": ' + "[" * 50_000)
    assert "damaged-log" in {f.rule for f in judge_tree(tmp_path).findings}


def _told(place, **changed):
    path = place / "result.json"
    record = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def _trained(root, samples=range(100), **changed):
    """Runs at home of a model that training left with a quality of 0.9."""
    folder = planted.own_results(root, samples, direction={"quality": "higher"}, quality_target=0.99 * 0.9)
    for place in ("performance/run_1", "accuracy"):
        _told(folder / place, trained_quality=0.9)
    _told(folder / "accuracy", **changed)
    return folder


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, []),
        ({"quality": 0.91}, []),
        ({"quality": 0.95}, [("quality", "error")]),
        ({"quality": 0.95, "trained_quality": 0.95}, [("runs-differ", "error"), ("target", "warning")]),
        ({"quality": 0.95, "model": "resnet.pth in weights"}, [("runs-differ", "error")]),
        ({"quality": 0.7, "quality_target": 0.69}, [("target", "warning")]),
        ({"quality": None}, [("missing-key", "error")]),
        ({"quality_target": None}, [("missing-key", "error")]),
        ({"accuracy_log_sha256": None}, [("missing-key", "error")]),
    ],
)
def test_the_quality_of_ours_against_what_was_trained(tmp_path, changed, found):
    _trained(tmp_path, **changed)
    assert sorted((f.rule, f.severity) for f in judge_tree(tmp_path).findings) == found


def test_a_loss_of_ours_may_rise_and_not_fall_below_what_was_trained(tmp_path):
    folder = _trained(tmp_path, quality=2.5, quality_target=2.6, direction={"quality": "loss"})
    for place in ("performance/run_1", "accuracy"):
        _told(folder / place, trained_quality=2.58)
    assert [f.rule for f in judge_tree(tmp_path).findings] == []
    _told(folder / "accuracy", quality=0.5)
    assert [f.rule for f in judge_tree(tmp_path).findings] == ["quality"]


def test_one_model_is_as_good_in_every_scenario(tmp_path):
    folder = _trained(tmp_path, model="resnet.pth in weights")
    _told(folder / "performance" / "run_1", model="resnet.pth in weights")
    other = folder.with_name("Server")
    shutil.copytree(folder / "accuracy", other / "accuracy")
    planted.run(
        other / "accuracy",
        planted.fields(
            "Server", "AccuracyOnly", qsl_reported_total_count=100, effective_accuracy_sample_count=100
        ),
    )
    assert judge_tree(tmp_path).findings == ()
    _told(other / "accuracy", quality=0.95)
    found = judge_tree(tmp_path).findings
    assert [(f.rule, f.path.parents[1].name) for f in found] == [("quality", "Server")]
    assert "top-1 accuracy is 0.95, and 0.9 of the same model's answers" in found[0].text


def _answers(tmp_path, name, text):
    planted.write(tmp_path / name, text)
    return read_answers(tmp_path / name)


def _verify(script, *arguments) -> str:
    """What an official verifier prints."""
    path = Path(REPOSITORY) / "compliance" / script
    done = subprocess.run([sys.executable, path, *map(str, arguments)], capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("answer", "samples", "passes"),
    [
        (lambda i: f"{i % 256:02x}000000", range(0, 300, 7), True),
        (lambda i: f"{i % 256:02x}000000" if i != 14 else "ff000000", range(0, 300, 7), False),
        (lambda i: f"{i % 256:02x}000000", range(300, 400), False),
    ],
)
def test_the_accuracy_of_test01(tmp_path, answer, samples, passes):
    whole = planted.accuracy_log(range(300), lambda i: f"{i % 256:02x}000000")
    reference = _answers(tmp_path, "whole.json", whole)
    sampled = _answers(tmp_path, "sampled.json", planted.accuracy_log(samples, answer))
    verdict = compliance.verify_accuracy(reference, sampled)
    assert verdict.passed == passes
    assert (compliance.PASS in verdict.lines) == passes
    if REPOSITORY:
        told = _verify(
            "TEST01/verify_accuracy.py", "-r", tmp_path / "whole.json", "-t", tmp_path / "sampled.json"
        )
        assert ("TEST PASS" in told) == passes


@pytest.mark.parametrize("test", ["TEST01", "TEST04"])
@pytest.mark.parametrize("scenario", planted.SCORES)
@pytest.mark.parametrize("share", [0.79, 0.82, 0.92, 1.0, 1.08, 1.12, 1.21])
def test_the_performance_of_a_test(tmp_path, test, scenario, share):
    name, score = planted.SCORES[scenario]
    reference = planted.fields(scenario, "PerformanceOnly")
    tested = planted.fields(scenario, "PerformanceOnly", **{name: score * share})
    verdict = compliance.verify_performance(test, reference, tested)
    streams = scenario in ("SingleStream", "MultiStream")
    if test == "TEST01":  # noqa: SIM108
        expected = 0.9 <= share <= 1.1
    else:  # streams are scored by 1e9 / latency, with 20 % to spare
        expected = 1 / share < 1.2 if streams else share < 1.1
    assert verdict.passed == expected
    if REPOSITORY:
        planted.run(tmp_path / "r", reference)
        planted.run(tmp_path / "t", tested)
        kind = "detail" if test == "TEST01" else "summary"
        logs = [tmp_path / place / f"mlperf_log_{kind}.txt" for place in ("r", "t")]
        told = _verify(f"{test}/verify_performance.py", "-r", logs[0], "-t", logs[1])
        assert ("TEST PASS" in told) == expected, told
