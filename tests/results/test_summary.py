"""The end message, against values computed by hand and what a report says of the same logs."""

import json

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.goals import Direction, Goal, targets
from mlperf_jax.results import events
from mlperf_jax.results.summary import end_message, summarize
from mlperf_jax.rounds.collect import Reader

TOP1 = (Goal("quality", 0.9, metric="top-1 accuracy"),)
ERROR = Goal("wer", 0.05, Direction.ERROR, "word error rate")
LOSS = Goal("loss", 0.8, Direction.LOSS, "cross-entropy")


def write(
    path,
    *,
    seconds=120.0,
    status="success",
    quality=0.91,
    goals=TOP1,
    benchmark="resnet",
    resumed=False,
    stop=True,
    **metadata,
):
    """A log with known times: 10 s of init, then `seconds` from run_start to run_stop, then one more."""
    with events.EventLog(path) as log:
        log.event("submission_benchmark", benchmark, time_ms=0)
        log.event("submission_platform", "box", time_ms=0)
        log.event("run_labels", events.run_labels("mini"), time_ms=0)
        log.event("quality_target", targets(goals), events.about_goals(goals, benchmark), time_ms=0)
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
    assert (run.status, run.reached, run.figures, run.goals) == ("success", True, {"quality": 0.91}, TOP1)
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


@pytest.mark.parametrize(
    ("goals", "quality", "status", "said"),
    [
        ((ERROR,), 0.04, "success", "word error rate 0.0400, target 0.0500: reached"),
        ((ERROR,), 0.95, "aborted", "word error rate 0.9500, target 0.0500: not reached"),
        ((ERROR,), 0.95, "success", "word error rate 0.9500, target 0.0500: not reached"),
        (
            (ERROR, LOSS),
            {"wer": 0.04, "loss": 0.7},
            "success",
            "word error rate 0.0400, target 0.0500; cross-entropy 0.7000, target 0.8000: reached",
        ),
        (
            (ERROR, LOSS),
            {"wer": 0.04, "loss": 0.9},
            "aborted",
            "word error rate 0.0400, target 0.0500; cross-entropy 0.9000, target 0.8000: not reached",
        ),
    ],
)
def test_figures_that_fall_and_several_of_them(tmp_path, goals, quality, status, said):
    run = summarize(write(tmp_path / "r.txt", goals=goals, quality=quality, status=status, benchmark="toy"))
    assert f"  quality        {said}" in end_message([run]).splitlines()


def tree(root, seconds, **changes):
    """Logs where a report looks for them."""
    folder = root / "results" / "box" / changes.get("benchmark", "resnet")
    return [write(folder / f"result_{i}.txt", seconds=s, **changes) for i, s in enumerate(seconds)]


def test_the_command_and_the_report_have_one_score(tmp_path):
    logs = tree(tmp_path, [100.0, 60.0, 600.0, 110.0, 120.0])
    ((result,), _) = Reader().read([tmp_path])
    assert result.score.minutes == pytest.approx(110 / 60)
    message = end_message([summarize(log) for log in logs])
    assert "  score          1.833 min (mean without the fastest and the slowest)" in message


def test_fewer_runs_have_a_mean_and_no_score(tmp_path):
    logs = tree(tmp_path, [100.0, 60.0, 600.0])
    ((result,), _) = Reader().read([tmp_path])
    assert (result.score.minutes, result.score.reason) == (None, "3 of 5 runs")
    assert result.score.mean_minutes == pytest.approx(760 / 180)
    assert end_message([summarize(log) for log in logs]).splitlines()[-2:] == [
        "  no score       3 of 5 runs",
        "  mean           4.222 min (of the 3 that converged, which is no score)",
    ]
    alone = end_message([summarize(logs[0])])
    assert "  no score" not in alone and "  mean " not in alone


def test_runs_that_missed_a_falling_target_have_no_mean(tmp_path):
    logs = tree(tmp_path, [60.0] * 10, benchmark="toy", goals=(ERROR,), quality=0.95)
    ((result,), _) = Reader().read([tmp_path])
    assert (result.score.converged, result.score.minutes) == (0, None)
    message = end_message([summarize(log) for log in logs])
    assert message.splitlines()[-1] == "  no score       10 of 10 runs did not converge, the rules allow 1"


def test_a_resumed_run_is_marked_and_not_scored(tmp_path):
    runs = [summarize(write(tmp_path / f"result_{i}.txt", resumed=i == 0)) for i in range(5)]
    message = end_message(runs)
    assert "resumed: the time it was down is in it, no score" in message
    assert "no score       4 of 5 runs" in message
    assert "result_0.txt was resumed and does not count" in message


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
