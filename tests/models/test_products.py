"""A product with a kernel on CPU has the numbers of the plain one, its gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.mesh import single_device_layout
from mlperf_jax.precision import POLICIES
from models.layers import Conv
from models.products import product


def with_gradients(function, *arrays):
    """Value and gradients of a random product with it, under the CPU's layout."""

    def loss(*arrays):
        y = function(*arrays)
        weights = np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)
        return (y * weights).sum(), y

    with layouts.use(single_device_layout()):
        return jax.jit(jax.grad(loss, tuple(range(len(arrays))), has_aux=True))(*arrays)


@pytest.mark.parametrize("rows", [(6,), (2, 3, 5)])
@pytest.mark.parametrize(("features_in", "features_out"), [(4, 9), (9, 4), (5, 5)])
def test_product_and_its_gradients(rows, features_in, features_out):
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = random.normal(size=(*rows, features_in)), random.normal(size=(features_in, features_out))
        ours, theirs = (with_gradients(f, x, kernel) for f in (product, jnp.dot))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, theirs)


def test_a_table_may_be_turned_around():
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, table = random.normal(size=(2, 5, 3)), random.normal(size=(8, 3))
        ours, theirs = (with_gradients(lambda x, t, f=f: f(x, t.T), x, table) for f in (product, jnp.dot))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, theirs)


@pytest.mark.parametrize("size", [6, 7])
def test_a_strided_convolution_of_one_pixel_is_a_product(size):
    """On CPU, where outside of a layout it is a convolution."""
    with jax.enable_x64(True):
        conv = Conv(3, 5, 1, stride=2, policy=POLICIES["float64"], rngs=nnx.Rngs(0))
        x = np.random.default_rng(0).normal(size=(2, size, size, 3))
        kernel = np.random.default_rng(1).normal(size=(1, 1, 3, 5))
        graph, _ = nnx.split(conv)

        def apply(x, kernel):
            return nnx.merge(graph, {"kernel": kernel})(x)

        def loss(x, kernel):
            y = apply(x, kernel)
            return (y * np.random.default_rng(1).normal(size=y.shape)).sum(), y

        ours = with_gradients(apply, x, kernel)
        plain = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, plain)
