"""SSD (Liu et al., arXiv:1512.02325) on a ResNet of basic blocks, as MLPerf Training's reference has it.

Source of every choice: mlcommons/training, retired_benchmarks/ssd-v1/ssd/{ssd300,base_model}.py. The
backbone is ResNet-34 up to its third stage, which is not strided: 300 pixels become 38 x 38 x 256. Five
extra stages (1x1, 3x3; biases and ReLU, no norm) shrink that to 19, 10, 5, 3 and 1; a 3x3 convolution on
each of the six maps predicts boxes and classes at every anchor. Kernels after the backbone start from
Glorot's uniform distribution, their biases from zero (the reference leaves PyTorch's uniform biases). With
81 classes the model has 19,972,534 parameters, 8,170,304 of them in the backbone.

MLPerf Inference has the same parameters at 1200 pixels (mlcommons/inference,
vision/classification_and_detection/python/models/ssd_r34.py): a stride in the fourth extra stage, and
predictors that look at every third cell.
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
from models.norms import BatchNorm
from models.pooling import max_pool
from models.resnet import BasicBlock, ResNetConfig, Stem, pin, stage_blocks


@dataclasses.dataclass(frozen=True)
class SSDConfig:
    """Sizes of an SSD.

    Attributes:
        image_size: height and width of the images, in pixels.
        num_classes: logits per anchor; class 0 is the background.
        width: channels of the stem and of the first stage; each later stage doubles them.
        stages, strides: basic blocks per stage of the backbone, and the stride of its first.
        extra_inner, extra_outer, extra_strides, extra_padding: channels of the 1x1 and of the 3x3
            convolution of every extra stage, stride and padding of the latter.
        anchors: anchors per cell, for every map.
        head_stride: of the predictors.
        bn_span: samples per group of batch norm; 0 for the whole global batch.
    """

    image_size: int = 300
    num_classes: int = 81
    width: int = 64
    stages: tuple[int, ...] = (3, 4, 6)
    strides: tuple[int, ...] = (1, 2, 1)
    extra_inner: tuple[int, ...] = (256, 256, 128, 128, 128)
    extra_outer: tuple[int, ...] = (512, 512, 256, 256, 256)
    extra_strides: tuple[int, ...] = (2, 2, 2, 1, 1)
    extra_padding: tuple[int, ...] = (1, 1, 1, 0, 0)
    anchors: tuple[int, ...] = (4, 6, 6, 6, 4, 4)
    head_stride: int = 1
    bn_span: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        extras = {len(getattr(self, f"extra_{name}")) for name in ("inner", "outer", "strides", "padding")}
        if len(self.stages) != len(self.strides) or extras != {len(self.anchors) - 1}:
            raise ValueError("every stage needs a stride, and every extra stage all of extra_* and anchors")
        if min(self.feature_sizes) < 1:
            raise ValueError(f"{self.image_size} pixels are too few: maps of {self.feature_sizes} cells")

    @property
    def backbone(self) -> ResNetConfig:
        """The backbone's part, padded as PyTorch's, which its published weights were trained with."""
        return ResNetConfig(
            stages=self.stages,
            width=self.width,
            image_size=self.image_size,
            bn_span=self.bn_span,
            padding="torch",
        )

    @property
    def blocks(self) -> list[tuple[str, int, int]]:
        """Name, width and stride of every block of the backbone, in order."""
        return stage_blocks(self.width, self.stages, self.strides)

    @property
    def map_sizes(self) -> tuple[int, ...]:
        """Height and width of the maps that the predictors look at."""
        size = _windows(_windows(self.image_size, 7, 2, 3), 3, 2, 1)
        for stride in self.strides:
            size = _windows(size, 3, stride, 1)
        sizes = [size]
        for stride, padding in zip(self.extra_strides, self.extra_padding, strict=True):
            sizes.append(_windows(sizes[-1], 3, stride, padding))
        return tuple(sizes)

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Cells per side of every map of predictions: 38, 19, 10, 5, 3, 1 at 300 pixels."""
        return tuple(_windows(size, 3, self.head_stride, 1) for size in self.map_sizes)

    @property
    def map_channels(self) -> tuple[int, ...]:
        return (self.width << len(self.stages) - 1, *self.extra_outer)


def _windows(size: int, window: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - window) // stride + 1


class Backbone(nnx.Module):
    """The stem and the stages of basic blocks: [B, S, S, 3] to [B, H, W, width * 2**(stages - 1)]."""

    def __init__(self, config: SSDConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        resnet = config.backbone
        self.stem = Stem(resnet, policy=policy, rngs=rngs)
        self.norm = BatchNorm(config.width, span=config.bn_span, policy=policy)
        self.blocks: nnx.Dict[BasicBlock] = nnx.Dict()
        features = config.width
        for name, width, stride in config.blocks:
            self.blocks[name] = BasicBlock(features, width, stride, resnet, policy=policy, rngs=rngs)
            features = width
        self.config = config

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nnx.relu(self.norm(pin(self.stem(images)), train=train))
        x = pin(max_pool(x, self.config.backbone.padding_3x3))
        for name, _, _ in self.config.blocks:
            x = pin(self.blocks[name](x, train=train))
        return x


_conv = functools.partial(Conv, bias=True, kernel_init=initializers.glorot_uniform())


class ExtraStage(nnx.Module):
    """1x1, ReLU, 3x3 (strided), ReLU."""

    def __init__(
        self, features: int, inner: int, outer: int, stride: int, pad: int, *, policy: Policy, rngs: nnx.Rngs
    ) -> None:
        padding = ((pad, pad), (pad, pad))
        self.conv1 = _conv(features, inner, 1, policy=policy, rngs=rngs)
        self.conv2 = _conv(inner, outer, 3, stride=stride, padding=padding, policy=policy, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, I] to [B, H', W', outer]."""
        return nnx.relu(pin(self.conv2(nnx.relu(pin(self.conv1(x))))))


class Predictor(nnx.Module):
    """Boxes and class logits at every anchor of one map."""

    def __init__(
        self, features: int, anchors: int, config: SSDConfig, *, policy: Policy, rngs: nnx.Rngs
    ) -> None:
        conv = functools.partial(
            _conv, stride=config.head_stride, padding=((1, 1), (1, 1)), policy=policy, rngs=rngs
        )
        self.boxes = conv(features, 4 * anchors, 3)
        self.classes = conv(features, config.num_classes * anchors, 3)
        self.anchors = anchors

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps [B, H, W, I] to [B, anchors H' W', 4] and [B, anchors H' W', num_classes]."""
        return self._by_anchor(self.boxes(x)), self._by_anchor(self.classes(x))

    def _by_anchor(self, x: jax.Array) -> jax.Array:
        """The reference's order: channels are (value, anchor), and results (anchor, y, x)."""
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height, width, channels // self.anchors, self.anchors).transpose(0, 4, 1, 2, 3)
        return x.reshape(batch, self.anchors * height * width, -1)


class SSD(nnx.Module):
    """The detector, without what makes boxes of its predictions (`mlperf_jax.detection`)."""

    def __init__(self, config: SSDConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        channels = config.map_channels
        self.backbone = Backbone(config, policy=policy, rngs=rngs)
        shapes = zip(
            channels[:-1],
            config.extra_inner,
            config.extra_outer,
            config.extra_strides,
            config.extra_padding,
            strict=True,
        )
        self.extras = nnx.Dict(
            {f"stage{i}": ExtraStage(*shape, policy=policy, rngs=rngs) for i, shape in enumerate(shapes, 1)}
        )
        heads = enumerate(zip(channels, config.anchors, strict=True), 1)
        self.heads = nnx.Dict(
            {f"map{i}": Predictor(*head, config, policy=policy, rngs=rngs) for i, head in heads}
        )
        self.maps = len(channels)
        self.dtype = policy.output_dtype

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Predicts at every anchor.

        Args:
            images: [B, S, S, 3], any float dtype, already normalised.
            train: normalise by the batch's statistics and update the running ones.

        Returns:
            Box codes [B, A, 4] (see `mlperf_jax.detection.boxes.encode`) and logits [B, A, num_classes] in
            the policy's output dtype. Anchors are in the order of `mlperf_jax.detection.anchors`.
        """
        x = self.backbone(images, train=train)
        found = [self.heads["map1"](x)]
        for i in range(1, self.maps):
            x = self.extras[f"stage{i}"](x)
            found.append(self.heads[f"map{i + 1}"](x))
        codes, logits = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        axes = ("batch", None, None)
        return constrain(codes.astype(self.dtype), *axes), constrain(logits.astype(self.dtype), *axes)


def flops_per_image(config: SSDConfig, *, train: bool) -> int:
    """Floating-point operations that the model itself asks for, per image (see `models.resnet`)."""
    size = _windows(config.image_size, 7, 2, 3)
    products = 49 * 3 * config.width * size**2
    size, features = _windows(size, 3, 2, 1), config.width
    for _, width, stride in config.blocks:
        size = _windows(size, 3, stride, 1)
        shortcut = features * width if stride > 1 or features != width else 0
        products += (9 * features * width + 9 * width * width + shortcut) * size**2
        features = width
    maps, channels = config.map_sizes, config.map_channels
    for i, inner in enumerate(config.extra_inner):
        products += channels[i] * inner * maps[i] ** 2 + 9 * inner * channels[i + 1] * maps[i + 1] ** 2
    for features, anchors, cells in zip(channels, config.anchors, config.feature_sizes, strict=True):
        products += 9 * features * anchors * (4 + config.num_classes) * cells**2
    return 2 * products * (3 if train else 1)
