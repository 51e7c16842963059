"""Logs of every format, and logs that are no logs."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlperf_jax.errors import UserError
from mlperf_jax.reporting.timing import split_time
from mlperf_jax.rounds import training_rules
from mlperf_jax.rounds.reference_points import epochs_to_converge
from mlperf_jax.rounds.training_logs import read_run
from tests.reporting import result_trees as trees


@pytest.mark.parametrize(
    ("text", "form", "minutes"),
    [
        (trees.v05_run(134.5), "MLPv0.5.0", 134.5),
        (trees.mll_run(70.25), "MLL", 70.25),
        (trees.mllog_run(30.0), "MLLOG", 30.0),
        (trees.mllog_run(30.0).replace("\n", "\r\n"), "MLLOG", 30.0),
        ("".join(f" 0: {line}\n" for line in trees.mllog_run(30.0).splitlines()), "MLLOG", 30.0),
    ],
)
def test_every_format_is_read(tmp_path, text, form, minutes):
    log = read_run(trees.write(tmp_path / "result_0.txt", text))
    assert (log.format, log.converged, log.damaged) == (form, True, 0)
    assert log.minutes == pytest.approx(minutes, abs=1e-6)


def test_packed_logs_are_read(tmp_path):
    path = tmp_path / "result_0.txt.gz"
    path.write_bytes(gzip.compress(trees.mllog_run(30.0).encode()))
    assert read_run(path).minutes == 30.0
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        read_run(path)


def test_an_old_time_key_in_seconds_is_known(tmp_path):
    text = '{"value": null, "metadata": {}, "key": "run_start", "time_s": 1593355991.612 }'
    stop = '{"value": null, "metadata": {"status": "success"}, "key": "run_stop", "time_s": 1593356228.379 }'
    log = read_run(trees.write(tmp_path / "result_1.txt", f":::MLLOG {text}\n:::MLLOG {stop}\n"))
    assert log.minutes == pytest.approx((228.379 + 8.388 - 0) / 60, abs=1e-3)


@pytest.mark.parametrize(
    ("said", "converged"), [('"true"', True), ("true", True), ("false", False), ('"false"', False)]
)
def test_v05_says_success_in_the_value(tmp_path, said, converged):
    assert read_run(trees.write(tmp_path / "r.txt", trees.v05_run(1, said))).converged is converged
    assert read_run(trees.write(tmp_path / "r.txt", trees.v05_run(1, None))).converged is None


def test_minigo_of_v06_counts_to_the_model_that_passed(tmp_path):
    # Evaluated after the run, so that the time of the line says nothing.
    text = (
        trees.mll_run(50)
        + ":::MLL 1558009999.0 eval_result: {'value': null, 'metadata': {'timestamp': 746.014}}\n"
    )
    log = read_run(trees.write(tmp_path / "result_0.txt", text))
    assert (log.minutes, log.converged) == (pytest.approx(746.014 / 60), True)


def test_evaluations_have_their_minute_quality_and_epoch(tmp_path):
    log = read_run(trees.write(tmp_path / "r.txt", trees.mllog_run(30, epochs=36)))
    assert [(e.minutes, e.quality, e.epoch) for e in log.evaluations] == [
        (10, 0.3, 12),
        (20, 0.6, 24),
        (30, 0.7593, 36),
    ]
    two = trees.mllog("run_start", 0) + trees.mllog(
        "eval_accuracy", 1, {"BBOX": 0.38, "SEGM": 0.34}, epoch_num=3
    )
    assert read_run(trees.write(tmp_path / "m.txt", two)).evaluations[0].quality == 0.38


def test_figures_logged_apart_are_of_one_evaluation(tmp_path):
    """Stable Diffusion evaluates checkpoints afterwards, FID and CLIP each by a script of its own."""
    text = trees.mllog("run_start", 0)
    for metric, figures in (("FID", (120.0, 88.0, 80.0)), ("CLIP", (0.16, 0.14, 0.17))):
        for step, figure in zip((512_000, 1_024_000, 1_536_000), figures, strict=True):
            text += trees.mllog("eval_accuracy", step, figure, samples_count=step, metric=metric)
    log = read_run(trees.write(tmp_path / "r.txt", text + trees.mllog("run_stop", 2e6, status="success")))
    assert [e.found for e in log.evaluations] == [
        {"FID": 120.0, "CLIP": 0.16},
        {"FID": 88.0, "CLIP": 0.14},
        {"FID": 80.0, "CLIP": 0.17},
    ]
    assert epochs_to_converge(log, training_rules.BENCHMARKS["stable_diffusion"], "v3.1") == 1_536_000


def test_time_is_split_by_its_events(tmp_path):
    split = split_time(read_run(trees.write(tmp_path / "r.txt", trees.mllog_run(30))))
    assert (split.init, split.evaluate) == (1.0, pytest.approx(1.5 / 60))
    assert split.train == pytest.approx(30 - 1.5 / 60)
    assert (split.compile, split.input_wait) == (None, None)


def test_what_is_once_in_a_run_counts_as_first_logged(tmp_path):
    twice = trees.mllog_run(30) + trees.mllog("run_stop", 9e12, status="aborted")
    log = read_run(trees.write(tmp_path / "r.txt", twice))
    assert (log.minutes, log.converged) == (30, True)


def test_damaged_lines_are_counted_not_fatal(tmp_path):
    text = (
        trees.mllog_run(30)
        + ':::MLLOG {"key": "eval_accuracy", "value": \n:::MLLOG {"key": "seed", "time_ms": "x"}\n'
    )
    log = read_run(trees.write(tmp_path / "r.txt", text))
    assert (log.minutes, log.damaged) == (30, 2)


@pytest.mark.parametrize(
    "text", ["", "no log\n" * 100, "MLPerf: resnet [06/13/19 03:52:41], run_start\n", "\0" * 4096]
)
def test_what_is_no_log_is_refused_in_a_sentence(tmp_path, text):
    with pytest.raises(UserError, match="holds no MLPerf log line"):
        read_run(trees.write(tmp_path / "r.txt", text))


_PIECES = st.sampled_from(
    [
        b":::MLLOG ",
        b":::MLL ",
        b":::MLPv0.5.0 ",
        b'{"key": "run_start"',
        b', "time_ms": ',
        b"1e999",
        b"1593",
        b"}",
        b"\n",
    ]
    + [
        b'"metadata": {"status": "success"}',
        b"run_stop: ",
        b"[" * 3000,
        b"{'a': null}",
        b"\xff\xfe",
        b" ",
        b'"value": ',
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(_PIECES, st.binary(max_size=8)), max_size=30))
def test_any_bytes_are_read_or_refused(tmp_path, pieces):
    path = tmp_path / "result_0.txt"
    path.write_bytes(b"".join(pieces))
    try:
        log = read_run(path)
    except UserError:
        return
    assert log.minutes is None or log.minutes > 0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (trees.mllog_run(30), trees.mllog_run(40, start=1_665_100_000_000)),
        (trees.mllog_run(30, start=1_665_100_000_000), trees.mllog_run(40)),
        (trees.mllog_run(30).rpartition(":::MLLOG")[0], trees.mllog_run(40, start=1_665_100_000_000)),
        (
            trees.mllog_run(30, qualities=()).rpartition(":::MLLOG")[0],
            trees.mllog_run(40, start=1_665_000_070_000),
        ),
        (trees.mll_run(50), trees.mll_run(50).replace("1558", "1559")),
        (trees.v05_run(50), trees.v05_run(50).replace("154", "155")),
    ],
    ids=[
        "one after the other",
        "the later first",
        "the first broken off",
        "before it was evaluated",
        "v0.6",
        "v0.5",
    ],
)
def test_two_runs_in_one_file_are_no_run(tmp_path, first, second):
    path = trees.write(tmp_path / "r.txt", first + second)
    with pytest.raises(UserError, match=r"r\.txt holds two runs in one file \(another begins in line \d+\)"):
        read_run(path)


def test_processes_that_log_one_run_together_are_one_run(tmp_path):
    lines = trees.mllog_run(30).splitlines(keepends=True)
    late = trees.mllog_run(30, start=1_665_000_000_900).splitlines(keepends=True)
    woven = "".join(line for pair in zip(lines, late, strict=True) for line in pair)
    for text in (woven, "".join(lines + late)):
        assert read_run(trees.write(tmp_path / "r.txt", text)).minutes == 30
