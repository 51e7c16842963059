"""The loop, unchanged, under workloads of every kind: its schedule, its log, its ends."""

import io
import math
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from mlperf_jax import registry
from mlperf_jax.errors import Stopped, UserError
from mlperf_jax.goals import Goal
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout, single_device_layout
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.events import NullLog, read_events
from mlperf_jax.rounds import published_curves
from mlperf_jax.training import loop, progress
from mlperf_jax.training.engine import Engine
from mlperf_jax.training.loop import Session, train
from mlperf_jax.training.profile import Profile
from mlperf_jax.training.progress import Progress
from mlperf_jax.training.stop import StopSignal
from mlperf_jax.workload import Notes
from tests import door, toys

SMALL = {"model__stages": (1,), "model__width": 8}


class Log(NullLog):
    """Keeps what is logged."""

    def __init__(self):
        self.lines = []

    def start(self, key, value=None, metadata=None, **_):
        self.lines.append((key, value, metadata))

    end = event = start

    def keys(self):
        return [key for key, _, _ in self.lines]


def session(engine, log=None):
    workload = engine.workload
    progress = Progress(
        total_steps=list(workload.blocks())[-1].stop,
        batch_size=workload.batch_size,
        num_train=workload.num_train,
        goals=workload.goals,
    )
    return Session(engine, Notes(log or Log()), progress, None, StopSignal(), Profile(None))


def engine_of(workload, strategy=None):
    layout = make_layout(STRATEGIES[strategy]) if strategy else single_device_layout()
    engine = Engine(workload, layout, steps_per_dispatch=workload.config.steps_per_dispatch)
    engine.compile()
    return engine


def assert_equal_states(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def resnet():
    """Compiled for three steps a dispatch as well as for one, which is in use."""
    with jax.enable_x64(True):
        engine = engine_of(toys.make(toys.SmallResNet, "float64", **SMALL, steps_per_dispatch=3))
    engine.steps_per_dispatch = 1
    return engine


@pytest.fixture(scope="module")
def sparse():
    """On eight devices, for four steps a dispatch as well as for one."""
    with jax.enable_x64(True):
        return engine_of(toys.make(toys.SparseTable, "float64", steps_per_dispatch=4), "fsdp")


# When it evaluates.


class Paper(toys.SparseTable):
    """Only its numbers are asked."""

    def __init__(self, num_train, **numbers):
        config = ConfigDict(numbers | {"steps_per_dispatch": 1, "num_train": num_train})
        super().__init__(config, POLICIES["float32"], data_dir=Path("/nonexistent"))

    @property
    def num_train(self):
        return self.config.num_train


epochs = st.integers(1, 24).map(lambda quarters: quarters / 4)


@given(
    num_train=st.integers(1, 200),
    batch_size=st.integers(1, 64),
    offset=st.one_of(st.just(0), epochs),
    every=epochs,
    most=epochs,
)
def test_blocks_end_with_the_steps_that_complete_the_epochs_due(num_train, batch_size, offset, every, most):
    """Walks through the run step by step, looking after each whether an evaluation is due."""
    paper = Paper(
        num_train,
        batch_size=batch_size,
        eval_offset_epochs=offset,
        eval_every_epochs=every,
        max_epochs=most,
    )
    due, stops, step = offset or every, [], 0
    while not stops or stops[-1] * batch_size < most * num_train:
        step += 1
        seen = step * batch_size
        if seen >= due * num_train or seen >= most * num_train:
            stops.append(step)
        while seen >= due * num_train:
            due += every
    blocks = list(paper.blocks())
    assert [block.stop for block in blocks] == stops
    assert [block.start for block in blocks] == [0, *stops[:-1]]
    assert [block.index for block in blocks] == list(range(len(stops)))
    for block in blocks:
        assert math.isclose(block.first_epoch, block.start * batch_size / num_train)
        assert math.isclose(block.epochs, (block.stop - block.start) * batch_size / num_train)


# What it logs, and how it ends.


@pytest.mark.parametrize(("late", "said"), [(1, "waiting for input 25% of the time"), (0.1, "")])
def test_the_line_says_when_a_run_waits_for_input(resnet, monkeypatch, late, said):
    """Steps that take three seconds, after batches that are late by one, or by a tenth, which is not worth a word."""
    now = [1000.0]
    clock = types.SimpleNamespace(time=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    data, step = resnet.workload.data, resnet.train

    def late_data(*arguments):
        state, batches = data(*arguments)
        return state, (batch for batch in batches if passed(late))

    def passed(seconds):
        now[0] += seconds
        return True

    def slow_step(*arguments, **named):
        return passed(3) and step(*arguments, **named)

    monkeypatch.setattr(resnet.workload, "data", late_data)
    monkeypatch.setattr(resnet, "train", slow_step)
    stream, told = io.StringIO(), session(resnet)
    told.progress = Progress(
        total_steps=10, batch_size=32, num_train=104, goals=resnet.workload.goals, stream=stream, interval=0
    )
    train(told, resnet.init(1), 0)
    steps = [line for line in stream.getvalue().splitlines() if "loss" in line and "/s" in line]
    assert len(steps) == 9 and [line for line in steps if "waiting" in line] == (steps if said else [])
    assert said in steps[-1]


def test_log_of_a_run_that_reaches_no_target(resnet):
    log = Log()
    outcome = train(session(resnet, log), resnet.init(1), 0)
    assert (outcome.status, outcome.step) == ("aborted", 10)
    assert outcome.reason == "the target 2.0 was not reached"
    block = ["block_start", "tracked_stats", "block_stop", "eval_start", "eval_accuracy", "eval_stop"]
    assert log.keys() == block * 3
    done = [metadata["epoch_num"] for key, _, metadata in log.lines if key == "eval_accuracy"]
    assert done == [step * 32 / 104 for step in (4, 7, 10)]
    first = [metadata["first_epoch_num"] for key, _, metadata in log.lines if key == "block_start"]
    assert first == [1 + step * 32 / 104 for step in (0, 4, 7)]
    assert outcome.quality == [value for key, value, _ in log.lines if key == "eval_accuracy"][-1]


def test_target_ends_the_run(resnet, monkeypatch):
    monkeypatch.setattr(type(resnet.workload), "goals", (Goal("quality", 0.0),))
    log = Log()
    outcome = train(session(resnet, log), resnet.init(1), 0)
    assert (outcome.status, outcome.step, outcome.reason) == ("success", 4, "")
    assert log.keys().count("eval_accuracy") == 1


def test_the_log_says_where_published_runs_were(resnet, monkeypatch):
    """As the workload says, which is asked for the steps done."""
    monkeypatch.setattr(type(resnet.workload), "goals", (Goal("quality", 0.0),))
    asked = []

    def told(step):
        asked.append(step)
        return published_curves.beside("llama31_8b", 16, 4e-4, 24_576)

    monkeypatch.setattr(resnet.workload, "published_runs", told)
    log = Log()
    outcome = train(session(resnet, log), resnet.init(1), 0)
    assert asked == [outcome.step]
    assert log.keys()[-3:] == ["eval_accuracy", "published_runs", "eval_stop"]
    _, value, metadata = log.lines[-2]
    assert value == {"runs": 140, "least": 4.1827, "median": pytest.approx(4.2558), "most": 4.3643}
    assert metadata == {"samples_count": 24_576, "batch_size": 16, "base_learning_rate": 4e-4}


def test_rerun_is_bit_identical_and_another_seed_is_not(resnet):
    first, second, other = (train(session(resnet), resnet.init(seed), 0) for seed in (1, 1, 2))
    assert_equal_states(first.state, second.state)
    assert first.quality == second.quality
    assert not np.array_equal(
        first.state["params"]["head"]["kernel"], other.state["params"]["head"]["kernel"]
    )


def test_run_goes_on_from_the_middle_of_a_block(resnet):
    """What a resumed run does: it continues the block, whose start was logged before."""
    whole = train(session(resnet), resnet.init(1), 0).state
    state, middle = resnet.init(1), 5
    batches = resnet.workload.dataset.train_batches(seed=1, batch_size=32, start_step=0, rows=resnet.rows)
    for _ in range(middle):
        state, _ = resnet.train(state, resnet.place(next(batches), resnet.batch), steps=1)
    batches.close()
    log = Log()
    outcome = train(session(resnet, log), state, middle)
    assert_equal_states(outcome.state, whole)
    assert log.keys().count("block_start") == 1
    assert log.keys().count("block_stop") == 2


def test_steps_per_dispatch_leave_the_numbers_as_they_are(resnet, monkeypatch):
    """Blocks of 4, 3 and 3 steps in threes, one left over; XLA may sum in another order inside a scan."""
    expected = train(session(resnet), resnet.init(1), 0)
    monkeypatch.setattr(resnet, "steps_per_dispatch", 3)
    outcome = train(session(resnet), resnet.init(1), 0)
    assert (outcome.step, outcome.quality) == (expected.step, expected.quality)
    for a, b in zip(jax.tree.leaves(outcome.state), jax.tree.leaves(expected.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_loss_that_is_not_finite_aborts_with_its_step(sparse, monkeypatch, count, loss):
    """Five steps are fine; of the scan of steps 5 to 8 the second is to be named."""

    def poisoned(engine, state, block, start, notes):
        batches = [dict(batch) for batch in sparse.workload._batches(engine.rows, start, block.stop)]
        batches[5]["rating"] = np.full_like(batches[5]["rating"], loss)
        return state, iter(batches)

    monkeypatch.setattr(sparse, "steps_per_dispatch", count)
    monkeypatch.setattr(sparse.workload, "data", poisoned)
    log = Log()
    outcome = train(session(sparse, log), sparse.init(1), 0)
    assert (outcome.status, outcome.step, outcome.state) == ("aborted", 6, None)
    assert outcome.reason == f"the loss of step 6 is {loss}"
    assert log.keys() == ["block_start"]


class Stop:
    """Asks the run to stop when it is asked for the `nth` time."""

    status = 143

    def __init__(self, nth):
        self.left = nth

    def requested(self):
        self.left -= 1
        return self.left == 0


class Kept:
    """Stands for the checkpoints: keeps the steps at which they were saved, and the last state."""

    def __init__(self):
        self.steps = []

    def save(self, state, position):
        self.steps.append(position.step)
        self.state = jax.device_get(state)
        self.on_disk = False

    def wait(self):
        self.on_disk = True


@pytest.mark.parametrize(("nth", "step"), [(1, 3), (2, 4), (3, 7)])
def test_stop_is_heeded_between_dispatches_and_between_blocks(resnet, monkeypatch, nth, step):
    """Dispatches end at steps 3 and 4, then 7, then 10: the later blocks are one dispatch each."""
    whole = train(session(resnet), resnet.init(1), 0)
    monkeypatch.setattr(resnet, "steps_per_dispatch", 3)
    stopped = session(resnet)
    stopped.stop, stopped.checkpoints = Stop(nth), Kept()
    with pytest.raises(Stopped, match=f"Stopped at step {step}; the same command continues") as caught:
        train(stopped, resnet.init(1), 0)
    assert caught.value.status == 143
    assert stopped.checkpoints.steps[-1] == step
    assert stopped.checkpoints.on_disk  # what is told to continue from there can
    state = jax.device_put(stopped.checkpoints.state, jax.tree.map(lambda x: x.sharding, resnet.state))
    outcome = train(session(resnet), state, step)
    assert outcome.quality == whole.quality
    assert_equal_states(outcome.state, train(session(resnet), resnet.init(1), 0).state)


def test_data_phase_that_ends_early_is_named(resnet, monkeypatch):
    def short(engine, state, block, start, notes):
        return state, iter([])

    monkeypatch.setattr(resnet.workload, "data", short)
    with pytest.raises(ValueError, match="ended 4 batches short of its block"):
        train(session(resnet), resnet.init(1), 0)


# Workloads of other kinds.


@pytest.mark.parametrize("name", ["SparseTable", "Nim"])
def test_toys_learn_through_the_unchanged_loop_and_agree_in_every_layout(name):
    cls = registry.find(f"tests.toys:{name}", registry.Workload)
    results = []
    for strategy, count in ((None, 1), ("fsdp", 4)):
        engine = engine_of(toys.make(cls, "float64", steps_per_dispatch=count), strategy)
        results.append(train(session(engine), engine.init(3), 0))
    alone, spread = results
    assert alone.status == spread.status == "success"
    assert alone.quality >= engine.workload.config.target
    assert (alone.step, alone.quality) == (spread.step, pytest.approx(spread.quality, rel=1e-9))
    for a, b in zip(jax.tree.leaves(alone.state), jax.tree.leaves(spread.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["SparseTable", "Nim"])
def test_toys_go_through_the_door(tmp_path, name):
    results = tmp_path / "results"
    done = door.run(door.ROOT, f"--workload=tests.toys:{name}", "--seed=3", f"--results_dir={results}")
    assert done.returncode == 0, done.stderr
    (log,) = door.logs(results)
    assert str(log) in done.stdout
    assert [event.key for event in read_events(log)][-1] == "run_stop"


def test_sparse_step_changes_only_the_rows_it_touched(sparse):
    engine, workload = sparse, sparse.workload
    assert engine.state["table"].sharding.spec[0] == "data"
    state = engine.init(3)
    expected = np.array(state["table"], np.float64)
    before = expected.copy()
    batch = next(workload._batches(engine.rows, 0, 1))
    for user, item, rating in zip(
        batch["user"], workload.users + batch["item"], batch["rating"], strict=True
    ):
        error = before[user] @ before[item] - rating
        expected[user] -= workload.config.lr * error * before[item]
        expected[item] -= workload.config.lr * error * before[user]
    state, _ = engine.train(state, engine.place(batch, engine.batch), steps=1)
    after = np.asarray(state["table"])
    touched = np.unique(np.concatenate([batch["user"], workload.users + batch["item"]]))
    untouched = np.setdiff1d(np.arange(len(after)), touched)
    assert untouched.size > 20
    np.testing.assert_array_equal(after[untouched], before[untouched])
    np.testing.assert_allclose(after, expected, rtol=1e-12, atol=1e-12)


def test_window_of_self_play_is_state_and_is_not_made_twice():
    """A block that is continued finds its games in the window; a new block plays new ones."""
    engine = engine_of(toys.make(toys.Nim))
    block = next(engine.workload.blocks())
    state, _ = engine.workload.data(engine, engine.init(3), block, block.start)
    window = jax.device_get(state["window"])
    real = window["real"] > 0
    assert engine.workload.games <= real.sum() <= engine.workload.num_train
    assert ((window["take"] <= window["heap"]) | ~real).all()
    state, _ = engine.workload.data(engine, state, block, block.start + 1)
    assert_equal_states(state["window"], window)


def test_registry_refuses_what_is_no_workload():
    with pytest.raises(UserError, match="is no subclass of mlperf_jax.workload.Workload"):
        registry.find("tests.toys:make", registry.Workload)
    with pytest.raises(UserError, match="cannot be loaded .*Missing"):
        registry.find("tests.toys:Missing", registry.Workload)
    with pytest.raises(UserError, match="did you mean resnet50"):
        registry.find("resnet", registry.Workload)
