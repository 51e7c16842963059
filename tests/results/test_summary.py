"""The end message and the score, against the official summarizer and values computed by hand."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlperf_logging.result_summarizer.result_summarizer import _compute_olympic_average

from mlperf_jax.errors import UserError
from mlperf_jax.results import events
from mlperf_jax.results.summary import RunSummary, end_message, score, summarize


def write(path, *, seconds=120.0, status="success", quality=0.91, resumed=False, stop=True, **metadata):
    """A log with known times: 10 s of init, then `seconds` from run_start to run_stop, then one more."""
    with events.EventLog(path) as log:
        log.event("submission_benchmark", "resnet", time_ms=0)
        log.event("submission_platform", "box", time_ms=0)
        log.event("run_labels", events.run_labels("mini"), time_ms=0)
        log.event("quality_target", 0.9, {"metric": "top-1 accuracy"}, time_ms=0)
        log.start("init_start", time_ms=1000)
        log.event("compile_time", 7.5, time_ms=9000)
        log.end("init_stop", time_ms=11000)
        log.start("run_start", time_ms=11000)
        if resumed:
            log.event("resumed", time_ms=12000)
        for samples, took in ((1000, 4.0), (3000, 6.0)):
            events.log_stats(log, step=1, samples=samples, seconds=took, input_seconds=0.0)
        log.event("eval_accuracy", 0.5, {"epoch_num": 1}, time_ms=12000)
        log.event("eval_accuracy", quality, {"epoch_num": 2}, time_ms=12000)
        if stop:
            end = 11000 + int(seconds * 1000)
            log.end("run_stop", metadata={"status": status, **metadata}, time_ms=end)
            log.event("written", time_ms=end + 1000)
    return path


def test_a_run_is_summed_up_from_its_log(tmp_path):
    run = summarize(write(tmp_path / "result_0.txt"))
    assert (run.status, run.quality, run.target, run.metric) == ("success", 0.91, 0.9, "top-1 accuracy")
    assert (run.time_to_train, run.whole_time, run.compile_time) == (120.0, 131.0, 7.5)
    assert run.throughput == pytest.approx(400.0)
    assert not run.resumed


def test_the_message_says_what_people_want_to_know(tmp_path):
    path = write(tmp_path / "result_0.txt")
    assert end_message([summarize(path)]).splitlines() == [
        "resnet on box (mini: not MLPerf's data or model; unverified, not reviewed by MLCommons)",
        f"  result file    {path}",
        "  quality        top-1 accuracy 0.9100, target 0.9000: reached",
        "  time to train  2.00 min (run_start to run_stop)",
        "  whole time     2.18 min (model building to end, of which compilation 7.5 s)",
        "  throughput     400.0 samples/s in training",
    ]


def test_an_aborted_run_says_why(tmp_path):
    path = write(tmp_path / "result_0.txt", status="aborted", quality=0.3, reason="the loss is nan at step 7")
    assert "0.3000, target 0.9000: not reached (the loss is nan at step 7)" in end_message([summarize(path)])


def test_an_unfinished_and_an_empty_log_are_summed_up_too(tmp_path):
    run = summarize(write(tmp_path / "result_0.txt", stop=False))
    assert run.status == "unfinished" and run.time_to_train is None
    assert "the run is unfinished" in end_message([run])
    (tmp_path / "empty.txt").write_text("")
    empty = summarize(tmp_path / "empty.txt")
    assert "never evaluated" in end_message([empty])


def test_a_resumed_run_is_marked_and_not_scored(tmp_path):
    runs = [summarize(write(tmp_path / f"result_{i}.txt", resumed=i == 0)) for i in range(3)]
    message = end_message(runs)
    assert "resumed: the time it was down is in it, no score" in message
    assert "no score: 2 complete runs, and it takes 3" in message
    assert "result_0.txt is left out (resumed)" in message


def test_the_score_drops_the_fastest_and_the_slowest(tmp_path):
    seconds = [100.0, 60.0, 600.0]
    runs = [summarize(write(tmp_path / f"result_{i}.txt", seconds=s)) for i, s in enumerate(seconds)]
    assert score(runs).minutes == pytest.approx(100 / 60)
    assert score(runs).remarks == ("MLPerf requires 5 runs of resnet; these are 3",)
    assert "score          1.667 min" in end_message(runs)


def run(minutes, benchmark="resnet"):
    """A converged run of so many minutes; None: one that missed its target."""
    return RunSummary(
        path=Path("result.txt"),
        benchmark=benchmark,
        system="box",
        status="aborted" if minutes is None else "success",
        reason=None,
        quality=0.9,
        target=0.9,
        metric="accuracy",
        time_to_train=1.0 if minutes is None else minutes * 60,
        whole_time=None,
        compile_time=None,
        throughput=None,
        resumed=False,
        labels=(),
    )


def test_a_missed_target_counts_as_the_slowest_and_two_leave_no_score():
    five = [run(3), run(1), run(2), run(4), run(None)]
    assert score(five).minutes == pytest.approx(3.0)
    assert score(five).remarks == ("a run that missed the target counts as the slowest",)
    assert score([*five[:3], run(None), run(None)]) == dataclasses.replace(
        score([]), remarks=("no score: 2 of 5 runs missed the target",)
    )


def test_unet3d_drops_four_at_each_end():
    runs = [run(minutes, "unet3d") for minutes in range(1, 41)]
    assert score(runs).minutes == pytest.approx(math.fsum(range(5, 37)) / 32)
    assert score(runs).remarks == ()
    assert score([run(1, "unet3d")] * 8).minutes is None


def test_no_runs_have_no_score():
    assert score([]).minutes is None


@given(
    st.lists(st.none() | st.floats(0.01, 1e4), min_size=3, max_size=12), st.sampled_from(["resnet", "unet3d"])
)
def test_the_score_is_the_official_summarizers(minutes, benchmark):
    dropped = 4 if benchmark == "unet3d" else 1
    missed = minutes.count(None)
    official = None
    if missed <= dropped:
        official = _compute_olympic_average([m for m in minutes if m is not None], missed, dropped)
    ours = score([run(m, benchmark) for m in minutes]).minutes
    assert ours == (None if official is None else pytest.approx(official, rel=1e-9))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eval_accuracy", "high"),
        ("compile_time", [1]),
        ("tracked_stats", {"samples": 1}),
        ("tracked_stats", 3),
    ],
)
def test_a_figure_that_is_none_is_named_by_its_file(tmp_path, key, value):
    path = tmp_path / "result_0.txt"
    line = {"key": key, "value": value, "metadata": {}, "time_ms": 1}
    path.write_text(f"{events.TOKEN}{json.dumps(line)}\n")
    with pytest.raises(UserError, match="result_0.txt holds a figure that is none"):
        summarize(path)
