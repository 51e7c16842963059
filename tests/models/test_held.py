"""Held kernels: the products of plain ones, and of int8 what half a scale lets them be off by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.mesh import single_device_layout
from mlperf_jax.precision import POLICIES
from models.decoder import DecoderConfig, DecoderLayer, held
from models.held import Held, hold


@pytest.mark.parametrize("rows", [1, 5, 80])
def test_products_are_those_of_plain_kernels(rows):
    """Of few rows, which CPUs multiply the other way round, and of many."""
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, rows, 12)), random.normal(size=(12, 7))
    with jax.enable_x64(True), layouts.use(single_device_layout()):
        found = jax.jit(lambda x: hold(jnp.asarray(kernel.T), "auto", "float64").product(x))(x)
    np.testing.assert_allclose(found, x @ kernel, rtol=1e-13, atol=1e-14)


def test_int8_is_off_by_half_a_scale_for_each_input():
    random = np.random.default_rng(1)
    x, kernel = random.normal(size=(40, 33)), random.normal(size=(33, 19)) * random.uniform(0, 3, size=19)
    kernel[:, 4] = 0
    with jax.enable_x64(True):
        int8 = hold(jnp.asarray(kernel.T), "int8", "float64")
        found = np.asarray(int8.product(jnp.asarray(x)))
        table = np.asarray(int8.rows(jnp.arange(19), "float64"))
    scale = np.abs(kernel).max(0) / 127
    assert int8.turned.dtype == jnp.int8 and np.abs(int8.turned).max() == 127
    bound = np.abs(x).sum(1)[:, None] * scale / 2
    off = np.abs(found - x @ kernel)
    assert (off <= bound * (1 + 1e-6) + 1e-12).all() and off.max() > bound.max() / 20
    assert (np.abs(table - kernel.T) <= scale[:, None] * (0.5 + 1e-6)).all() and not found[:, 4].any()


def test_what_kernels_are_held_in_is_named():
    with pytest.raises(ValueError, match="int4"):
        hold(jnp.ones((2, 2)), "int4", "float32")


@pytest.mark.parametrize("experts", [0, 4])
def test_all_kernels_of_a_layer_are_held_but_those_of_experts(experts):
    config = DecoderConfig(
        width=8, mlp_width=12, num_heads=4, num_key_heads=2, head_width=4, num_layers=1, num_experts=experts,
        num_chosen=experts and 2,
    )  # fmt: skip
    layer = DecoderLayer(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer)
    params = nnx.to_pure_dict(params)
    after = held(layer, params, "int8")
    paths = jax.tree_util.tree_flatten_with_path(after, is_leaf=lambda x: isinstance(x, Held))[0]
    names = {
        jax.tree_util.keystr(path, simple=True, separator=".") for path, x in paths if isinstance(x, Held)
    }
    expected = {f"attention.{name}.kernel" for name in ("query", "key", "value", "out")}
    assert names == expected | (set() if experts else {f"mlp.{n}.kernel" for n in ("gate", "up", "down")})
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 4, 4)), jnp.float32)
    plain, close = (nnx.merge(graph, one).attention.combine(x) for one in (params, after))
    np.testing.assert_allclose(close, plain, atol=0.02 * np.abs(plain).max())
