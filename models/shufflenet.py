"""ShuffleNet: 1x1 convolutions of a part of the channels, whose outputs are shuffled between the parts.

v2 (Ma et al., arXiv:1807.11164) works on one half of the channels in each unit; v1 (Zhang et al.,
arXiv:1707.01083) has grouped 1x1 convolutions. Both as their authors publish them (megvii-model/ShuffleNet-Series:
batch norm with epsilon 1e-5, windows padded by one on every side; in v1 the shuffle comes after the depthwise
convolution, and deals the other way round, which is the same family of functions as in the paper). With 1,000 classes v2 1x has 2,278,604 parameters,
v1 1x with three groups 1,865,728.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from mlperf_jax.precision import Policy
from models.classifier import Classifier
from models.layers import Conv
from models.norms import BatchNorm
from models.pooling import max_pool
from models.resnet import pin

_PADDING = ((1, 1), (1, 1))
V1_WIDTHS = {
    1: (144, 288, 576),
    2: (200, 400, 800),
    3: (240, 480, 960),
    4: (272, 544, 1088),
    8: (384, 768, 1536),
}
"""Channels of v1's stages at 1x by the number of groups (arXiv:1707.01083, table 1)."""


@dataclasses.dataclass(frozen=True)
class ShuffleNetConfig:
    """Sizes of a ShuffleNet.

    Attributes:
        version: 1 or 2.
        widths: channels of each stage, whose first unit halves height and width.
        repeats: units of each stage.
        groups: of v1's 1x1 convolutions.
        stem_width: channels of the first 3x3/2 convolution.
        stem: "imagenet" (with a 3x3/2 max-pool after it) or "small" (without).
        last: channels of v2's 1x1 convolution before the mean; v1 has none.
        num_classes: logits.
        image_size: height and width of the images, in pixels.
        channels_in: channels of the images.
        bn_span: samples per group of batch norm; 0 for the whole global batch.
    """

    version: int = 2
    widths: tuple[int, ...] = (116, 232, 464)
    repeats: tuple[int, ...] = (4, 8, 4)
    groups: int = 3
    stem_width: int = 24
    stem: str = "imagenet"
    last: int = 1024
    num_classes: int = 1000
    image_size: int = 224
    channels_in: int = 3
    bn_span: int = 0

    def __post_init__(self) -> None:
        for name in ("widths", "repeats"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.version not in (1, 2):
            raise ValueError(f"version {self.version!r} is neither 1 nor 2")
        if self.stem not in ("imagenet", "small"):
            raise ValueError(f"stem {self.stem!r} is neither 'imagenet' nor 'small'")
        if len(self.widths) != len(self.repeats):
            raise ValueError(f"{len(self.widths)} widths are not as many as {len(self.repeats)} repeats")

    @classmethod
    def v1(cls, groups: int = 3) -> ShuffleNetConfig:
        """v1 at 1x."""
        return cls(version=1, groups=groups, widths=V1_WIDTHS[groups])

    @classmethod
    def mini(cls) -> ShuffleNetConfig:
        """v2's units at a size for 28x28 grey images on a laptop."""
        return cls(
            widths=(48, 96),
            repeats=(2, 3),
            stem="small",
            last=128,
            num_classes=10,
            image_size=28,
            channels_in=1,
        )


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    """Deals the channels out anew: of [B, H, W, groups * n] channel g n + i goes to place i groups + g."""
    parts = x.reshape(*x.shape[:-1], groups, -1)
    return jnp.swapaxes(parts, -1, -2).reshape(x.shape)


class _ConvNorm(nnx.Module):
    """A convolution without a bias, and batch norm."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int,
        config: ShuffleNetConfig,
        *,
        stride: int = 1,
        groups: int = 1,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = Conv(
            features_in,
            features_out,
            size,
            stride=stride,
            padding=_PADDING if size == 3 else "VALID",
            groups=groups,
            policy=policy,
            rngs=rngs,
        )
        self.norm = BatchNorm(features_out, span=config.bn_span, policy=policy)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.norm(pin(self.conv(x)), train=train)


class UnitV2(nnx.Module):
    """1x1, depthwise 3x3, 1x1 on half the channels, beside the other half as it is (arXiv:1807.11164, figure 3).

    With a stride both branches have all channels: 1x1, 3x3, 1x1 and 3x3, 1x1.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        stride: int,
        config: ShuffleNetConfig,
        *,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        half = features_out // 2

        def layer(features: int, size: int, *, into: int, stride: int = 1) -> _ConvNorm:
            groups = features if size == 3 else 1
            return _ConvNorm(
                features, into, size, config, stride=stride, groups=groups, policy=policy, rngs=rngs
            )

        self.strided = stride > 1
        if self.strided:
            self.side_depthwise = layer(features_in, 3, into=features_in, stride=stride)
            self.side_pointwise = layer(features_in, 1, into=half)
        self.pointwise1 = layer(features_in if self.strided else half, 1, into=half)
        self.depthwise = layer(half, 3, into=half, stride=stride)
        self.pointwise2 = layer(half, 1, into=half)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, I] to [B, H/stride, W/stride, O]."""
        if self.strided:
            side = nnx.relu(self.side_pointwise(self.side_depthwise(x, train=train), train=train))
        else:
            side, x = jnp.split(x, 2, axis=-1)
        x = nnx.relu(self.pointwise1(x, train=train))
        x = nnx.relu(self.pointwise2(self.depthwise(x, train=train), train=train))
        return channel_shuffle(jnp.concatenate([side, x], -1), 2)


class UnitV1(nnx.Module):
    """Grouped 1x1, depthwise 3x3, shuffle, grouped 1x1, added to the input (arXiv:1707.01083, figure 2).

    With a stride the input is averaged over 3x3 windows and stands beside the branch's output.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        stride: int,
        config: ShuffleNetConfig,
        *,
        first: bool,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        """first: whether it is the network's first unit, whose few input channels are not grouped."""
        middle = features_out // 4
        self.dealt = middle // config.groups
        self.strided = stride > 1

        def layer(features: int, into: int, size: int, groups: int, stride: int = 1) -> _ConvNorm:
            return _ConvNorm(
                features, into, size, config, stride=stride, groups=groups, policy=policy, rngs=rngs
            )

        self.pointwise1 = layer(features_in, middle, 1, 1 if first else config.groups)
        self.depthwise = layer(middle, middle, 3, middle, stride)
        into = features_out - features_in if self.strided else features_out
        self.pointwise2 = layer(middle, into, 1, config.groups)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, I] to [B, H/stride, W/stride, O]."""
        y = nnx.relu(self.pointwise1(x, train=train))
        y = channel_shuffle(self.depthwise(y, train=train), self.dealt)
        y = self.pointwise2(y, train=train)
        if self.strided:
            return jnp.concatenate([pin(average_pool(x)), nnx.relu(y)], -1)
        return nnx.relu(x + y)


def average_pool(x: jax.Array) -> jax.Array:
    """3x3/2 means; beyond the border there are zeros, which count."""
    padding = ((0, 0), *_PADDING, (0, 0))
    sums = lax.reduce_window(x, np.zeros((), x.dtype), lax.add, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    return sums / jnp.asarray(9, x.dtype)


class ShuffleNet(nnx.Module):
    """A ShuffleNet for classification."""

    def __init__(self, config: ShuffleNetConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.config = config
        features = config.stem_width
        self.stem = _ConvNorm(config.channels_in, features, 3, config, stride=2, policy=policy, rngs=rngs)
        self.units: nnx.Dict[UnitV1 | UnitV2] = nnx.Dict()
        for name, width, stride in _units(config):
            if config.version == 2:
                self.units[name] = UnitV2(features, width, stride, config, policy=policy, rngs=rngs)
            else:
                first = features == config.stem_width and not self.units
                self.units[name] = UnitV1(
                    features, width, stride, config, first=first, policy=policy, rngs=rngs
                )
            features = width
        if config.version == 2:
            self.last = _ConvNorm(features, config.last, 1, config, policy=policy, rngs=rngs)
            features = config.last
        self.head = Classifier(features, config.num_classes, policy=policy, rngs=rngs)

    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Classifies images [B, H, W, channels_in], already normalised: logits [B, num_classes] in the output dtype."""
        x = nnx.relu(self.stem(inputs, train=train))
        if self.config.stem == "imagenet":
            x = pin(max_pool(x, _PADDING))
        for name, _, _ in _units(self.config):
            x = pin(self.units[name](x, train=train))
        if self.config.version == 2:
            x = nnx.relu(self.last(x, train=train))
        return self.head(x)


def _units(config: ShuffleNetConfig) -> Iterator[tuple[str, int, int]]:
    """Every unit's name, width and stride, in order; stages count from 2, as the papers' do."""
    for stage, (width, count) in enumerate(zip(config.widths, config.repeats, strict=True), 2):
        for unit in range(count):
            yield f"stage{stage}_unit{unit + 1}", width, 1 if unit else 2


def flops_per_image(config: ShuffleNetConfig, *, train: bool) -> int:
    """Floating-point operations that the model asks for, per image, counted as `models.resnet` counts them.

    At 224 pixels 0.29 GFLOP forward for v2 1x, 0.27 for v1 1x with three groups.
    """
    size = (config.image_size + 1) // 2
    features = config.stem_width
    products = 9 * config.channels_in * features * size**2
    size = (size + 1) // 2 if config.stem == "imagenet" else size
    for number, (_, width, stride) in enumerate(_units(config)):
        before, size = size, -(-size // stride)
        if config.version == 2:
            half = width // 2
            products += (features if stride > 1 else half) * half * before**2 + (9 * half + half**2) * size**2
            if stride > 1:
                products += (9 * features + features * half) * size**2
        else:
            middle, groups = width // 4, config.groups
            products += features // (groups if number else 1) * middle * before**2
            into = width - features if stride > 1 else width
            products += (9 * middle + middle // groups * into) * size**2
        features = width
    if config.version == 2:
        products += features * config.last * size**2
        features = config.last
    products += features * config.num_classes
    return 2 * products * (3 if train else 1)
