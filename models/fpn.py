"""A ResNet whose stages feed a feature pyramid (Lin et al., arXiv:1612.03144): the trunk of detectors.

Source of every choice: mlcommons/training, retired_benchmarks/retinanet/ssd/model/{backbone_utils,
feature_pyramid_network}.py. Maps are named as there: C2 ... C5 leave the stages of the ResNet, at a quarter
of the image and at half of the one before each; P3 is the pyramid's at C3's size, and so on. The pyramid's
kernels start from a uniform distribution of variance 1 / fan-in, its biases from zero.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from mlperf_jax.precision import Policy
from models.layers import Conv
from models.norms import BatchNorm
from models.pooling import max_pool
from models.resnet import EXPANSION, Bottleneck, ResNetConfig, Stem, bottlenecks, pin


class Trunk(nnx.Module):
    """The stem and the stages of a bottleneck ResNet, without its classifier."""

    def __init__(
        self, config: ResNetConfig, *, fixed_norms: bool = False, policy: Policy, rngs: nnx.Rngs
    ) -> None:
        """Builds the layers.

        Args:
            config: sizes; what it says of the classifier does not matter.
            fixed_norms: normalise by the running statistics in training too, and leave them as they are.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.stem = Stem(config, policy=policy, rngs=rngs)
        self.norm = BatchNorm(config.width, span=config.bn_span, epsilon=config.norm_epsilon, policy=policy)
        self.blocks: nnx.Dict[Bottleneck] = nnx.Dict()
        features = config.width
        for name, width, stride in bottlenecks(config):
            self.blocks[name] = Bottleneck(features, width, stride, config, policy=policy, rngs=rngs)
            features = EXPANSION * width
        self.config = config
        self.fixed_norms = fixed_norms

    def __call__(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """Maps [B, S, S, 3] to what each stage leaves: [B, S/4, S/4, 4 width], [B, S/8, S/8, 8 width], ..."""
        train = train and not self.fixed_norms
        x = nnx.relu(self.norm(pin(self.stem(images)), train=train))
        x = pin(max_pool(x, self.config.padding_pool))
        maps: list[jax.Array] = []
        for name, _, stride in bottlenecks(self.config):
            if stride > 1:
                maps.append(x)
            x = pin(self.blocks[name](x, train=train))
        return [*maps, x]


def trunk_sizes(config: ResNetConfig) -> list[int]:
    """Height and width of what each stage leaves."""
    sizes = [halved(halved(config.image_size))]
    while len(sizes) < len(config.stages):
        sizes.append(halved(sizes[-1]))
    return sizes


def halved(size: int) -> int:
    """What a window of stride 2, padded as PyTorch's, leaves of a size."""
    return (size + 1) // 2


_conv = functools.partial(Conv, bias=True, kernel_init=initializers.variance_scaling(1, "fan_in", "uniform"))


class FeaturePyramid(nnx.Module):
    """Maps of one number of channels, each with what the smaller ones know.

    A 1x1 convolution of each map is added to the enlarged sum of the next smaller one; a 3x3 convolution
    of every sum is its level. Levels beyond the smallest map's are strided 3x3 convolutions, one of the last
    level and one of each so made after a ReLU: RetinaNet's P6 of P5, and P7.
    """

    def __init__(
        self, features: Sequence[int], channels: int, beyond: int, *, policy: Policy, rngs: nnx.Rngs
    ) -> None:
        """Builds the layers.

        Args:
            features: channels of the maps that come in, the largest map first.
            channels: of every level.
            beyond: levels beyond the smallest map's.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        same = ((1, 1), (1, 1))
        self.lateral = nnx.List([_conv(n, channels, 1, policy=policy, rngs=rngs) for n in features])
        self.output = nnx.List(
            [_conv(channels, channels, 3, padding=same, policy=policy, rngs=rngs) for _ in features]
        )
        self.beyond = nnx.List(
            [
                _conv(channels, channels, 3, stride=2, padding=same, policy=policy, rngs=rngs)
                for _ in range(beyond)
            ]
        )

    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """Maps [B, H, W, features], the largest first, to levels [B, H, W, channels], likewise."""
        sums = [pin(lateral(x)) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in reversed(range(len(sums) - 1)):
            sums[i] = sums[i] + pin(enlarged(sums[i + 1], sums[i].shape[1:3]))
        levels = [pin(output(x)) for output, x in zip(self.output, sums, strict=True)]
        for i, conv in enumerate(self.beyond):
            levels.append(pin(conv(nnx.relu(levels[-1]) if i else levels[-1])))
        return levels


def enlarged(x: jax.Array, size: Sequence[int]) -> jax.Array:
    """Maps [B, h, w, C] to [B, *size, C]: each pixel is the nearest one of `x`, as PyTorch's "nearest" has it."""
    for axis, wanted in enumerate(size, 1):
        there = x.shape[axis]
        if wanted == 2 * there:
            x = jnp.repeat(x, 2, axis)
        else:
            x = jnp.take(x, np.arange(wanted) * there // wanted, axis)
    return x
