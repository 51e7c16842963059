"""What the seam carries besides the six minis: falling and several goals, buckets, frozen and averaged parameters."""

import contextlib
import itertools

import jax
import numpy as np
import pytest

from mlperf_jax.errors import Stopped, UserError
from mlperf_jax.goals import Direction, Goal, reached
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout, single_device_layout
from mlperf_jax.results.events import read_events
from mlperf_jax.training import run
from mlperf_jax.training.checkpoints import Checkpoints
from mlperf_jax.training.engine import Engine
from mlperf_jax.training.frozen import fingerprint
from mlperf_jax.training.loop import train
from mlperf_jax.training.stop import StopSignal
from tests import toys, toys_text
from tests.toys_text import NUM_TRAIN
from tests.training.test_loop import Log, session


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def engine_of(strategy=None, **changes):
    workload = toys.make(toys_text.Tagger, "float64", **changes)
    layout = make_layout(STRATEGIES[strategy]) if strategy else single_device_layout()
    engine = Engine(workload, layout, steps_per_dispatch=workload.config.steps_per_dispatch)
    engine.compile()
    return engine


@pytest.fixture(scope="module")
def engine():
    with jax.enable_x64(True):
        return engine_of()


def arrays(state):
    return {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)
    }


# Goals.


def test_a_falling_figure_is_reached_from_above():
    error = Goal("wer", 0.05, Direction.ERROR)
    assert error.reached(0.05) and not error.reached(0.95) and not error.reached(float("nan"))
    assert not Goal("auc", 0.8).reached(float("nan"))


def test_a_share_of_a_figure_by_its_direction():
    assert Goal("accuracy", 0).share(0.8, 0.99).target == pytest.approx(0.792)
    assert Goal("wer", 0, Direction.ERROR).share(0.1, 0.99).target == pytest.approx(1 - 0.99 * 0.9)
    assert Goal("perplexity", 0, Direction.LOSS).share(3.3, 0.99).target == pytest.approx(3.333)


def test_several_goals_are_reached_by_one_state(engine):
    goals = engine.workload.goals
    assert not reached(goals, {"error": 0.05, "loss": 0.9})
    assert not reached(goals, {"error": 0.2, "loss": 0.1})
    log = Log()
    outcome = train(session(engine, log), engine.init(1), 0)
    evaluations = [value for key, value, _ in log.lines if key == "eval_accuracy"]
    assert outcome.status == "success" and evaluations[-1] == outcome.quality
    for found in evaluations[:-1]:
        assert found["error"] > 0.1 or found["loss"] > 0.8
    assert evaluations[-1]["error"] <= 0.1 and evaluations[-1]["loss"] <= 0.8
    assert len(evaluations) > 2  # a falling figure is not won at once


def test_a_log_may_count_samples(engine):
    log = Log()
    train(session(engine, log), engine.init(1), 0)
    of = {key: metadata for key, _, metadata in log.lines}  # the last of each
    steps = [metadata["step"] for key, _, metadata in log.lines if key == "tracked_stats"][-1]
    assert of["eval_accuracy"] == of["eval_start"] == of["eval_stop"] == {"samples_count": 32 * steps}
    assert of["block_start"] == of["block_stop"] == {"samples_count": NUM_TRAIN}


# Buckets.


def test_every_bucket_has_its_program_and_a_dispatch_holds_one(engine):
    assert {"train_step[short]", "train_step[long]"} <= engine.compile_seconds.keys()
    many = engine_of(steps_per_dispatch=2)
    assert {"train_steps[short]", "train_steps[long]", "train_step[long]"} <= many.compile_seconds.keys()
    one, two = (train(session(e), e.init(2), 0) for e in (engine, many))
    assert one.quality == pytest.approx(two.quality, rel=1e-12) and one.step == two.step


def test_micro_batches_of_padded_text_are_the_whole_batch(engine):
    """Four of unequal weight against one."""
    whole, parts = engine, engine_of(gradient_accumulation_steps=4)
    states = []
    for e in (whole, parts):
        state, batches = e.workload.data(e, e.init(3), next(iter(e.workload.blocks())), 0)
        for bucket, batch in list(batches)[:6]:
            state, _ = e.train(state, e.place(batch, e.buckets[bucket]), steps=1, bucket=bucket)
        states.append(arrays(state))
    for name, expected in states[0].items():
        np.testing.assert_allclose(states[1][name], expected, rtol=1e-9, atol=1e-12, err_msg=name)


# Frozen and averaged parameters.


def test_frozen_parameters_have_no_gradient_no_slots_and_stay(engine):
    state = engine.init(4)
    before = np.asarray(state["frozen"]["base"])
    assert "base" not in state["params"] and "base" not in arrays(state["opt_state"])
    outcome = train(session(engine), state, 0)
    np.testing.assert_array_equal(outcome.state["frozen"]["base"], before)
    assert "frozen" not in engine.saved(outcome.state)


def test_frozen_parameters_are_sharded_by_their_own_axes():
    engine = engine_of("fsdp", width=512)
    (base,) = jax.tree.leaves(engine.state["frozen"])
    assert base.sharding.shard_shape(base.shape) != base.shape


def test_the_average_follows_the_parameters(engine):
    state = engine.init(5)
    average = np.asarray(state["params"]["head"])
    _, batches = engine.workload.data(engine, state, next(iter(engine.workload.blocks())), 0)
    for bucket, batch in list(batches)[:5]:
        state, _ = engine.train(state, engine.place(batch, engine.buckets[bucket]), steps=1, bucket=bucket)
        average = 0.9 * average + 0.1 * np.asarray(state["params"]["head"])
    np.testing.assert_allclose(state["ema"]["head"], average, rtol=1e-12)
    assert engine.workload.served_state(state)["params"] is state["ema"]


def test_a_fingerprint_sees_every_bit_and_no_layout():
    random = np.random.default_rng(0)
    tree = {
        "a": random.normal(size=(64, 48)).astype(np.float32),
        "b": random.integers(0, 9, 5).astype(np.int8),
    }
    found = fingerprint(tree)
    layout = make_layout(STRATEGIES["fsdp"])
    split = jax.tree.map(lambda x: jax.device_put(x, layout.param_sharding(x.shape, None)), tree)
    assert fingerprint(split) == found and fingerprint({}) == ""
    for _ in range(20):
        other = {name: x.copy() for name, x in tree.items()}
        words = other["a"].view(np.uint32)
        words[random.integers(64), random.integers(48)] ^= np.uint32(1 << random.integers(32))
        assert fingerprint(other) != found
    swapped = tree | {"a": tree["a"][::-1]}
    assert fingerprint(swapped) != found


# Layouts.


@pytest.mark.parametrize("strategy", ["dp", "zero1", "fsdp", "tp", "fsdp_tp"])
def test_layouts_agree_with_one_device(engine, strategy):
    other = engine_of(strategy)
    states = []
    for e in (engine, other):
        state = e.init(6)
        _, batches = e.workload.data(e, state, next(iter(e.workload.blocks())), 0)
        for bucket, batch in list(batches)[:10]:
            state, _ = e.train(state, e.place(batch, e.buckets[bucket]), steps=1, bucket=bucket)
        states.append(arrays(state))
    for name, expected in states[0].items():
        np.testing.assert_allclose(states[1][name], expected, rtol=1e-9, atol=1e-12, err_msg=name)


# Through the train command.


def command(folder, runs=1, **changes):
    """Trains for two epochs at most; returns the run's folder and the status."""
    workload = toys.make(toys_text.Tagger, "float64", max_epochs=2, target__error=0.0, **changes)
    options = run.TrainOptions("mini", folder, system="here", seed=7, runs=runs, command=("train",))
    status = run.train_command(workload, single_device_layout(), options)
    return folder / "mini" / "runs" / "here" / "toy_tagger" / "run_0", status


def saved(folder):
    return Checkpoints(folder / "checkpoints"), Engine(
        toys.make(toys_text.Tagger, "float64"), single_device_layout()
    )


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole, status = command(tmp_path / "whole")
    assert status == 1
    asked = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "requested", lambda self: next(asked) > 8)
        with pytest.raises(Stopped):
            command(tmp_path / "stopped")
    resumed, _ = command(tmp_path / "stopped")
    states = []
    for folder in (whole, resumed):
        checkpoints, engine = saved(folder)
        with contextlib.closing(checkpoints):
            states.append(arrays(checkpoints.restore(engine.saved(engine.state))))
    assert not [name for name in states[0] if "frozen" in name]
    for name, expected in states[0].items():
        np.testing.assert_array_equal(states[1][name], expected, err_msg=name)
    logs = [
        read_events(folder.parents[3] / "results/here/toy_tagger/result_0.txt") for folder in (whole, resumed)
    ]
    told = [{e.key: e.value for e in log if e.key in ("eval_accuracy", "frozen_weights")} for log in logs]
    assert told[0] == told[1] and told[0]["frozen_weights"]["source"] == "drawn from the seed"
    assert [e.key for e in logs[1]].count("resumed") == 1


def test_a_run_refuses_other_frozen_weights_than_it_began_with(tmp_path, monkeypatch):
    asked = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "requested", lambda self: next(asked) > 8)
        with pytest.raises(Stopped):
            command(tmp_path)
    drawn = toys_text.Tagger.frozen_state
    monkeypatch.setattr(
        toys_text.Tagger, "frozen_state", lambda self, struct, seed: drawn(self, struct, seed + 1)
    )
    with pytest.raises(UserError, match="is not what it began with"):
        command(tmp_path)


def test_a_series_of_runs_that_was_stopped_is_finished_and_no_more(tmp_path, monkeypatch, capsys):
    """Three runs, stopped in the third: the same command makes that one, and the next one three more."""
    asked = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "requested", lambda self: next(asked) > 40)
        with pytest.raises(Stopped):
            command(tmp_path, runs=3)
    folder = tmp_path / "mini" / "runs" / "here" / "toy_tagger"
    assert len(list(folder.glob("run_*"))) == 3
    command(tmp_path, runs=3)
    assert len(list(folder.glob("run_*"))) == 3
    told = capsys.readouterr().out
    assert "3 with this config in" in told and "of which this command made 1" in told
    assert "2 of 10 runs" in told and "result_2.txt was resumed and does not count" in told
    command(tmp_path, runs=3)
    assert len(list(folder.glob("run_*"))) == 6
