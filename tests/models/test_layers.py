"""Batch norm against PyTorch and against a loop over groups; convolution and dense against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.precision import POLICIES
from models.layers import BatchNorm, Conv, Dense

FLOAT32, FLOAT64 = POLICIES["float32"], POLICIES["float64"]


def batch_norm(x, scale, bias, mean, var, *, span=0, train=True, policy=FLOAT32):
    """(output, new mean, new variance) of one application."""
    norm = BatchNorm(x.shape[-1], span=span, policy=policy)
    for variable, value in ((norm.scale, scale), (norm.bias, bias), (norm.mean, mean), (norm.var, var)):
        variable[...] = jnp.asarray(value)
    return norm(x, train=train), norm.mean[...], norm.var[...]


def random_case(seed, shape, dtype=np.float32):
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    x = rng.normal(rng.normal(0, 2, channels), rng.uniform(0.5, 2, channels), shape)
    scale, bias, mean = rng.normal(size=(3, channels))
    return tuple(np.asarray(a, dtype) for a in (x, scale, bias, mean, rng.uniform(0.5, 2, channels)))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_norm_equals_torchs(train, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the independent judge")
    x, scale, bias, mean, var = random_case(0, (4, 5, 3, 6), dtype)
    weights = np.random.default_rng(1).normal(size=x.shape).astype(dtype)
    tensors = [torch.tensor(a, requires_grad=i < 3) for i, a in enumerate((x, scale, bias, mean, var))]
    out = torch.nn.functional.batch_norm(
        tensors[0].permute(0, 3, 1, 2), tensors[3], tensors[4], tensors[1], tensors[2], train, 0.1, 1e-5
    ).permute(0, 2, 3, 1)
    (out * torch.as_tensor(weights)).sum().backward()

    with jax.enable_x64(dtype == "float64"):

        def loss(x, scale, bias):
            outputs = batch_norm(x, scale, bias, mean, var, train=train, policy=POLICIES[dtype])
            return (outputs[0] * weights).sum(), outputs

        grads, (ours, new_mean, new_var) = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
    tolerance = dict(rtol=1e-10, atol=1e-10) if dtype == "float64" else dict(rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours, out.detach(), **tolerance)
    np.testing.assert_allclose(new_mean, tensors[3], **tolerance)
    np.testing.assert_allclose(new_var, tensors[4], **tolerance)
    for ours, theirs in zip(grads, tensors, strict=False):
        np.testing.assert_allclose(ours, theirs.grad, **tolerance)


@settings(max_examples=4, deadline=None)
@given(groups=st.integers(1, 4), span=st.integers(1, 4), seed=st.integers(0, 2**20))
def test_a_span_equals_a_loop_over_groups(groups, span, seed):
    with jax.enable_x64(True):
        x, scale, bias, mean, var = random_case(seed, (groups * span, 2, 3, 4), np.float64)
        weights = np.random.default_rng(seed).normal(size=x.shape)

        def whole(x, scale, bias):
            out = batch_norm(x, scale, bias, mean, var, span=span, policy=FLOAT64)
            return (out[0] * weights).sum(), out

        def loop(x, scale, bias):
            parts = [
                batch_norm(x[i : i + span], scale, bias, mean, var, policy=FLOAT64)
                for i in range(0, len(x), span)
            ]
            out, means, variances = zip(*parts, strict=True)
            out = jnp.concatenate(out), sum(means) / groups, sum(variances) / groups
            return (out[0] * weights).sum(), out

        actual = jax.jit(jax.grad(whole, (0, 1, 2), has_aux=True))(x, scale, bias)
        expected = jax.jit(jax.grad(loop, (0, 1, 2), has_aux=True))(x, scale, bias)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-9), actual, expected)


def test_a_span_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="bn_span 3 does not divide the batch of 8"):
        BatchNorm(2, span=3, policy=FLOAT32)(jnp.zeros((8, 1, 1, 2)), train=True)


def test_variance_survives_a_large_mean_once_the_running_mean_is_near():
    rng = np.random.default_rng(0)
    x = rng.normal(10_000, 0.1, (64, 4, 4, 3)).astype(np.float32)
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    out, _, _ = batch_norm(x, one, zero, one * 9_990, one)
    x = x.astype(np.float64)
    expected = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    assert np.abs(out - expected).max() < 0.05


def test_statistics_of_bfloat16_activations_are_float32():
    x, scale, bias, mean, var = random_case(1, (8, 3, 3, 4))
    x = jnp.asarray(x, jnp.bfloat16)
    out, new_mean, new_var = batch_norm(x, scale, bias, mean, var, policy=POLICIES["bfloat16"])
    assert (out.dtype, new_mean.dtype, new_var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    exact = np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(new_mean, 0.9 * mean + 0.1 * exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(1, 1, "SAME"), (1, 2, "SAME"), (3, 2, "SAME"), (3, 1, ((1, 1), (1, 1)))]
)
def test_conv_equals_a_loop(size, stride, padding):
    rng = np.random.default_rng(size + stride)
    x = rng.normal(size=(2, 7, 6, 3)).astype(np.float32)
    conv = Conv(3, 4, size, stride=stride, padding=padding, policy=FLOAT32, rngs=nnx.Rngs(0))
    kernel = np.asarray(conv.kernel[...], np.float64)
    outputs = [-(-n // stride) for n in x.shape[1:3]]
    totals = [max((o - 1) * stride + size - n, 0) for o, n in zip(outputs, x.shape[1:3], strict=True)]
    padded = np.pad(x, [(0, 0), *((t // 2, t - t // 2) for t in totals), (0, 0)])
    expected = np.empty((2, *outputs, 4))
    for i, j in np.ndindex(*outputs):
        window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
        expected[:, i, j] = np.einsum("bhwi,hwio->bo", window, kernel)
    np.testing.assert_allclose(conv(x), expected, rtol=1e-4, atol=1e-5)


def test_dense_is_a_product_and_a_bias():
    dense = Dense(5, 3, axes=("embed", "vocab"), stddev=0.5, policy=FLOAT32, rngs=nnx.Rngs(0))
    dense.bias[...] = jnp.arange(3.0)
    x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(
        dense(x), x @ np.asarray(dense.kernel[...]) + np.arange(3.0), rtol=1e-5, atol=1e-6
    )
