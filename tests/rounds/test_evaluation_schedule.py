"""When a benchmark is to be evaluated: by hand-computed epochs of the rules' and the references' sentences."""

from __future__ import annotations

import pytest

from mlperf_jax.rounds.evaluation_schedule import Every, breaches, find_schedules


@pytest.mark.parametrize(
    ("batch", "wanted"),
    [
        (56, {(1000, 20)}),  # 3 x 56 = 168
        (84, {(1000, 20)}),
        # 6 x 32 = 192: 168,000/192 = 875, 3360/192 = 17.5; 5 x 32 = 160: 1050, 21 (the README's first example)
        (32, {(1000, 20), (875, 18), (1050, 21)}),
        # 2 x 128 = 256: 656.25, 13.125; 128: 1312.5, 26.25 (its second example)
        (128, {(1000, 20), (657, 14), (1313, 27)}),
        (80, {(1000, 20), (700, 14), (1050, 21)}),  # 240: 700, 14; 160
        (200, {(1000, 20), (840, 17)}),  # one batch: 168,000/200 = 840, 16.8; there is none to drop
    ],
)
def test_unet_by_samples_per_epoch(batch, wanted):
    found = find_schedules("unet3d", "v1.0", batch)
    assert {(one.first[0], one.interval) for one in found} == wanted
    assert all(one.first[0] == one.first[1] and not one.more for one in found)


@pytest.mark.parametrize(
    ("round_name", "more"),
    [("v0.6", True), ("v0.7", True), ("v1.0", True), ("v1.1", False), ("local", False)],
)
def test_more_often_is_right_while_the_rules_say_at_least(round_name, more):
    (found,) = find_schedules("resnet", round_name, 4096)
    assert found.more == more
    assert breaches([found], [2, 4, 8, 12], lambda one: 0.1) == (
        []
        if more
        else [(1, "evaluated at 4 after 2, and the rules evaluate every 4 epochs, the first after 1 to 4")]
    )
    assert [i for i, _ in breaches([found], [2, 6, 11, 14], lambda one: 0.1)][:1] == [2]


def test_a_whole_number_of_epochs_may_be_rounded_and_no_more():
    # Every 5 epochs are 144.4 steps of 4096: whole steps make 5.02 epochs, of which 31 are logged after six.
    every = Every(5, "every 5 epochs")
    done = [5, 10, 15, 20, 25, 31, 36]
    step = 4096 / 118_287
    assert breaches([every], done, lambda one: 0.2, step) == []
    assert [i for i, _ in breaches([every], [5, 10, 16], lambda one: 0.2)] == [2]
    assert [i for i, _ in breaches([every], [5, 10, 20], lambda one: 0.2, step)] == [2]
    assert [i for i, _ in breaches([every], [5, 10, 12], lambda one: 0.2, step)] == [2]


def test_of_several_schedules_that_which_fits_best():
    schedules = [Every(20, "a", (1000, 1000)), Every(18, "b", (875, 875))]
    assert breaches(schedules, [875, 893, 911], lambda one: 0.5) == []
    assert breaches(schedules, [875, 893, 912], lambda one: 0.5) == [
        (2, "evaluated at 912 after 893, and the rules evaluate b")
    ]
    assert breaches([], [1], lambda one: 0.5) == []
