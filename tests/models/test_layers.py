"""Convolutions and dense against PyTorch and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.nn import initializers

from mlperf_jax.precision import POLICIES
from models.layers import Conv, ConvTranspose, Dense
from tests.models.torch_layers import assert_equals_torchs

FLOAT32, FLOAT64 = POLICIES["float32"], POLICIES["float64"]


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


# Against PyTorch, with one to three dimensions between batch and features.


def check(layer, functional, rows, seed, **arguments):
    """Applies a float64 layer to random rows [*rows, I], and PyTorch's function to the same."""
    random = np.random.default_rng(seed)
    graph, _ = nnx.split(layer)
    kernel = np.asarray(layer.kernel[...])
    bias = random.normal(size=kernel.shape[-1])
    channels = kernel.shape[-2] * arguments.get("groups", 1)

    def ours(x, kernel, bias):
        return nnx.merge(graph, {"kernel": kernel, "bias": bias})(x)

    def theirs(x, kernel, bias):
        transposed = functional.__name__.startswith("conv_transpose")
        order = (-2, -1) if transposed else (-1, -2)  # PyTorch's [I, O, ...] and [O, I, ...]
        kernel = kernel.permute(*order, *range(kernel.ndim - 2)).contiguous()
        y = functional(x.movedim(-1, 1), kernel, bias, **arguments)
        return y.movedim(1, -1)

    assert_equals_torchs(ours, theirs, random.normal(size=(*rows, channels)), kernel, bias)


def random_geometry(seed):
    """Elements, kernel size, stride and padding of one to three dimensions."""
    random = np.random.default_rng(seed)
    size = random.integers(1, 4, 1 + seed % 3)
    shape, stride, padding = (
        size + random.integers(0, 4),
        random.integers(1, 4, len(size)),
        random.integers(size),
    )
    return random, *(tuple(map(int, numbers)) for numbers in (shape, size, stride, padding))


@pytest.mark.parametrize("seed", range(9))
def test_conv_is_pytorchs(seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    random, shape, size, stride, padding = random_geometry(seed)
    groups, *features = map(int, random.integers(1, 4, 3))
    with jax.enable_x64(True):
        conv = Conv(
            features[0] * groups,
            features[1] * groups,
            size,
            stride=stride,
            padding=tuple((p, p) for p in padding),
            groups=groups,
            bias=True,
            policy=FLOAT64,
            rngs=nnx.Rngs(seed),
        )
        functional = getattr(torch.nn.functional, f"conv{len(size)}d")
        check(conv, functional, (2, *shape), seed, stride=stride, padding=padding, groups=groups)


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (1, 1), (3, 1)])
def test_a_number_stands_for_height_and_width(size, padding):
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    with jax.enable_x64(True):
        both = dict(bias=True, policy=FLOAT64, rngs=nnx.Rngs(0))
        conv = Conv(3, 4, size, padding=((padding, padding),) * 2, **both)
        check(conv, torch.nn.functional.conv2d, (2, 5, 4), 0, padding=padding)
        if not padding:
            deconv = ConvTranspose(3, 4, size + 1, stride=2, **both)
            check(deconv, torch.nn.functional.conv_transpose2d, (2, 5, 4), 0, stride=2)


def test_a_depthwise_convolution_has_one_kernel_a_channel():
    conv = Conv(6, 6, 3, groups=6, policy=FLOAT32, rngs=nnx.Rngs(0))
    assert conv.kernel.shape == (3, 3, 1, 6)
    assert conv.kernel.get_metadata()["axes"] == (None, None, None, "conv_out")
    volume = Conv(4, 6, (3, 3, 3), policy=FLOAT32, rngs=nnx.Rngs(0))
    assert volume.kernel.get_metadata()["axes"] == (None, None, None, "conv_in", "conv_out")


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4 groups do not divide 8 and 6 features"):
        Conv(8, 6, 3, groups=4, policy=FLOAT32, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("seed", range(9))
def test_conv_transpose_is_pytorchs(seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    random, shape, size, stride, padding = random_geometry(seed)
    output_padding = tuple(map(int, random.integers(stride)))  # PyTorch allows no more
    places = dict(stride=stride, padding=padding, output_padding=output_padding)
    with jax.enable_x64(True):
        features = map(int, random.integers(1, 4, 2))
        deconv = ConvTranspose(*features, size, **places, bias=True, policy=FLOAT64, rngs=nnx.Rngs(seed))
        functional = getattr(torch.nn.functional, f"conv_transpose{len(size)}d")
        check(deconv, functional, (2, *shape), seed, **places)


@pytest.mark.parametrize("size", [(2, 2, 2), (3, 2), (2,)])
def test_windows_side_by_side_are_pytorchs_too(size):
    """A stride of the window's size, which is one product."""
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    with jax.enable_x64(True):
        deconv = ConvTranspose(3, 5, size, stride=size, bias=True, policy=FLOAT64, rngs=nnx.Rngs(1))
        functional = getattr(torch.nn.functional, f"conv_transpose{len(size)}d")
        check(deconv, functional, (2, 3, 4, 2)[: 1 + len(size)], 1, stride=size)


def test_convolutions_give_the_compute_dtype():
    policy, x = POLICIES["bfloat16"], jnp.ones((1, 4, 4, 4, 2))
    for layer in (Conv, ConvTranspose):
        made = layer(2, 3, (2, 2, 2), stride=2, bias=True, policy=policy, rngs=nnx.Rngs(0))
        assert made(x).dtype == jnp.bfloat16 and made.kernel.dtype == np.float32


@pytest.mark.parametrize("size", [1, 3, (1, 7), (3, 3, 3)])
@pytest.mark.parametrize("init", [None, initializers.glorot_uniform()])
def test_a_kernel_is_drawn_as_its_shape_says(size, init):
    """Bit for bit, though the window is drawn as one dimension."""
    layer = Conv(4, 6, size, kernel_init=init, policy=POLICIES["float32"], rngs=nnx.Rngs(params=7))
    drawn = (init or initializers.he_normal())(nnx.Rngs(params=7).params(), layer.kernel.shape, jnp.float32)
    np.testing.assert_array_equal(layer.kernel[...], drawn)
