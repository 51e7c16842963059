"""Max-pool on CPU against XLA's own window, and against PyTorch where elements tie."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.mesh import single_device_layout
from models.pooling import max_pool

torch = pytest.importorskip("torch")


def images(shape, seed, kinds):
    """Float64 numbers of few kinds, so that elements tie, or of as many as there are."""
    random = np.random.default_rng(seed)
    return random.integers(kinds, size=shape) / 4 if kinds else random.normal(size=shape)


def pooled(x, gradient, padding, layout):
    """The pool and its gradient, traced under a layout or none."""

    def pair(x, gradient):
        y, pull = jax.vjp(lambda x: max_pool(x, padding), x)
        return y, pull(gradient)[0]

    with layouts.use(layout), jax.enable_x64(True):
        return tuple(map(np.asarray, jax.jit(pair)(x, gradient)))


@settings(max_examples=12, deadline=None)
@given(
    st.integers(4, 9),
    st.integers(4, 9),
    st.sampled_from(["SAME", ((1, 1), (1, 1)), ((0, 1), (1, 0))]),
    st.sampled_from([0, 2, 5]),
    st.integers(0, 2**32 - 1),
)
def test_is_xlas_window_whatever_ties(height, width, padding, kinds, seed):
    x = images((2, height, width, 3), seed, kinds)
    with jax.enable_x64(True):
        shape = jax.eval_shape(lambda x: max_pool(x, padding), x).shape
    gradient = np.random.default_rng(seed).normal(size=shape)
    ours = pooled(x, gradient, padding, single_device_layout())
    theirs = pooled(x, gradient, padding, None)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kinds", [0, 3])
def test_a_tie_goes_where_pytorch_sends_it(kinds):
    x = images((2, 9, 8, 3), 0, kinds)
    tensor = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(tensor, 3, 2, 1)
    gradient = np.random.default_rng(1).normal(size=expected.shape)
    (expected * torch.tensor(gradient)).sum().backward()
    y, dx = pooled(x, gradient.transpose(0, 2, 3, 1), ((1, 1), (1, 1)), single_device_layout())
    np.testing.assert_array_equal(y, expected.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(dx, tensor.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-12, atol=1e-12)
