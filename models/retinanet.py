"""RetinaNet (Lin et al., arXiv:1708.02002) on a ResNeXt with a feature pyramid, as MLPerf's reference has it.

Source of every choice: mlcommons/training, retired_benchmarks/retinanet/ssd/model/retinanet.py. The levels
are P3 ... P5 of the pyramid, P6 of P5 and P7 of P6: at 800 pixels 100, 50, 25, 13 and 7 cells a side.
Two towers of four 3x3 convolutions with ReLU, the same for every level, end in one more 3x3 each: box
codes and class logits of nine anchors a cell. Kernels of the heads start from N(0, 0.01), their biases from
zero, and those of the logits so that every class has probability 0.01. There is no class for the background.

MLPerf's trunk is ResNeXt-50 32x4d, whose norms keep their published scales, biases and statistics; its stem
and first stage keep their kernels too. With 264 classes the model has 37,128,876 parameters, norms included.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from mlperf_jax.precision import Policy
from models.fpn import FeaturePyramid, Trunk, halved, trunk_sizes
from models.layers import Conv
from models.resnet import EXPANSION, ResNetConfig, pin
from models.resnet import flops_per_image as resnet_flops

_PRIOR = 0.01  # of every class at every anchor, before training


@dataclasses.dataclass(frozen=True)
class RetinaNetConfig:
    """Sizes of a RetinaNet.

    Attributes:
        image_size: height and width of the images, in pixels.
        num_classes: logits per anchor.
        width, stages, groups, inner: of the trunk, see `models.resnet.ResNetConfig`.
        channels: of the pyramid and of the towers.
        beyond: levels beyond the trunk's last map.
        tower: convolutions before the last of each head.
        anchors: per cell.
        fixed: parts of the trunk whose kernels stay as they are: 0 none, 1 the stem, 2 the stem and the
            first stage, and so on.
        fixed_norms: the norms of the trunk stay as they are, statistics, scales and biases.
        bn_span: samples per group of batch norm; 0 for the whole global batch.
    """

    image_size: int = 800
    num_classes: int = 264
    width: int = 64
    stages: tuple[int, ...] = (3, 4, 6, 3)
    groups: int = 32
    inner: int = 2
    channels: int = 256
    beyond: int = 2
    tower: int = 4
    anchors: int = 9
    fixed: int = 2
    fixed_norms: bool = True
    bn_span: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if len(self.stages) < 2:
            raise ValueError("the pyramid starts at the second stage, so there must be two or more")

    @property
    def trunk(self) -> ResNetConfig:
        """The trunk's part, padded as PyTorch's, which its published weights were trained with."""
        return ResNetConfig(
            stages=self.stages,
            width=self.width,
            image_size=self.image_size,
            bn_span=self.bn_span,
            padding="torch",
            groups=self.groups,
            inner=self.inner,
        )

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of the trunk's maps that the pyramid is made of: those of all stages but the first."""
        return tuple(EXPANSION * self.width << s for s in range(1, len(self.stages)))

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Cells per side of every level."""
        sizes = trunk_sizes(self.trunk)[1:]
        for _ in range(self.beyond):
            sizes.append(halved(sizes[-1]))
        return tuple(sizes)

    def is_fixed(self, path: tuple[str | int, ...]) -> bool:
        """Whether a parameter, by the names that lead to it in the model, stays as it is."""
        part, *names = path
        if part != "backbone":
            return False
        if any(str(name).startswith("norm") for name in names):
            return self.fixed_norms
        stage = 0 if names[0] == "stem" else int(str(names[1]).split("_")[0].removeprefix("stage"))
        return stage < self.fixed


_conv = functools.partial(
    Conv, size=3, padding=((1, 1), (1, 1)), bias=True, kernel_init=initializers.normal(0.01)
)


class Head(nnx.Module):
    """A tower of 3x3 convolutions with ReLU and one last, which gives `values` numbers for every anchor."""

    def __init__(
        self, config: RetinaNetConfig, values: int, bias: float = 0.0, *, policy: Policy, rngs: nnx.Rngs
    ) -> None:
        channels = config.channels
        self.tower = nnx.List(
            [_conv(channels, channels, policy=policy, rngs=rngs) for _ in range(config.tower)]
        )
        self.last = _conv(channels, config.anchors * values, policy=policy, rngs=rngs)
        self.last.bias.set_value(jnp.full_like(self.last.bias[...], bias))
        self.values = values

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps a level [B, H, W, C] to [B, H W anchors, values]: anchors of a cell follow one another."""
        for conv in self.tower:
            x = nnx.relu(pin(conv(x)))
        x = pin(self.last(x))
        return x.reshape(len(x), -1, self.values)


class RetinaNet(nnx.Module):
    """The detector, without what makes boxes of its predictions (`mlperf_jax.detection`)."""

    def __init__(self, config: RetinaNetConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.backbone = Trunk(config.trunk, fixed_norms=config.fixed_norms, policy=policy, rngs=rngs)
        self.pyramid = FeaturePyramid(
            config.map_channels, config.channels, config.beyond, policy=policy, rngs=rngs
        )
        self.boxes = Head(config, 4, policy=policy, rngs=rngs)
        prior = -math.log((1 - _PRIOR) / _PRIOR)
        self.classes = Head(config, config.num_classes, prior, policy=policy, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[list[jax.Array], list[jax.Array]]:
        """Predicts at every anchor.

        Args:
            images: [B, S, S, 3], any float dtype, already normalised.
            train: normalise by the batch's statistics and update the running ones, unless norms are fixed.

        Returns:
            For each level, the largest first, box codes [B, A, 4] and logits [B, A, num_classes] in the
            compute dtype; anchors in the order of `mlperf_jax.detection.levels`. Levels stay apart: joined,
            the logits of an image with 264 classes take 127 MB in float32.
        """
        _, *maps = self.backbone(images, train=train)
        levels = self.pyramid(maps)
        return [self.boxes(x) for x in levels], [self.classes(x) for x in levels]


def flops_per_image(config: RetinaNetConfig, *, train: bool) -> int:
    """Floating-point operations that the model itself asks for, per image (see `models.resnet`).

    Fixed kernels have no gradient, and what lies before the first that is trained passes none on; other
    layers count three times in training.
    """
    trunk = resnet_flops(dataclasses.replace(config.trunk, num_classes=0), train=False)
    fixed = 0
    if config.fixed:
        stages = config.stages[: config.fixed - 1]
        before = dataclasses.replace(config.trunk, num_classes=0, stages=stages)
        fixed = resnet_flops(before, train=False)
    sizes, channels = config.feature_sizes, config.channels
    products = 0
    for features, size in zip(config.map_channels, sizes, strict=False):
        products += (features * channels + 9 * channels**2) * size**2
    for size in sizes[len(config.map_channels) :]:
        products += 9 * channels**2 * size**2
    towers = 2 * config.tower * channels + config.anchors * (4 + config.num_classes)
    products += sum(9 * channels * towers * size**2 for size in sizes)
    return (fixed + 3 * (trunk - fixed) if train else trunk) + 2 * products * (3 if train else 1)
