"""SSD on MobileNet v2, as TensorFlow's Object Detection API has it, with its norms folded into its convolutions.

MobileNet v2: Sandler et al., arXiv:1801.04381, table 2. Source of the rest: tensorflow/models, research/object_detection/
samples/configs/ssd_mobilenet_v2_coco.config and models/ssd_mobilenet_v2_feature_extractor.py there; every size was
counted in the graph of MediaPipe's object_detection_ssd_mobilenetv2_oidv4_fp16.tflite. Boxes are predicted from what block 14
works on inside (576 channels), from the 1x1 of 1,280 after the last block, and from four extra stages: at 300 pixels maps of 19,
10, 5, 3, 2 and 1 cells a side, 1,917 anchors. With 24 classes, the background among them, it has 4,951,996 parameters.

It is a model to be served: without norms nobody would train it.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.layers import Conv
from models.resnet import pin
from models.ssd_mobilenet import Predictor

_BLOCKS = (
    (1, 16, 1),
    *((6, 24, 2), (6, 24, 1)),
    *((6, 32, 2), (6, 32, 1), (6, 32, 1)),
    *((6, 64, 2), (6, 64, 1), (6, 64, 1), (6, 64, 1)),
    *((6, 96, 1), (6, 96, 1), (6, 96, 1)),
    *((6, 160, 2), (6, 160, 1), (6, 160, 1)),
    (6, 320, 1),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SSDMobileNetV2Config:
    """Sizes of an SSD on MobileNet v2.

    Attributes:
        image_size: height and width of the images, in pixels.
        num_classes: logits per anchor; class 0 is the background.
        stem: channels of the first convolution, which halves height and width.
        blocks: (expansion, channels, stride) of every inverted residual.
        taken_in: the block, from 1, whose expanded features are the first map.
        last: channels of the 1x1 after the blocks, whose features are the second map.
        extra_inner, extra_outer: channels of the 1x1 and of the 3x3 convolution of every extra stage.
        anchors: anchors per cell, for every map.
    """

    image_size: int = 300
    num_classes: int = 24
    stem: int = 32
    blocks: tuple[tuple[int, int, int], ...] = _BLOCKS
    taken_in: int = 14
    last: int = 1280
    extra_inner: tuple[int, ...] = (256, 128, 128, 64)
    extra_outer: tuple[int, ...] = (512, 256, 256, 128)
    anchors: tuple[int, ...] = (3, 6, 6, 6, 6, 6)

    def __post_init__(self) -> None:
        if len(self.extra_inner) != len(self.extra_outer) or len(self.anchors) != 2 + len(self.extra_outer):
            raise ValueError("every extra stage needs extra_inner and extra_outer, and every map anchors")
        if not 1 <= self.taken_in <= len(self.blocks) or self.expanded(self.taken_in) == 0:
            raise ValueError(f"block {self.taken_in} has no expanded features that could be taken")

    def features_in(self, block: int) -> int:
        """Channels that go into a block, from 1."""
        return self.blocks[block - 2][1] if block > 1 else self.stem

    def expanded(self, block: int) -> int:
        """Channels to which a block, from 1, expands its own first; 0 where it does not."""
        expansion = self.blocks[block - 1][0]
        return expansion * self.features_in(block) if expansion > 1 else 0

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Cells per side of every map: 19, 10, 5, 3, 2, 1 at 300 pixels."""
        size, sizes = (self.image_size + 1) // 2, []
        for number, (_, _, stride) in enumerate(self.blocks, 1):
            if number == self.taken_in:
                sizes.append(size)
            size = -(-size // stride)
        sizes.append(size)
        for _ in self.extra_outer:
            sizes.append(-(-sizes[-1] // 2))
        return tuple(sizes)

    @property
    def map_channels(self) -> tuple[int, ...]:
        return self.expanded(self.taken_in), self.last, *self.extra_outer


_conv = functools.partial(Conv, bias=True)


def _active(x: jax.Array) -> jax.Array:
    return jax.nn.relu6(pin(x))


class InvertedResidual(nnx.Module):
    """1x1 to more channels, 3x3 of each by itself (strided), ReLU6 after both; 1x1 to few, and the input where it fits."""

    def __init__(
        self,
        features_in: int,
        expanded: int,
        features_out: int,
        stride: int,
        *,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        conv = functools.partial(_conv, policy=policy, rngs=rngs)
        inner = expanded or features_in
        self.expand = conv(features_in, expanded, 1) if expanded else None
        self.depthwise = conv(inner, inner, 3, stride=stride, groups=inner)
        self.project = conv(inner, features_out, 1)
        self.is_residual = stride == 1 and features_in == features_out

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps [B, H, W, I] to its expanded features [B, H, W, E] and the block's [B, H/stride, W/stride, O]."""
        expanded = _active(self.expand(x)) if self.expand is not None else x
        y = pin(self.project(_active(self.depthwise(expanded))))
        return expanded, x + y if self.is_residual else y


class ExtraStage(nnx.Module):
    """1x1, then 3x3 with stride 2; ReLU6 after both."""

    def __init__(self, features: int, inner: int, outer: int, *, policy: Policy, rngs: nnx.Rngs) -> None:
        self.conv1 = _conv(features, inner, 1, policy=policy, rngs=rngs)
        self.conv2 = _conv(inner, outer, 3, stride=2, policy=policy, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, I] to [B, H/2, W/2, outer]."""
        return _active(self.conv2(_active(self.conv1(x))))


class SSDMobileNetV2(nnx.Module):
    """The detector, without what makes boxes of its predictions (`mlperf_jax.detection`)."""

    def __init__(self, config: SSDMobileNetV2Config, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.config = config
        self.stem = _conv(3, config.stem, 3, stride=2, policy=policy, rngs=rngs)
        self.blocks = nnx.Dict(
            {
                f"block{i}": InvertedResidual(
                    config.features_in(i), config.expanded(i), channels, stride, policy=policy, rngs=rngs
                )
                for i, (_, channels, stride) in enumerate(config.blocks, 1)
            }
        )
        self.last = _conv(config.blocks[-1][1], config.last, 1, policy=policy, rngs=rngs)
        channels = config.map_channels
        stages = zip(channels[1:-1], config.extra_inner, config.extra_outer, strict=True)
        self.extras = nnx.Dict(
            {f"stage{i}": ExtraStage(*sizes, policy=policy, rngs=rngs) for i, sizes in enumerate(stages, 1)}
        )
        heads = enumerate(zip(channels, config.anchors, strict=True), 1)
        self.heads = nnx.Dict(
            {f"map{i}": Predictor(*head, config.num_classes, policy=policy, rngs=rngs) for i, head in heads}
        )
        self.dtype = policy.output_dtype

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Predicts at every anchor.

        Args:
            images: [B, S, S, 3], any float dtype, from -1 to 1.

        Returns:
            Box codes [B, A, 4] (see `mlperf_jax.detection.boxes.encode`) and logits [B, A, num_classes] in
            the policy's output dtype. Anchors are in the order of `mlperf_jax.detection.grid_anchors`.
        """
        x, maps = _active(self.stem(images)), []
        for i in range(1, len(self.blocks) + 1):
            expanded, x = self.blocks[f"block{i}"](x)
            if i == self.config.taken_in:
                maps.append(expanded)
        maps.append(_active(self.last(x)))
        for i in range(1, len(self.extras) + 1):
            maps.append(self.extras[f"stage{i}"](maps[-1]))
        found = [self.heads[f"map{i}"](x) for i, x in enumerate(maps, 1)]
        codes, logits = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        axes = ("batch", None, None)
        return constrain(codes.astype(self.dtype), *axes), constrain(logits.astype(self.dtype), *axes)
