"""3D U-Net (Çiçek et al., arXiv:1606.06650) in the form of nnU-Net that MLPerf trains: volumes in, a class for each voxel out.

Blocks of two 3x3x3 convolutions, each with instance norm and ReLU; strides of 2 on the way down, 2x2x2 transposed
convolutions on the way up, where the features of the same size from the way down are put beside. MLPerf's has
31,190,243 parameters. Source: mlcommons/training, retired_benchmarks/unet3d/pytorch/model.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.layers import Conv, ConvTranspose
from models.norms import InstanceNorm

_SAME = ((1, 1),) * 3

# PyTorch's default, uniform within 1 / sqrt(fan-in); of a transposed convolution it takes the outputs for inputs.
_UNIFORM = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_UNIFORM_TRANSPOSED = initializers.variance_scaling(1 / 3, "fan_out", "uniform")


@dataclasses.dataclass(frozen=True)
class UNet3DConfig:
    """Sizes of a 3D U-Net.

    Attributes:
        channels: of each level, from the whole volume down; each level but the first halves it.
        num_classes: logits of a voxel, background among them.
        patch: depth, height and width of what is trained on, and of the windows of inference, in voxels.
        channels_in: of the volumes.

    Raises:
        ValueError: there is but one level, or a patch cannot be halved so often.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    num_classes: int = 3
    patch: tuple[int, int, int] = (128, 128, 128)
    channels_in: int = 1

    def __post_init__(self) -> None:
        for name in ("channels", "patch"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.channels) < 2:
            raise ValueError(f"channels {self.channels} name no second level")
        if any(size % self.coarsest for size in self.patch):
            raise ValueError(
                f"a patch of {self.patch} cannot be halved {len(self.channels) - 1} times; use multiples of {self.coarsest}"
            )

    @property
    def coarsest(self) -> int:
        """Voxels along an edge of one of the lowest level."""
        return 2 ** (len(self.channels) - 1)


class ConvBlock(nnx.Module):
    """A 3x3x3 convolution, instance norm and ReLU."""

    def __init__(
        self, features_in: int, features_out: int, stride: int = 1, *, policy: Policy, rngs: nnx.Rngs
    ) -> None:
        self.conv = Conv(
            features_in,
            features_out,
            (3, 3, 3),
            stride=stride,
            padding=_SAME,
            kernel_init=_UNIFORM,
            policy=policy,
            rngs=rngs,
        )
        self.norm = InstanceNorm(features_out, policy=policy)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, D, H, W, I] to [B, D / stride, H / stride, W / stride, O]."""
        return jax.nn.relu(self.norm(pin(self.conv(x))))


class Level(nnx.Module):
    """Two blocks; the stride is the first one's."""

    def __init__(
        self, features_in: int, features_out: int, stride: int = 1, *, policy: Policy, rngs: nnx.Rngs
    ) -> None:
        self.block1 = ConvBlock(features_in, features_out, stride, policy=policy, rngs=rngs)
        self.block2 = ConvBlock(features_out, features_out, policy=policy, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, D, H, W, I] to [B, D / stride, H / stride, W / stride, O]."""
        return self.block2(self.block1(x))


class Up(nnx.Module):
    """A transposed convolution to twice the size, the features of that size beside it, and two blocks."""

    def __init__(self, features_in: int, features_out: int, *, policy: Policy, rngs: nnx.Rngs) -> None:
        self.grow = ConvTranspose(
            features_in,
            features_out,
            (2, 2, 2),
            stride=2,
            bias=True,
            kernel_init=_UNIFORM_TRANSPOSED,
            policy=policy,
            rngs=rngs,
        )
        self.level = Level(2 * features_out, features_out, policy=policy, rngs=rngs)

    def __call__(self, x: jax.Array, beside: jax.Array) -> jax.Array:
        """[B, D, H, W, I] and [B, 2D, 2H, 2W, O] to [B, 2D, 2H, 2W, O]."""
        return self.level(jnp.concatenate([pin(self.grow(x)), beside], axis=-1))


class UNet3D(nnx.Module):
    """The network. It normalises every sample by itself, in training and later alike."""

    def __init__(self, config: UNet3DConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.config = config
        first, *others = config.channels
        self.first = Level(config.channels_in, first, policy=policy, rngs=rngs)
        self.down: nnx.Dict[Level] = nnx.Dict()
        self.up: nnx.Dict[Up] = nnx.Dict()
        features = first
        for i, channels in enumerate(others, 1):
            self.down[f"level{i}"] = Level(features, channels, 2, policy=policy, rngs=rngs)
            features = channels
        for i in reversed(range(1, len(config.channels))):
            self.up[f"level{i}"] = Up(config.channels[i], config.channels[i - 1], policy=policy, rngs=rngs)
        self.head = Conv(
            first, config.num_classes, (1, 1, 1), bias=True, kernel_init=_UNIFORM, policy=policy, rngs=rngs
        )
        self.dtype = policy.output_dtype

    def __call__(self, volumes: jax.Array) -> jax.Array:
        """Classifies voxels [B, D, H, W, channels_in]: logits [B, D, H, W, num_classes] in the output dtype."""
        x = self.first(pin(volumes))
        skips = []
        for i in range(1, len(self.config.channels)):
            skips.append(x)
            x = self.down[f"level{i}"](x)
        for i in reversed(range(1, len(self.config.channels))):
            x = self.up[f"level{i}"](x, skips.pop())
        return pin(self.head(x)).astype(self.dtype)


def pin(x: jax.Array) -> jax.Array:
    """Pins volumes of features [B, D, H, W, C] to the layout in use."""
    return constrain(x, "batch", "depth", None, None, "channels")


def flops_per_patch(config: UNet3DConfig, *, train: bool) -> int:
    """Floating-point operations that the model asks for, per patch, counted as `models.resnet` counts them.

    MLPerf's at 128^3: 0.955 TFLOP forward.
    """
    voxels = [math.prod(config.patch) // 8**level for level in range(len(config.channels))]
    first, *_ = config.channels
    products = 27 * (config.channels_in + first) * first * voxels[0] + first * config.num_classes * voxels[0]
    for level in range(1, len(config.channels)):
        above, here = config.channels[level - 1], config.channels[level]
        products += 27 * (above + here) * here * voxels[level]
        products += (8 * here * above // 8 + 27 * (2 * above + above) * above) * voxels[level - 1]
    return 2 * products * (3 if train else 1)
