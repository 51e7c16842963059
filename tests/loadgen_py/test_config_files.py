"""Config files set the fields that the official package sets, whatever they hold."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import systems

import loadgen_py as lg
from loadgen_py import conf
from loadgen_py.official_defaults import DEFAULTS

FIELDS = [
    field.name
    for field in dataclasses.fields(lg.TestSettings)
    if not field.name.startswith(
        ("sut_", "offline_warmup", "offline_enforce", "server_find_peak_early", "server_find_peak_rel")
    )
]
SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
KEYS = (
    "mode", "qsl_rng_seed", "use_token_latencies", "ttft_latency", "tpot_latency", "infer_token_latencies",
    "token_latency_scaling_factor", "target_latency_percentile", "samples_per_query", "target_latency",
    "performance_issue_unique", "performance_issue_same", "performance_issue_same_index",
    "sample_concatenate_permutation", "coalesce_queries", "max_async_queries", "min_duration", "max_duration",
    "min_query_count", "max_query_count", "performance_sample_count_override", "target_qps",
    "accuracy_sample_count_override", "print_timestamps", "accuracy_log_rng_seed", "nonsense",
    "accuracy_log_sampling_target",
)  # fmt: skip
VALUES = (
    "0", "1", "2", "3", "7", "90", "99.9", "0x10", "010", "1e3", "2.5", "600000", "0.5",
    "18446744073709551615",
)  # fmt: skip
ODD_LINES = (
    "# a comment", "#comment", "*.*.min_duration=5", "*.*.min_duration 5", "*.*.min_duration = abc",
    "*.*.min_query_count = 5 # inline", "*.*.min_query_count = 5 6", "*.*.min_query_count = 5 x", "alone",
    "*.*.min_query_count =", "*.*.target_qps = inf", "*.*.target_qps = 0x1p3", "*.*.mode = 9", "", "a # b",
    "*.*.max_duration = +5",
)  # fmt: skip

_OFFICIAL = """
import json, sys
import mlperf_loadgen as lg
for path, model, scenario, conf_type in json.load(open(sys.argv[1])):
    settings = lg.TestSettings()
    status = settings.FromConfig(path, model, scenario, conf_type)
    fields = {name: getattr(settings, name) for name in sys.argv[2:]}
    fields["scenario"], fields["mode"] = int(fields["scenario"]), int(fields["mode"])
    print(json.dumps([status, fields]), flush=True)
"""


def _official(calls: list, folder) -> list:
    pytest.importorskip("mlperf_loadgen", reason="the official package is the judge")
    (folder / "calls.json").write_text(json.dumps(calls))
    command = [sys.executable, "-c", _OFFICIAL, str(folder / "calls.json"), *FIELDS]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("[")]


def _ours(path, model, scenario, conf_type) -> list:
    settings = lg.TestSettings()
    status = settings.FromConfig(path, model, scenario, conf_type)
    fields = {name: getattr(settings, name) for name in FIELDS}
    fields["scenario"], fields["mode"] = int(fields["scenario"]), int(fields["mode"])
    return [status, fields]


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    """As if no file had been read in this process."""
    monkeypatch.setattr(conf, "_user_files_read", 0)
    conf.take_pending_errors(), conf.take_pending_warnings()
    yield
    conf.take_pending_errors(), conf.take_pending_warnings()


def test_the_built_in_defaults_of_every_benchmark(tmp_path):
    models = [*DEFAULTS, "resnet50-custom"]
    calls = [("", model, scenario, conf.BUILT_IN) for model in models for scenario in SCENARIOS]
    assert [_ours(*call) for call in calls] == _official(calls, tmp_path)


def _draw_file(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randrange(1, 12)):
        if rng.random() < 0.04:
            lines.append(rng.choice(ODD_LINES))
        else:
            model, scenario = rng.choice(("resnet50", "*", "bert")), rng.choice((*SCENARIOS, "*"))
            lines.append(f"{model}.{scenario}.{rng.choice(KEYS)} = {rng.choice(VALUES)}")
    return "\n".join(lines)


def test_random_files(tmp_path):
    rng = random.Random(4)
    calls = []
    for number in range(400):
        path = tmp_path / f"{number}.conf"
        path.write_text(_draw_file(rng))
        calls.append((str(path), "resnet50", rng.choice(SCENARIOS), conf.AUDIT))
    expected = _official(calls, tmp_path)
    assert {status for status, _ in expected} == {0, -22}
    for call, theirs in zip(calls, expected, strict=True):
        assert _ours(*call) == theirs, Path(call[0]).read_text()


@pytest.mark.parametrize("line", ODD_LINES)
def test_odd_lines(line, tmp_path):
    path = tmp_path / "user.conf"
    path.write_text(f"*.*.min_query_count = 3\n{line}\n")
    call = (str(path), "resnet50", "Server", conf.AUDIT)
    assert [_ours(*call)] == _official([call], tmp_path)


def test_the_first_user_file_comes_after_the_defaults(tmp_path):
    path = tmp_path / "user.conf"
    path.write_text("resnet50.Server.target_qps = 321\n*.Server.min_duration = 5\n*.*.qsl_rng_seed = 1\n")
    calls = [(str(path), "resnet50", "Server", conf.USER)] * 2 + [("no.conf", "bert", "Offline", conf.USER)]
    theirs = _official(calls, tmp_path)
    assert [_ours(*call) for call in calls] == theirs
    assert theirs[0][1]["server_target_latency_ns"] == 15_000_000
    assert theirs[0][1]["qsl_rng_seed"] == 2085463073848966840  # the user's is not read
    assert [status for status, _ in theirs] == [0, 0, -2]


def test_errors_in_files_reach_the_log_of_the_next_run(tmp_path):
    for _ in range(2):
        lg.TestSettings().FromConfig(str(tmp_path / "missing.conf"), "resnet50", "Server")
    lg.run(
        systems.System(systems.echo), systems.Library(), systems.settings("Offline"), systems.log_to(tmp_path)
    )
    found = " ".join(systems.errors(tmp_path))
    assert "can't open file" in found
    assert "Multiple conf files are used" in found


def test_an_audit_file_overrides_the_settings(tmp_path):
    audit = tmp_path / "audit.config"
    audit.write_text("*.Server.min_query_count = 7\n*.*.performance_issue_same = 1\n*.*.mode = 2\n")
    lg.run(
        systems.System(systems.echo),
        systems.Library(),
        systems.settings("Server", "AccuracyOnly", min_duration_ms=0),
        systems.log_to(tmp_path),
        audit_config=audit,
    )
    assert systems.values(tmp_path, "effective_test_mode") == ["PerformanceOnly"]
    assert systems.values(tmp_path, "effective_min_query_count") == [7]
    assert systems.values(tmp_path, "effective_performance_issue_same") == [True]
    assert systems.values(tmp_path, "result_query_count") == [7]
    assert any("audit.config" in text for text in systems.values(tmp_path, "warning_generic_message"))


def test_test05_takes_its_own_seeds(tmp_path):
    seeds = dict(test05_qsl_rng_seed=5, test05_sample_index_rng_seed=6, test05_schedule_rng_seed=7)
    settings = systems.settings("Offline", "AccuracyOnly", test05=True, **seeds)
    lg.run(systems.System(systems.echo), systems.Library(), settings, systems.log_to(tmp_path))
    assert systems.values(tmp_path, "effective_test_mode") == ["PerformanceOnly"]
    names = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")
    assert [systems.values(tmp_path, f"effective_{name}")[0] for name in names] == [5, 6, 7]


SILENT = {
    "*.*.min_duraton = 5": "sets nothing",
    "*.Sever.target_qps = 5": "sets nothing",
    "*.SingleStream.target_qps = 5": "sets nothing",
    "*.*.server_target_qps = 5": "sets nothing",
    "min_duration = 5": "sets nothing",
    "Server.target_qps = 5": "sets nothing",
    "*.*.qsl_rng_seed = 5": "sets nothing",
    "*.*.min_duration=5": "line 2 sets nothing",
    "*.*.min_duration =": "line 2 sets nothing",
    "alone": "line 2 sets nothing",
    "*.*.accuracy_log_sampling_target = 1e3": "accuracy_log_sampling_target = 1e3 is read as 1",
    "*.*.accuracy_log_sampling_target = 2.5": "accuracy_log_sampling_target = 2.5 is read as 2",
    "*.*.accuracy_log_sampling_target = 010": "accuracy_log_sampling_target = 010 is read as 8",
    "*.*.max_duration = -5": "max_duration = -5 is read as 18446744073709551611",
}
HEARD = (
    "# a comment", "#comment", "*.*.min_duration = 5", "bert.*.max_duration = 5", "bert.Offline.target_qps = 5.5",
    "llama3.1-8b.Server.tpot_latency = 7", "*.Server.target_latency_percentile = 99.9", "*.*.samples_per_query = 5",
    "*.MultiStream.samples_per_query = 5", "*.*.token_latency_scaling_factor = 5", "*.Server.coalesce_queries = 1",
)  # fmt: skip


@pytest.mark.parametrize("line", SILENT)
@pytest.mark.parametrize("conf_type", [conf.USER, conf.AUDIT])
def test_a_line_that_sets_nothing_is_a_warning_and_no_more(line, conf_type, tmp_path, capfd):
    path = tmp_path / "user.conf"
    path.write_text(f"*.Offline.min_query_count = 20\n{line}\n")
    settings = systems.settings("Offline", min_duration_ms=0)
    assert settings.FromConfig(str(path), "resnet50", "Offline", conf_type) == 0
    settings.min_duration_ms, settings.max_duration_ms = 0, 0
    result = lg.run(systems.System(systems.echo), systems.Library(), settings, systems.log_to(tmp_path))
    warnings = systems.values(tmp_path, "warning_generic_message")
    assert len([text for text in warnings if SILENT[line] in text]) == 1, warnings
    assert SILENT[line] in capfd.readouterr().err
    assert result.valid and not result.errors and not systems.errors(tmp_path)


def test_a_scenario_that_is_none_is_a_warning(tmp_path):
    path = tmp_path / "user.conf"
    path.write_text("*.Offline.min_query_count = 20\n")
    assert lg.TestSettings().FromConfig(str(path), "resnet50", "offline", conf.AUDIT) == 0
    assert any("read for offline, which is no scenario" in text for text in conf.take_pending_warnings())


def test_lines_that_are_read_are_no_warnings(tmp_path):
    path = tmp_path / "user.conf"
    path.write_text("\n".join(HEARD))
    for scenario in SCENARIOS:
        for model in DEFAULTS:
            assert lg.TestSettings().FromConfig(str(path), model, scenario, conf.AUDIT) == 0
            lg.TestSettings().FromConfig("", model, scenario, conf.BUILT_IN)
    assert not conf.take_pending_warnings() and not conf.take_pending_errors()


BEFORE = {field.name: False for field in dataclasses.fields(lg.TestSettings)}


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("9" * 5000, 2**64 - 1), ("-" + "9" * 5000, 2**64 - 1), ("0x" + "f" * 5000, 2**64 - 1), ("0" * 5000 + "7", 7),
        ("0" + "7" * 5000, 2**64 - 1), ("18446744073709551615", 2**64 - 1), ("-1", 2**64 - 1), ("0x1F", 31), ("010", 8),
    ],
)  # fmt: skip
def test_integers_of_any_length(value, read, tmp_path, capsys):
    """As strtoull reads them: what has more than 64 bits is the largest."""
    (tmp_path / "user.conf").write_text(f"*.*.min_query_count = {value}\n")
    found, status = conf.read_fields(str(tmp_path / "user.conf"), "m", "Offline", conf.AUDIT, BEFORE)
    assert (status, found["min_query_count"]) == (0, read)
    assert len(capsys.readouterr().err) < 400
    conf.take_pending_warnings()


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("9" * 5000, math.inf),
        ("-" + "9" * 5000, -math.inf),
        ("0x1p99999", math.inf),
        ("0." + "1" * 5000, 1 / 9),
    ],
)
def test_decimals_of_any_length(value, read, tmp_path):
    (tmp_path / "user.conf").write_text(f"*.Offline.target_qps = {value}\n")
    found, status = conf.read_fields(str(tmp_path / "user.conf"), "m", "Offline", conf.AUDIT, BEFORE)
    assert status == 0 and found["offline_expected_qps"] == pytest.approx(read)
    conf.take_pending_warnings()
