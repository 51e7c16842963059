"""MobileNet and ShuffleNet as workloads: every layout against one device, closed runs on made-up data."""

import functools

import jax
import numpy as np
import pytest

from mlperf_jax import prepare
from mlperf_jax.config import base_config
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout, single_device_layout
from mlperf_jax.results.events import read_events
from mlperf_jax.training.engine import Engine
from tests import door, toys
from tests.workloads.small_mobile import SmallMobileNet, SmallShuffleNet, SmallShuffleNetV1

STEPS, BATCH = 10, 8


@functools.cache
def trained(cls, strategy):
    """Losses and the state after ten steps from one initial state, in float64."""
    with jax.enable_x64(True):
        layout = make_layout(STRATEGIES[strategy]) if strategy else single_device_layout()
        engine = Engine(toys.make(cls, "float64", batch_size=BATCH), layout)
        engine.compile("train_step", *(() if strategy else ("init",)))
        start = initial(cls) if strategy else jax.device_get(engine.init(1))
        state = jax.device_put(start, jax.tree.map(lambda x: x.sharding, engine.state))
        batches = engine.workload.dataset.train_batches(
            seed=1, batch_size=BATCH, start_step=0, rows=engine.rows
        )
        losses = []
        for _ in range(STEPS):
            state, metrics = engine.train(state, engine.place(next(batches), engine.batch), steps=1)
            losses.append(float(metrics["loss"]))
        batches.close()
        return losses, jax.device_get(state), start


def initial(cls):
    return trained(cls, None)[2]


@pytest.mark.parametrize("strategy", ["dp", "zero1", "fsdp", "tp", "fsdp_tp", "spatial"])
@pytest.mark.parametrize("cls", [SmallMobileNet, SmallShuffleNet])
def test_ten_steps_agree_with_one_device_in_float64(cls, strategy):
    agree(cls, strategy)


def test_grouped_products_agree_too():
    agree(SmallShuffleNetV1, "fsdp_tp")


def agree(cls, strategy):
    expected_losses, expected, _ = trained(cls, None)
    losses, state, _ = trained(cls, strategy)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    for part in ("params", "model_state", "opt_state"):
        for a, b in zip(jax.tree.leaves(state[part]), jax.tree.leaves(expected[part]), strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert np.abs(a - b).max() <= 1e-9 * max(np.abs(b).max(), 1e-6)


@pytest.mark.parametrize("workload", ["mobilenet", "shufflenet"])
def test_a_closed_run_on_made_up_data(workload, tmp_path):
    """The whole network at 224 x 224, cut in batch and epochs."""
    names = (f"--workload={workload}", "--preset=closed", f"--data_dir={tmp_path}")
    assert prepare.main([*names, "--fake=8"]) == 0
    cuts = (
        "data.fake=8",
        "batch_size=4",
        "eval_batch_size=1",
        "model.bn_span=2",
        "eval_every_epochs=1",
        "eval_offset_epochs=1",
        "max_epochs=1",
    )
    flags = (f"--config.{cut}" for cut in cuts)
    ended = door.run(tmp_path, *names, "--platform=cpu", *flags, **door.LIGHTLY)
    assert ended.returncode in (0, 1), ended.stderr
    (log,) = door.logs(tmp_path / "results", "closed")
    events = read_events(log)
    assert door.values(events, "submission_benchmark") == [workload]
    assert door.values(events, "opt_name") == ["sgd"] and door.values(events, "global_batch_size") == [4]
    assert door.values(events, "quality_target") == [base_config(workload, "closed").target]
