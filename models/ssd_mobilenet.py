"""SSD on MobileNet v1 with predictors of 1x1, as TensorFlow's Object Detection API has it.

Source of every choice: tensorflow/models, research/object_detection/samples/configs/ssd_mobilenet_v1_coco.config,
models/ssd_mobilenet_v1_feature_extractor.py and models/feature_map_generators.py there. Boxes are predicted from
MobileNet's 11th and 13th block, and from four extra stages (1x1, then 3x3 with stride 2; batch norm and ReLU6 after
both) that halve what the last block gives: at 300 pixels maps of 19, 10, 5, 3, 2 and 1 cells a side, 1,917 anchors.
Kernels after the trunk start as a truncated normal of .03. With 91 classes, the background among them, the model has
6,819,839 parameters, 3,206,976 of them in the trunk.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.layers import Conv
from models.mobilenet import MobileNetConfig, MobileNetTrunk, make_norm, trunk_products
from models.resnet import pin

_COCO = MobileNetConfig()


@dataclasses.dataclass(frozen=True)
class SSDMobileNetConfig:
    """Sizes of an SSD on MobileNet.

    Attributes:
        image_size: height and width of the images, in pixels.
        num_classes: logits per anchor; class 0 is the background.
        stem, blocks, epsilon: of the trunk, see `MobileNetConfig`.
        taken_after: the blocks, from 1, whose features are predicted from; the last one among them.
        extra_inner, extra_outer: channels of the 1x1 and of the 3x3 convolution of every extra stage.
        anchors: anchors per cell, for every map.
        bn_span: samples per group of batch norm; 0 for the whole global batch.
        bn_momentum: how much of batch norm's running statistics stays at each step.
    """

    image_size: int = 300
    num_classes: int = 91
    stem: int = _COCO.stem
    blocks: tuple[tuple[int, int], ...] = _COCO.blocks
    epsilon: float = _COCO.epsilon
    taken_after: tuple[int, ...] = (11, 13)
    extra_inner: tuple[int, ...] = (256, 128, 128, 64)
    extra_outer: tuple[int, ...] = (512, 256, 256, 128)
    anchors: tuple[int, ...] = (3, 6, 6, 6, 6, 6)
    bn_span: int = 0
    bn_momentum: float = 0.9997

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        maps = len(self.taken_after) + len(self.extra_outer)
        if len(self.extra_inner) != len(self.extra_outer) or len(self.anchors) != maps:
            raise ValueError("every extra stage needs extra_inner and extra_outer, and every map anchors")
        if self.taken_after[-1] != len(self.blocks):
            raise ValueError(
                f"the extra stages follow the last block, {len(self.blocks)}, which is to be taken"
            )

    @property
    def trunk(self) -> MobileNetConfig:
        return MobileNetConfig(
            stem=self.stem,
            blocks=self.blocks,
            image_size=self.image_size,
            bn_span=self.bn_span,
            epsilon=self.epsilon,
            momentum=self.bn_momentum,
        )

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Cells per side of every map: 19, 10, 5, 3, 2, 1 at 300 pixels."""
        size, sizes = (self.image_size + 1) // 2, []
        for _, stride in self.blocks:
            size = -(-size // stride)
            sizes.append(size)
        sizes = [sizes[block - 1] for block in self.taken_after]
        for _ in self.extra_outer:
            sizes.append(-(-sizes[-1] // 2))
        return tuple(sizes)

    @property
    def map_channels(self) -> tuple[int, ...]:
        return (*(self.blocks[block - 1][0] for block in self.taken_after), *self.extra_outer)


_conv = functools.partial(Conv, kernel_init=initializers.truncated_normal(0.03))


class ExtraStage(nnx.Module):
    """1x1, then 3x3 with stride 2; batch norm and ReLU6 after both."""

    def __init__(
        self,
        features: int,
        inner: int,
        outer: int,
        config: SSDMobileNetConfig,
        *,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv1 = _conv(features, inner, 1, policy=policy, rngs=rngs)
        self.norm1 = make_norm(inner, config.trunk, policy)
        self.conv2 = _conv(inner, outer, 3, stride=2, policy=policy, rngs=rngs)
        self.norm2 = make_norm(outer, config.trunk, policy)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, I] to [B, H/2, W/2, outer]."""
        x = jax.nn.relu6(self.norm1(pin(self.conv1(x)), train=train))
        return jax.nn.relu6(self.norm2(pin(self.conv2(x)), train=train))


class Predictor(nnx.Module):
    """Boxes and class logits at every anchor of one map."""

    def __init__(self, features: int, anchors: int, classes: int, *, policy: Policy, rngs: nnx.Rngs) -> None:
        conv = functools.partial(_conv, bias=True, policy=policy, rngs=rngs)
        self.boxes = conv(features, 4 * anchors, 1)
        self.classes = conv(features, classes * anchors, 1)
        self.num_classes = classes

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps [B, H, W, I] to [B, H W anchors, 4] and [B, H W anchors, num_classes]."""
        codes, logits = self.boxes(x), self.classes(x)
        return codes.reshape(len(x), -1, 4), logits.reshape(len(x), -1, self.num_classes)


class SSDMobileNet(nnx.Module):
    """The detector, without what makes boxes of its predictions (`mlperf_jax.detection`)."""

    def __init__(self, config: SSDMobileNetConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        channels = config.map_channels
        self.config = config
        self.backbone = MobileNetTrunk(config.trunk, policy=policy, rngs=rngs)
        first = len(config.taken_after) - 1
        stages = zip(channels[first:-1], config.extra_inner, config.extra_outer, strict=True)
        self.extras = nnx.Dict(
            {
                f"stage{i}": ExtraStage(*sizes, config, policy=policy, rngs=rngs)
                for i, sizes in enumerate(stages, 1)
            }
        )
        heads = enumerate(zip(channels, config.anchors, strict=True), 1)
        self.heads = nnx.Dict(
            {f"map{i}": Predictor(*head, config.num_classes, policy=policy, rngs=rngs) for i, head in heads}
        )
        self.dtype = policy.output_dtype

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Predicts at every anchor.

        Args:
            images: [B, S, S, 3], any float dtype, from -1 to 1.
            train: normalise by the batch's statistics and update the running ones.

        Returns:
            Box codes [B, A, 4] (see `mlperf_jax.detection.boxes.encode`) and logits [B, A, num_classes] in
            the policy's output dtype. Anchors are in the order of `mlperf_jax.detection.grid_anchors`.
        """
        blocks = self.backbone(images, train=train)
        maps = [blocks[block - 1] for block in self.config.taken_after]
        for i in range(1, len(self.extras) + 1):
            maps.append(self.extras[f"stage{i}"](maps[-1], train=train))
        found = [self.heads[f"map{i}"](x) for i, x in enumerate(maps, 1)]
        codes, logits = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        axes = ("batch", None, None)
        return constrain(codes.astype(self.dtype), *axes), constrain(logits.astype(self.dtype), *axes)


def flops_per_image(config: SSDMobileNetConfig, *, train: bool) -> int:
    """Floating-point operations that the model itself asks for, per image (see `models.resnet`)."""
    sizes, channels = config.feature_sizes, config.map_channels
    products = trunk_products(config.trunk)
    first = len(config.taken_after) - 1
    for i, (inner, outer) in enumerate(zip(config.extra_inner, config.extra_outer, strict=True), first):
        products += channels[i] * inner * sizes[i] ** 2 + 9 * inner * outer * sizes[i + 1] ** 2
    for features, anchors, cells in zip(channels, config.anchors, sizes, strict=True):
        products += features * anchors * (4 + config.num_classes) * cells**2
    return 2 * products * (3 if train else 1)
