"""TensorBoard's files as the training run writes them, resumed, cut off, and hostile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_jax.results.curves import read_evaluations
from mlperf_jax.training.progress import Progress


def evaluate(folder, first_step, figures):
    numbers = {"total_steps": 100, "batch_size": 1, "num_train": 1, "goals": ()}
    with Progress(**numbers, first_step=first_step, tensorboard_dir=folder) as line:
        for step, figure in figures.items():
            line.step(step, 1.0)
            line.evaluated(step, {"quality": figure, "loss": 1 - figure})


def test_evaluations_are_read_back(tmp_path):
    evaluate(tmp_path, 0, {10: 0.25, 20: 0.5})
    points = read_evaluations(tmp_path)
    assert [(point.step, point.figures) for point in points] == [
        (10, {"quality": 0.25, "loss": 0.75}),
        (20, {"quality": 0.5, "loss": 0.5}),
    ]
    assert points[0].time_ms == pytest.approx(points[1].time_ms, abs=5_000) and points[0].time_ms > 1.7e12


def test_what_a_resumed_run_did_again_counts_once(tmp_path):
    evaluate(tmp_path, 0, {10: 0.25, 20: 0.5, 30: 0.6})
    evaluate(tmp_path, 10, {20: 0.55})
    assert [(p.step, p.figures["quality"]) for p in read_evaluations(tmp_path)] == [
        (10, 0.25),
        (20, pytest.approx(0.55)),
    ]


def test_a_file_that_was_cut_off_gives_what_is_whole(tmp_path):
    evaluate(tmp_path, 0, {10: 0.25, 20: 0.5})
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert len(read_evaluations(tmp_path)) <= 2
    assert read_evaluations(tmp_path / "none") == []


@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_without_failing(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("tb")
    (folder / "events.out.tfevents.x").write_bytes(len(data).to_bytes(8, "little") + b"1234" + data)
    (folder / "events.out.tfevents.").write_bytes(data)
    assert isinstance(read_evaluations(folder), list)
