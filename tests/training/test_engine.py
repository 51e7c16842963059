"""Compiled from shapes before the clock starts: nothing compiles after, nothing is copied twice."""

import time

import jax
import numpy as np
import pytest

from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout, single_device_layout
from mlperf_jax.results import events
from mlperf_jax.training.engine import Engine
from mlperf_jax.training.run import TrainOptions, train_command
from tests import toys

SMALL = {"model__stages": (1,), "model__width": 8}


class Untouchable(toys.SmallResNet):
    """Has shapes, but no examples before they may be read."""

    forbidden = True

    def data(self, engine, state, block, start, notes):
        assert not self.forbidden
        return super().data(engine, state, block, start, notes)


@pytest.fixture(scope="module")
def engine():
    """Eight devices, and three steps a dispatch as well as one."""
    workload = toys.make(toys.SmallResNet, **SMALL)
    engine = Engine(workload, make_layout(STRATEGIES["zero1"]), steps_per_dispatch=3)
    engine.compile()
    return engine


def batches(engine, count):
    stream = engine.workload.dataset.train_batches(seed=1, batch_size=32, start_step=0, rows=engine.rows)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


@pytest.mark.parametrize("steps", [1, 3])
def test_state_is_donated_and_stays_in_its_place(engine, steps):
    state = engine.init(1)
    before = jax.tree.leaves(state)
    addresses = {shard.data.unsafe_buffer_pointer() for leaf in before for shard in leaf.addressable_shards}
    if steps == 1:
        batch = engine.place(batches(engine, 1)[0], engine.batch)
    else:
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *batches(engine, 3))
        batch = engine.place(stacked, engine.stacks[""])
    state, metrics = engine.train(state, batch, steps=steps)
    after = jax.tree.leaves(state)
    assert all(leaf.is_deleted() for leaf in before)
    assert metrics["loss"].shape == (() if steps == 1 else (3,))
    for leaf, struct in zip(after, jax.tree.leaves(engine.state), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (struct.shape, struct.dtype, struct.sharding)
    reused = {shard.data.unsafe_buffer_pointer() for leaf in after for shard in leaf.addressable_shards}
    assert reused <= addresses, "a result lies in new memory"


def test_evaluation_totals_are_donated_and_count_every_example_once(engine):
    totals = engine.run("eval_init")
    state = engine.init(1)
    result = engine.workload.evaluate(engine, state)
    assert result["count"] == engine.workload.num_eval == 44  # batches of 32: the second is padded
    batch = next(engine.workload.dataset.eval_batches(batch_size=32, rows=slice(0, 32)))
    placed = engine.place(batch, engine.workload.eval_batch_struct(engine.layout))
    engine.run("eval_step", totals, {k: state[k] for k in ("params", "model_state")}, placed)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(totals))
    assert not state["params"]["head"]["kernel"].is_deleted()


def test_batch_of_another_shape_is_refused(engine):
    (batch,) = batches(engine, 1)
    with pytest.raises(ValueError, match=r"shape \(16,\) where \(32,\) was compiled"):
        engine.place(jax.tree.map(lambda x: x[:16], batch), engine.batch)


def test_rows_are_placed_where_the_layout_says(engine):
    (batch,) = batches(engine, 1)
    placed = engine.place(batch, engine.batch)
    np.testing.assert_array_equal(placed["id"], batch["id"])
    assert [shard.data.shape for shard in placed["image"].addressable_shards] == [(4, 8, 8, 1)] * 8


def test_seeds_are_taken_modulo_the_width_of_a_seed(engine):
    a, b = engine.init(5), engine.init(5 + 2**32)
    assert int(a["seed"]) == int(b["seed"]) == 5
    np.testing.assert_array_equal(a["params"]["head"]["kernel"], b["params"]["head"]["kernel"])


@pytest.fixture
def compilations():
    """When jax traced, lowered or compiled something, in seconds since 1970."""
    times = []

    def heard(event, seconds, **_):
        if event.startswith("/jax/core/compile/"):
            times.append(time.time())

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield times
    jax.monitoring.unregister_event_duration_listener(heard)


def test_nothing_compiles_and_no_data_is_touched_out_of_turn(tmp_path, compilations, monkeypatch):
    """A whole run with checkpoints, steps in groups and evaluations, watched from start to stop."""
    workload = toys.make(Untouchable, **SMALL, steps_per_dispatch=3)
    released = Engine.init

    def init(self, seed):
        monkeypatch.setattr(Untouchable, "forbidden", False)  # everything is compiled by now
        return released(self, seed)

    monkeypatch.setattr(Engine, "init", init)
    options = TrainOptions(preset="mini", results_dir=tmp_path, system="box", seed=1)
    assert train_command(workload, single_device_layout(), options) == 1
    log = events.read_events(tmp_path / "mini" / "results" / "box" / "resnet" / "result_0.txt")
    at = {event.key: event.time_ms / 1e3 for event in log}
    assert any(at["init_start"] <= when <= at["init_stop"] for when in compilations)
    late = [when - at["run_start"] for when in compilations if at["run_start"] + 1e-3 < when < at["run_stop"]]
    assert late == []
    (compile_time,) = [event for event in log if event.key == "compile_time"]
    assert set(compile_time.metadata["seconds"]) == {
        "init",
        "train_step",
        "train_steps",
        "eval_init",
        "eval_step",
    }
    assert compile_time.value == pytest.approx(sum(compile_time.metadata["seconds"].values()))
    assert compile_time.value <= at["init_stop"] - at["init_start"]
