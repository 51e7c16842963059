"""Micro-batches and rematerialisation give the gradients of the plain step, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel import mesh
from mlperf_jax.training.engine import Engine
from mlperf_jax.training.gradients import gradients
from tests import toys


def loss(params, model_state, batch, key):
    """Two layers and a weighted mean over examples; the model's state counts the examples that it saw."""
    hidden = jnp.tanh(batch["x"] @ params["first"])
    errors = (hidden @ params["second"])[:, 0] - batch["y"]
    weight = batch["weight"]
    return (weight @ errors**2, weight.sum()), {"seen": model_state["seen"] + len(batch["y"])}


@pytest.fixture
def problem():
    with jax.enable_x64(True):
        random = np.random.default_rng(3)
        params = {
            "first": jnp.asarray(random.normal(size=(6, 8))),
            "second": jnp.asarray(random.normal(size=(8, 1))),
        }
        batch = {
            "x": jnp.asarray(random.normal(size=(24, 6))),
            "y": jnp.asarray(random.normal(size=24)),
            "weight": jnp.asarray(random.integers(0, 5, 24), float),  # no two micro-batches alike
        }
        yield params, {"seen": jnp.zeros(())}, batch, jax.random.key(0)


@pytest.mark.parametrize("strategy", ["dp", "fsdp"])
@pytest.mark.parametrize(("parts", "remat"), [(3, "none"), (1, "save_products"), (3, "save_nothing")])
def test_same_as_the_plain_gradient(problem, parts, remat, strategy):
    params, model_state, batch, key = problem

    def plain(*args):
        (total, weight), state = loss(*args)
        return total / weight, state

    (value, _), expected = jax.value_and_grad(plain, has_aux=True)(*problem)
    layout = mesh.make_layout(mesh.find_strategy(strategy))
    batch = {name: jax.device_put(x, layout.sharding(x.shape, ("batch",))) for name, x in batch.items()}

    def run(params, batch):
        return gradients(loss, params, model_state, batch, key, micro_batches=parts, remat=remat)

    with layouts.use(layout):
        mean, state, grads = jax.jit(run)(params, batch)
    np.testing.assert_allclose(mean, value, rtol=1e-13)
    assert state["seen"] == 24
    for name in params:
        np.testing.assert_allclose(grads[name], expected[name], rtol=1e-12, atol=1e-13)


def test_micro_batches_stay_where_their_rows_are(problem):
    """Every device cuts its own rows: nothing but gradients and the loss travels."""
    params, model_state, batch, key = problem
    layout = mesh.make_layout(mesh.find_strategy("dp"))
    structs = {name: layout.struct(x.shape, x.dtype, ("batch",)) for name, x in batch.items()}

    def run(params, batch):
        return gradients(loss, params, model_state, batch, key, micro_batches=3)

    with layouts.use(layout):
        text = jax.jit(run).lower(params, structs).compile().as_text()
    assert "all-reduce" in text
    assert not any(kind in text for kind in ("all-gather", "all-to-all", "collective-permute"))


def test_mistakes_get_a_sentence(problem):
    with pytest.raises(UserError, match="accumulation_steps=5 does not divide the batch of 24"):
        gradients(loss, *problem, micro_batches=5)
    with pytest.raises(UserError, match="no --config.remat=all"):
        gradients(loss, *problem, remat="all")


def test_the_default_step_takes_both():
    """A ResNet's running statistics see every micro-batch; rematerialising changes no number."""
    with jax.enable_x64(True):
        layout = mesh.single_device_layout()

        def step(**settings):
            workload = toys.make(
                toys.SmallResNet, "float64", batch_size=8, model__width=4, model__stages=(1,), **settings
            )
            workload.config.unlock()
            engine = Engine(workload, layout)
            state = workload.init(jnp.uint32(1))
            random = np.random.default_rng(0)
            batch = {
                name: jnp.asarray(random.integers(0, 9, s.shape), s.dtype) for name, s in engine.batch.items()
            }
            return jax.jit(workload.train_step)(state, batch)

        plain, again = step(), step(remat="save_products")
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)
        parts = step(gradient_accumulation_steps=2)
        assert np.isfinite(parts[1]["loss"])
        mean = plain[0]["model_state"]["norm"]["mean"]
        assert not np.allclose(parts[0]["model_state"]["norm"]["mean"], mean)  # two updates instead of one
