"""Batch norm against PyTorch and against a loop over groups; group and instance norm against PyTorch."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel import mesh
from mlperf_jax.planning import hlo, topology
from mlperf_jax.precision import POLICIES
from models.norms import BatchNorm, GroupNorm, InstanceNorm
from tests.models.torch_layers import assert_equals_torchs

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


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("span", [0, 4, 16, 32])
def test_gradients_are_summed_in_float32_by_the_tpu_compiler(span):
    """16 samples on each of 4 chips, in several groups, one, and half of one; and the whole batch as one."""
    layout = mesh.make_layout(mesh.find_strategy("dp"), None, topology.devices(topology.parse("v5e:2x2")))
    graph, params, rest = nnx.split(BatchNorm(128, span=span, policy=POLICIES["bfloat16"]), nnx.Param, ...)

    def gradients(params, rest, x):
        def loss(params, x):
            norm = nnx.merge(graph, params, rest, copy=True)
            return jnp.square(nnx.relu(norm(2 * x, train=True))).astype(jnp.float32).mean()

        of_params, of_x = jax.grad(loss, (0, 1))(params, x)
        # Gradients are reduced over devices in bfloat16, and XLA would sum over the batch in it, too.
        return jax.tree.map(lambda g: g.astype(jnp.bfloat16), of_params), of_x

    with layouts.use(layout):
        x = layout.struct((64, 16, 16, 128), jnp.bfloat16, ("batch",))
        text = jax.jit(gradients).lower(*struct((params, rest), layout), x).compile().as_text()
    reductions = [(i, body) for i, body, _ in hlo.walk(hlo.parse(text)) if i.opcode == "reduce"]
    dtypes = {shape.dtype for i, body in reductions for shape in (*i.shapes, *body[i.operands[0]].shapes)}
    assert len(reductions) >= 4 and dtypes == {"f32"}


def struct(tree, layout):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.replicated), tree)


# Norms of every sample by itself.


def check(norm, theirs, shape):
    graph, _ = nnx.split(norm)
    random = np.random.default_rng(0)
    x, scale, bias = random.normal(3, 2, shape), *random.normal(size=(2, shape[-1]))

    def ours(x, scale, bias):
        return nnx.merge(graph, {"scale": scale, "bias": bias})(x)

    def judge(x, scale, bias):
        return theirs(x.movedim(-1, 1), weight=scale, bias=bias).movedim(1, -1)

    assert_equals_torchs(ours, judge, x, scale, bias)


@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 5, 4, 6), 3), ((3, 4, 8), 1), ((2, 3, 2, 4, 6), 2), ((2, 3, 4, 5), 5)]
)
def test_group_norm_is_pytorchs(shape, groups):
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    with jax.enable_x64(True):
        norm = GroupNorm(shape[-1], groups, epsilon=1e-3, policy=FLOAT64)

        def theirs(x, weight, bias):
            return torch.nn.functional.group_norm(x, groups, weight, bias, 1e-3)

        check(norm, theirs, shape)


@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 4, 2, 1), (2, 3, 4, 5, 6)])
def test_instance_norm_is_pytorchs(shape):
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    with jax.enable_x64(True):
        check(InstanceNorm(shape[-1], policy=FLOAT64), torch.nn.functional.instance_norm, shape)


def test_norms_without_parameters_normalise():
    x = np.random.default_rng(0).normal(5, 3, (2, 4, 4, 6)).astype(np.float32)
    y = np.asarray(GroupNorm(6, 2, affine=False, policy=FLOAT32)(x)).reshape(2, 4, 4, 2, 3)
    np.testing.assert_allclose(y.mean((1, 2, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((1, 2, 4)), 1, atol=1e-4)


def test_statistics_of_a_sample_are_float32_and_survive_a_large_mean():
    x = jnp.asarray(np.random.default_rng(0).normal(200, 4, (2, 8, 8, 4)), jnp.bfloat16)
    y = InstanceNorm(4, policy=POLICIES["bfloat16"])(x)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean((1, 2), keepdims=True)) / exact.std((1, 2), keepdims=True)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-3)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4 groups do not divide 6 features"):
        GroupNorm(6, 4, policy=FLOAT32)
