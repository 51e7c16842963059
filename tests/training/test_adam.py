"""Adam and LazyAdam against NumPy transcriptions of their equations, and the Transformer's schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from mlperf_jax.training import adam, optimizers
from mlperf_jax.training.schedules import rsqrt_with_warmup

STEPS = 20
SHAPES = {"embedding": (6, 3), "layer": {"kernel": (3, 4), "bias": (4,)}}


def random_gradients(seed):
    """Of the table only some rows are looked up at each step, one of them never."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(STEPS):
        tree = jax.tree.map(lambda s: random.normal(size=s), SHAPES, is_leaf=lambda x: isinstance(x, tuple))
        tree["embedding"][random.random(6) < 0.5] = 0
        tree["embedding"][4] = 0
        found.append(tree)
    return found


def transcribed(w, gradients, rates, beta1, beta2, epsilon, lazy):
    """A row at a time, in float64: TensorFlow's own form of the equations."""
    w, m, v = w.copy(), np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        rows = [n for n in range(len(g)) if not lazy or np.any(g[n] != 0)]
        rate = rate * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        for n in rows:
            m[n] = beta1 * m[n] + (1 - beta1) * g[n]
            v[n] = beta2 * v[n] + (1 - beta2) * g[n] ** 2
            w[n] = w[n] - rate * m[n] / (np.sqrt(v[n]) + epsilon)
    return w


@pytest.mark.parametrize("name", ["adam", "lazy_adam"])
@pytest.mark.parametrize(("seed", "beta2", "epsilon"), [(0, 0.997, 1e-9), (1, 0.92, 1e-2)])
def test_twenty_steps_equal_numpys(name, seed, beta2, epsilon):
    config = ConfigDict(dict(name=name, beta1=0.9, beta2=beta2, epsilon=epsilon))
    gradients = random_gradients(seed)
    with jax.enable_x64(True):
        schedule = rsqrt_with_warmup(0.3, 4)
        start = jax.tree.map(lambda g: jnp.asarray(g + 1), gradients[0])
        optimizer = optimizers.make_optimizer(config, schedule, optimizers.decay_mask(start))
        params, state = start, optimizer.init(start)
        for g in gradients:
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, g), state, params)
            params = optax.apply_updates(params, updates)
        rates = [float(schedule(step)) for step in range(STEPS)]
    for path, w in jax.tree_util.tree_leaves_with_path(start):
        of_path = [dict(jax.tree_util.tree_leaves_with_path(g))[path] for g in gradients]
        lazy = name == "lazy_adam" and path[-1].key == "embedding"
        expected = transcribed(np.asarray(w), of_path, rates, 0.9, beta2, epsilon, lazy)
        np.testing.assert_allclose(
            dict(jax.tree_util.tree_leaves_with_path(params))[path], expected, rtol=1e-12
        )
    assert int(state.count) == STEPS
    np.testing.assert_array_equal(params["embedding"][4], start["embedding"][4])  # never looked up


def test_state_tells_which_arrays_follow_the_parameters():
    optimizer = adam.adam(lambda step: 0.1, beta1=0.9, beta2=0.98, epsilon=1e-9)
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )
    names = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), shapes)
    placed = optax.tree.map_params(
        optimizer,
        lambda _, name: name,
        jax.eval_shape(optimizer.init, shapes),
        names,
        transform_non_params=lambda _: "scalar",
    )
    assert placed == adam.AdamState("scalar", names, names)


@settings(max_examples=100, deadline=None)
@given(scale=st.floats(1e-3, 10), warmup=st.integers(1, 20_000), step=st.integers(0, 100_000))
def test_the_schedule_is_the_references(scale, warmup, step):
    expected = scale * min(1.0, step / warmup) / np.sqrt(max(step, warmup))
    np.testing.assert_allclose(rsqrt_with_warmup(scale, warmup)(step), expected, rtol=1e-5)


def test_a_schedule_needs_a_warm_up():
    with pytest.raises(ValueError, match="warmup_steps 0 must be > 0"):
        rsqrt_with_warmup(1.0, 0)
