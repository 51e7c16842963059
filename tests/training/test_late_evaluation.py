"""Evaluations that finish while training goes on: what is logged, which state is kept, and that none is lost."""

import dataclasses
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from mlperf_jax.errors import Stopped
from mlperf_jax.training.checkpoints import Checkpoints
from mlperf_jax.training.loop import train
from tests import toys
from tests.training.test_loop import Kept, Log, Stop, assert_equal_states, engine_of, session

BLOCK = 12  # steps between evaluations; the run has four


class Slow(Future):
    """Says that it is done when it was asked `polls` times; whoever waits gets the result at once."""

    def __init__(self, found, polls):
        super().__init__()
        self.found, self.polls = found, polls

    def done(self):
        self.polls -= 1
        return self.polls < 0

    def result(self, timeout=None):
        return self.found


class Late(toys.SparseTable):
    """Its evaluations are over `polls` dispatches later; None: at once. `figures` replaces what they find."""

    polls, figures, died_at = 3, None, None

    def evaluate(self, engine, state, notes):
        found = super().evaluate(engine, state, notes)
        if self.figures is not None:
            found["quality"] = self.figures[int(state["step"]) // BLOCK - 1]
        return found if self.polls is None else Slow(found, self.polls)

    def _batches(self, rows, start, stop):
        for step, batch in enumerate(super()._batches(rows, start, stop), start):
            if step == self.died_at:
                raise KeyboardInterrupt
            yield batch


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


NUMBERS = {"batch_size": 512, "eval_every_epochs": 1, "max_epochs": 4, "target": 2.0}


@pytest.fixture(scope="module")
def compiled():
    with jax.enable_x64(True):
        return engine_of(toys.make(Late, "float64", **NUMBERS))


@pytest.fixture
def late(compiled, monkeypatch):
    """The engine, with a workload of the test's own."""
    monkeypatch.setattr(compiled, "workload", toys.make(Late, "float64", **NUMBERS))
    return compiled


def run(engine, *, stop=None, checkpoints=None, state=None, step=0, evaluated=True):
    log = Log()
    here = session(engine, log)
    here.checkpoints = Kept() if checkpoints is None else checkpoints
    if stop:
        here.stop = Stop(stop)
    state = engine.init(3) if state is None else state
    try:
        outcome = train(here, state, step, evaluated=evaluated)
    except Stopped:
        outcome = None
    return outcome, log, here.checkpoints


def accuracies(log):
    return [(metadata["epoch_num"], value) for key, value, metadata in log.lines if key == "eval_accuracy"]


@pytest.mark.parametrize("polls", [0, 3, 10**6])
def test_late_figures_change_nothing_but_their_place_in_the_log(late, polls):
    late.workload.polls = None
    at_once, expected, _ = run(late)
    late.workload.polls = polls
    outcome, log, kept = run(late)
    assert (outcome.status, outcome.step, outcome.quality) == ("aborted", 4 * BLOCK, at_once.quality)
    assert accuracies(log) == accuracies(expected)
    assert_equal_states(outcome.state, at_once.state)
    assert kept.steps == [BLOCK * i for i in (1, 2, 3, 4)]
    block, figure = ["block_start", "tracked_stats", "block_stop"], ["eval_accuracy", "eval_stop"]
    within = [block[0], *figure, *block[1:]] if polls < BLOCK else [*block, *figure]
    assert log.keys() == [*block, "eval_start", *[*within, "eval_start"] * 3, *figure]


def test_run_ends_with_the_state_that_reached_the_target(late):
    late.workload.figures = [0.1, 3.0, 0.2, 0.3]
    outcome, log, kept = run(late)
    assert (outcome.status, outcome.step, outcome.quality) == ("success", 2 * BLOCK, 3.0)
    assert outcome.state is None and kept.steps == [BLOCK, 2 * BLOCK]
    assert int(kept.state["step"]) == 2 * BLOCK
    # The block that was cut short says how far it came: four dispatches.
    (first, planned), (again, done) = (
        (m["first_epoch_num"], m["epoch_count"]) for key, _, m in log.lines[-6:] if key.startswith("block")
    )
    assert first == again == 3 and planned == 1 and done == pytest.approx(4 * 512 / 6144)
    assert log.keys()[-5:] == ["block_start", "eval_accuracy", "eval_stop", "tracked_stats", "block_stop"]


def test_last_evaluation_is_waited_for(late):
    late.workload.figures, late.workload.polls = [0.1, 0.2, 0.3, 3.0], 10**6
    outcome, _, _ = run(late)
    assert (outcome.status, outcome.step) == ("success", 4 * BLOCK)
    assert int(outcome.state["step"]) == 4 * BLOCK


@pytest.mark.parametrize(("nth", "step"), [(BLOCK + 2, BLOCK + 2), (BLOCK, BLOCK)])
def test_told_to_stop_it_waits_for_the_figures(late, nth, step):
    """In the middle of the second block, and between two blocks."""
    late.workload.polls = 10**6
    outcome, log, kept = run(late, stop=nth)
    assert outcome is None and kept.steps[-1] == step
    assert len(accuracies(log)) == 1
    late.workload.figures = [3.0]
    outcome, _, kept = run(late, stop=nth)
    assert (outcome.status, outcome.step, kept.steps) == ("success", BLOCK, [BLOCK])


def test_figures_arrive_though_a_later_loss_is_not_finite(late, monkeypatch):
    whole = late.workload._batches

    def poisoned(rows, start, stop):
        for step, batch in enumerate(whole(rows, start, stop), start):
            bad = step == BLOCK + 1
            yield batch | {"rating": np.full_like(batch["rating"], np.nan)} if bad else batch

    monkeypatch.setattr(late.workload, "_batches", poisoned)
    late.workload.polls = 10**6
    outcome, log, _ = run(late)
    assert (outcome.status, outcome.step, outcome.state) == ("aborted", BLOCK + 2, None)
    assert len(accuracies(log)) == 1
    late.workload.figures = [3.0]
    outcome, _, _ = run(late)
    assert (outcome.status, outcome.step, outcome.state) == ("success", BLOCK, None)


@pytest.mark.parametrize("died_at", [BLOCK + 1, BLOCK + 7])
def test_killed_before_or_after_the_figures_it_ends_as_if_it_had_not_been(late, tmp_path, died_at):
    """Killed while the evaluation is under way, and when it is logged but no later state is saved."""
    expected, log_of_all, _ = run(late)
    late.workload.died_at = died_at
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(KeyboardInterrupt):
        run(late, checkpoints=checkpoints)
    checkpoints.wait()
    checkpoints.close()
    late.workload.died_at = None
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    position = checkpoints.position()
    assert (position.step, position.evaluated) == (BLOCK, False)
    state = checkpoints.restore(late.state)
    outcome, log, _ = run(
        late, checkpoints=checkpoints, state=state, step=position.step, evaluated=position.evaluated
    )
    checkpoints.close()
    assert log.keys()[0] == "eval_start"
    assert accuracies(log) == accuracies(log_of_all)
    assert dataclasses.replace(outcome, state=None) == dataclasses.replace(expected, state=None)
    assert_equal_states(outcome.state, expected.state)
