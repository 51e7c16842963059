"""Scores against hand-made figures and a brute-force transcription of the rules."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlperf_logging.result_summarizer.result_summarizer import _compute_olympic_average

from mlperf_jax.rounds import training_rules
from mlperf_jax.rounds.log_lines import Event
from mlperf_jax.rounds.scoring import goals_of, reached, score_runs, winners
from mlperf_jax.rounds.training_logs import Evaluation, RunLog

RESNET, BERT, UNET, NCF = (training_rules.BENCHMARKS[key] for key in ("resnet", "bert", "unet3d", "ncf"))


def run(minutes: float | None, number: int = 0, converged: bool | None = True, **once) -> RunLog:
    log = RunLog(
        Path(f"result_{number}.txt"), "MLLOG", [], minutes, converged if minutes is not None else None
    )
    for key, value in once.items():
        log.add(Event(key, value, {}, 0.0))
    return log


def runs(*minutes: float) -> list[RunLog]:
    """Infinite is a run that did not converge."""
    return [run(1.0 if m == math.inf else m, i, m < math.inf) for i, m in enumerate(minutes)]


def test_the_fastest_and_the_slowest_are_dropped():
    score = score_runs(runs(10, 1, 2, 3, 100), RESNET, "v2.1")
    assert (score.minutes, score.runs, score.converged, score.kept) == (5.0, 5, 5, (2, 3, 10))
    assert score.mean_minutes == pytest.approx(23.2)


def test_one_that_did_not_converge_is_the_slowest_and_two_are_too_many():
    assert score_runs(runs(1, 2, 3, 4, math.inf), RESNET, "v2.1").minutes == 3.0
    score = score_runs(runs(1, 2, 3, math.inf, math.inf), RESNET, "v2.1")
    assert score.minutes is None and "2 of 5 runs did not converge" in score.reason


def test_unreadable_and_broken_off_logs_count_as_not_converged():
    assert score_runs(runs(1, 2, 3, 4), RESNET, "v2.1", unreadable=1).minutes == 3.0
    assert score_runs([*runs(1, 2, 3, 4), run(None, 9)], RESNET, "v2.1").minutes == 3.0
    assert score_runs(runs(1, 2, 3, 4), RESNET, "v2.1", unreadable=2).minutes is None


def test_too_few_runs_make_no_score():
    score = score_runs(runs(1, 2, 3, 4), RESNET, "v2.1")
    assert (score.minutes, score.reason, score.mean_minutes) == (None, "4 of 5 runs", 2.5)
    assert score_runs([], RESNET, "v2.1").reason == "0 of 5 runs"


def test_unet_drops_four_at_each_end():
    times = [1.0] * 4 + [10.0] * 16 + [20.0] * 16 + [math.inf] * 4
    assert score_runs(runs(*times), UNET, "v2.1").minutes == 15.0
    assert score_runs(runs(*times[:-5], *[math.inf] * 5), UNET, "v2.1").minutes is None


def test_ncf_takes_the_first_fifty_that_converge_by_number():
    # Runs 0 to 19 fail; 20 to 69 take 1, ..., 50; what comes later is faster and does not count.
    logs = [
        run(m, i, i >= 20) for i, m in enumerate([9.0] * 20 + [float(n) for n in range(1, 51)] + [0.1] * 30)
    ]
    assert score_runs(logs[::-1], NCF, "v0.5").minutes == sum(range(2, 50)) / 48
    few = score_runs(logs[:60], NCF, "v0.5")
    assert few.minutes is None and few.reason == "40 of 60 runs converged, the rules take 50"


def test_a_resumed_run_is_never_scored():
    logs = [*runs(1, 2, 3, 4), run(5.0, 9, resumed=None)]
    score = score_runs(logs, RESNET, "local")
    assert score.minutes is None and "result_9.txt was resumed and does not count" in score.remarks


def test_a_run_of_ours_that_goes_on_does_not_count_yet():
    score = score_runs([*runs(1, 2, 3, 4, 5), run(None, 9, run_labels=["x"])], RESNET, "local")
    assert score.minutes == 3.0 and "result_9.txt is unfinished and does not count" in score.remarks


@pytest.mark.parametrize(
    ("key", "round_name", "required"),
    [
        ("resnet", "v0.5", 5),
        ("gnmt", "v0.6", 10),
        ("minigo", "v0.5", 20),
        ("minigo", "v0.7", 10),
        ("ncf", "v0.5", 50),
    ]
    + [
        ("unet3d", "v2.1", 40),
        ("gpt3", "v3.0", 3),
        ("dlrm", "v1.0", 5),
        ("dlrm_dcnv2", "v3.0", 10),
        ("bert", "v0.7", 10),
    ],
)
def test_the_number_of_runs_is_that_of_benchmark_and_round(key, round_name, required):
    assert training_rules.BENCHMARKS[key].required_runs(round_name) == required


def test_counts_agree_with_the_official_table():
    official = pytest.importorskip("mlperf_logging.benchmark_meta").get_result_file_counts("training")
    earlier = ("ncf", "sentiment", "deepspeech2")  # than the table
    ours = {
        key: b.required_runs("v6.1") for key, b in training_rules.BENCHMARKS.items() if key not in earlier
    }
    assert ours == {key: official[key] for key in ours}


@given(st.lists(st.one_of(st.floats(0.01, 1e4), st.just(math.inf)), min_size=5, max_size=60))
def test_against_brute_force(times):
    benchmark = UNET if len(times) >= 40 else RESNET
    remaining = list(times)
    for _ in range(benchmark.dropped):
        remaining.remove(min(remaining))
        remaining.remove(max(remaining))
    expected = sum(remaining) / len(remaining)
    score = score_runs(runs(*times), benchmark, "v2.1")
    if math.isinf(expected):
        assert score.minutes is None and score.reason
    else:
        assert score.minutes == pytest.approx(expected)


@given(
    st.lists(st.none() | st.floats(0.01, 1e4), min_size=40, max_size=50),
    st.sampled_from(["resnet", "unet3d"]),
)
def test_the_score_is_the_official_summarizers(minutes, key):
    benchmark = training_rules.BENCHMARKS[key]
    missed = minutes.count(None)
    official = None
    if missed <= benchmark.dropped:
        finite = [m for m in minutes if m is not None]
        official = _compute_olympic_average(finite, missed, benchmark.dropped)
    ours = score_runs(runs(*(math.inf if m is None else m for m in minutes)), benchmark, "v2.1").minutes
    assert ours == (None if official is None else pytest.approx(official, rel=1e-9))


def test_without_a_word_the_last_quality_decides():
    low, high = (run(5.0, 0, None) for _ in range(2))
    low.evaluations, high.evaluations = [Evaluation(4, 0.748, 60)], [Evaluation(4, 0.75, 61)]
    assert not reached(low, RESNET, "v0.5") and reached(high, RESNET, "v0.5")
    assert not reached(high, RESNET, "v0.7")  # 75.9 % since v0.6
    assert reached(run(5.0, 0, None), RESNET, "v0.5")


def target(log, benchmark, round_name):
    (goal,) = goals_of(log, training_rules.BENCHMARKS[benchmark], round_name)
    return goal.target


def test_a_target_is_in_the_unit_of_the_log():
    log = run(5.0)
    log.evaluations = [Evaluation(1, 0.2, 1)]
    assert target(log, "gnmt", "v0.7") == pytest.approx(0.24)
    log.evaluations = [Evaluation(1, 20.0, 1)]
    assert target(log, "gnmt", "v0.7") == 24.0
    assert target(run(5.0, quality_target=0.5), "resnet", "local") == 0.5


def own_run(status, found, targets, number=0, **about):
    """A run of ours that evaluated once."""
    log = run(5.0, number, status == "success", run_labels=["x"])
    log.add(Event("quality_target", targets, about, 0.0))
    log.evaluations = [Evaluation(4, found, 1)]
    return log


@pytest.mark.parametrize(
    ("status", "found", "targets", "directions", "good"),
    [
        ("success", 0.04, 0.05, "error", True),
        ("success", 0.95, 0.05, "error", False),
        ("aborted", 0.95, 0.05, "error", False),
        ("success", 0.95, 0.05, "higher", True),
        ("success", {"e": 0.04, "loss": 0.7}, {"e": 0.05, "loss": 0.8}, {"e": "error", "loss": "loss"}, True),
        (
            "success",
            {"e": 0.04, "loss": 0.9},
            {"e": 0.05, "loss": 0.8},
            {"e": "error", "loss": "loss"},
            False,
        ),
        ("success", {"e": 0.04}, {"e": 0.05, "loss": 0.8}, {"e": "error", "loss": "loss"}, False),
    ],
)
def test_a_run_of_ours_goes_by_the_directions_that_it_logged(status, found, targets, directions, good):
    log = own_run(status, found, targets, direction=directions)
    toy = training_rules.benchmark_called("toy")
    assert reached(log, toy, "local") == good
    logs = [own_run(status, found, targets, i, direction=directions) for i in range(10)]
    assert score_runs(logs, toy, "local").converged == (10 if good else 0)


def test_without_a_logged_direction_the_rules_tell_it():
    rnnt = training_rules.BENCHMARKS["rnnt"]
    assert reached(own_run("success", 0.057, 0.058), rnnt, "local")
    assert not reached(own_run("success", 0.95, 0.058), rnnt, "local")
    assert reached(own_run("success", 0.95, 0.9, direction="higher"), rnnt, "local")


@pytest.mark.parametrize(
    ("found", "good"),
    [
        ({"BBOX": 0.378, "SEGM": 0.340}, True),
        ({"bbox": 0.378, "segm": 0.340}, True),
        ({"BBOX": 0.378, "SEGM": 0.330}, False),
        ({"BBOX": 0.370, "SEGM": 0.340}, False),
        ({"BBOX": 0.378}, False),
    ],
)
def test_mask_r_cnn_needs_boxes_and_masks(found, good):
    log = run(5.0, 0, None)
    log.evaluations = [Evaluation(3, {"BBOX": 0.4, "SEGM": 0.3}, 12), Evaluation(4, found, 13)]
    assert reached(log, training_rules.BENCHMARKS["maskrcnn"], "v0.7") == good


def test_a_lead_inside_the_known_variance_is_no_win():
    assert winners([100.0, 103.0, 200.0], 0.025) == [0]
    assert winners([100.0, 102.0, None], 0.025) == [0, 1]
    assert winners([None], 0.025) == []


def test_benchmarks_are_known_by_the_names_of_real_folders():
    assert training_rules.find_benchmark("mask").key == "maskrcnn"
    assert training_rules.find_benchmark("dlrm-dcnv2").key == "dlrm_dcnv2"
    assert training_rules.find_benchmark("results") is None
    assert (
        training_rules.BENCHMARKS["ssd"].title("v1.1") == "SSD"
        and training_rules.BENCHMARKS["ssd"].title("v2.0") == "RetinaNet"
    )


def test_ours_without_a_target_are_held_against_the_rules():
    labels = {"run_labels": ["unverified"]}
    for quality, counted in ((0.7, False), (0.76, True)):
        log = run(1.0, **labels)
        log.evaluations = [Evaluation(1.0, quality, 3.0)]
        assert reached(log, RESNET, "local") == counted
    bleu = run(1.0, **labels)
    bleu.evaluations = [Evaluation(1.0, 0.24, 3.0)]
    assert not reached(bleu, training_rules.BENCHMARKS["transformer"], "local")
