"""The curves of published runs: against the reference's own figures, by interpolation, and as they are made from logs."""

import json
import math
import random
import statistics
from pathlib import Path

import mlperf_logging
import pytest

from benchmarks import published_curves as maker
from mlperf_jax.rounds import published_curves
from mlperf_jax.rounds.published_curves import beside, compare, find_curve, sentence
from tests.reporting.result_trees import mllog

CURVES = [curve for curves in published_curves._load().values() for curve in curves]


def test_what_is_kept_hangs_together():
    assert {curve.benchmark for curve in CURVES} == set(maker.BENCHMARKS)
    for curve in CURVES:
        samples = [point.samples for point in curve.points]
        assert samples == sorted(set(samples))
        assert all(point.least <= point.median <= point.most for point in curve.points)
        assert all(curve.runs / 2 <= point.runs <= curve.runs for point in curve.points)
        counts = [count for _, count in curve.reached]
        assert counts == sorted(set(counts))
        assert counts[-1] == curve.runs  # all of them reached their target


@pytest.mark.parametrize(("batch_size", "rate"), [(32, 8e-4), (64, 1e-3)])
def test_the_references_runs_converge_where_its_points_say(batch_size, rate):
    """The logs of mlcommons/training against the convergence points that mlcommons/logging took from them."""
    folder = Path(mlperf_logging.__file__).parent / "rcp_checker" / "training_6.1.0"
    points = json.loads((folder / "rcps_gpt_oss_20b.json").read_text())
    told = sorted(points[f"gpt_oss_20b_ref_{batch_size}"]["Epochs to converge"])
    curve, exact = find_curve("gpt_oss_20b", batch_size, rate)
    assert exact
    assert [curve.ended(samples) for samples in told] == [
        sum(other <= samples for other in told) for samples in told
    ]


# What was read off the same logs by hand: medians of ten runs of a submitter each, whose runs are among these.
@pytest.mark.parametrize(
    ("benchmark", "batch_size", "rate", "samples", "medians"),
    [
        ("llama31_8b", 16, 4e-4, 12_288, (5.23, 5.25)),
        ("llama31_8b", 16, 4e-4, 73_728, (3.577, 3.611)),
        ("llama31_8b", 16, 4e-4, 147_456, (3.318, 3.350)),
        ("llama31_8b", 32, 8e-4, 49_152, (3.87,)),
        ("llama31_8b", 64, 8e-4, 98_304, (3.688,)),
        ("gpt_oss_20b", 32, 8e-4, 12_288, (5.244,)),
        ("gpt_oss_20b", 32, 8e-4, 221_184, (3.349,)),
        ("llama2_70b_lora", 8, 5e-4, 2_688, (0.9292,)),
    ],
)
def test_medians_of_single_submitters_lie_within(benchmark, batch_size, rate, samples, medians):
    point = find_curve(benchmark, batch_size, rate)[0].at(samples)
    assert all(point.least <= median <= point.most for median in medians)
    assert point.median == pytest.approx(statistics.mean(medians), rel=0.008)


def test_between_evaluations_on_straight_lines_in_the_logarithm():
    curve, _ = find_curve("llama31_8b", 16, 4e-4)
    assert curve.at(12_288 - 17) is None
    assert curve.at(12_288 - 16) == curve.at(12_288) == curve.points[0]
    low, high = curve.points[:2]
    middle = curve.at(math.sqrt(low.samples * high.samples))
    assert middle.median == pytest.approx((low.median + high.median) / 2)
    assert middle.least == pytest.approx((low.least + high.least) / 2)
    assert curve.at(curve.points[-1].samples + 17) is None


def test_where_a_run_is_beside_them():
    there = beside("llama31_8b", 16, 4e-4, 36_864)
    assert there.exact
    assert there.words == (
        "the 140 published runs of batch size 16 and base learning rate 0.0004 were at 3.910 to 4.000 "
        "after 36,864 sequences, median 3.960"
    )
    # From 3.9103 to 4.0002 about a median of 3.9603: as far again on either side.
    away = {3.859: True, 3.861: False, 3.96: False, 4.040: False, 4.041: True, math.nan: True}
    assert {loss: there.away(loss) for loss in away} == away
    assert beside("llama31_8b", 16, 4e-4, 4096) is None
    assert beside("resnet", 16, 4e-4, 36_864) is None
    assert beside("llama31_8b", None, 4e-4, 36_864) is None
    later = beside("llama31_8b", 16, 4e-4, 172_032)
    assert not later.away(9.0)
    assert later.range.endswith(" of 140 had reached the target")


def test_runs_of_other_numbers_are_told_and_not_held_against():
    other = beside("llama31_8b", 20, 5e-4, 36_864)
    assert (other.curve.batch_size, other.curve.base_lr, other.exact) == (16, 4e-4, False)
    assert "none is of this run's numbers" in other.words
    assert not other.away(9.0)
    alone = beside("gpt_oss_20b", 16, 4e-4, 49_152)
    assert alone.words.startswith("the one published run of batch size 16")
    assert not alone.away(9.0)  # one run has no spread


def test_a_run_in_one_sentence():
    told = compare("llama31_8b", 16, 4e-4, [(4096, 9.0), (12_288, 6.5), (36_864, 3.95), (None, 3.0)])
    assert [loss for _, loss in told] == [6.5, 3.95]
    assert sentence(told).startswith("loss 3.950, where the 140 published runs")
    assert sentence(told).endswith("; 1 of 2 evaluations are away from theirs")


def test_curves_are_made_of_logs(tmp_path, monkeypatch):
    """Random runs of two groups: the least, median and most are those of NumPy's sorting; nothing after the first end."""
    monkeypatch.setattr(published_curves, "FILE", tmp_path / "made.json")
    draw = random.Random(1)
    runs = []
    for i in range(7):
        batch = 16 if i < 4 else 20
        step = -(-12_288 // batch) * batch
        losses = [5 - 0.2 * k + draw.uniform(0, 0.1) for k in range(5 + i % 2)]
        losses[-1] = 3.2
        runs.append((batch, step, losses))
        text = mllog("submission_benchmark", 1, "llama31_8b") + mllog("global_batch_size", 1, batch)
        text += mllog("opt_base_learning_rate", 1, 4e-4) + mllog("run_start", 2)
        for k, loss in enumerate(losses, 1):
            text += mllog("eval_accuracy", 10 * k, loss, samples_count=k * step)
        (tmp_path / f"result_{i}.txt").write_text(text + mllog("run_stop", 999, status="success"))
    (tmp_path / "notes.txt").write_text("no log")
    assert maker.main([f"here={tmp_path}"]) == 0
    made = json.loads((tmp_path / "made.json").read_text())["curves"]
    assert [(curve["batch_size"], curve["runs"], curve["sources"]) for curve in made] == [
        (16, 4, ["here"]),
        (20, 3, ["here"]),
    ]
    for curve in made:
        mine = [(step, losses) for batch, step, losses in runs if batch == curve["batch_size"]]
        step, shortest = mine[0][0], min(len(losses) for _, losses in mine)
        assert len(curve["points"]) == shortest
        for k, (samples, count, least, median, most) in enumerate(curve["points"], 1):
            ordered = sorted(losses[k - 1] for _, losses in mine)
            n = len(ordered)
            assert (samples, count) == (k * step, n)
            assert least == pytest.approx(ordered[0], abs=1e-4)
            assert median == pytest.approx((ordered[(n - 1) // 2] + ordered[n // 2]) / 2, abs=1e-4)
            assert most == pytest.approx(ordered[-1], abs=1e-4)
        ends = sorted(len(losses) * step for _, losses in mine)
        assert curve["reached"] == [[end, sum(other <= end for other in ends)] for end in sorted(set(ends))]
