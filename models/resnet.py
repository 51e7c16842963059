"""ResNet v1.5 (He et al., arXiv:1512.03385; stride on the 3x3), as MLPerf Training's reference has it.

Source of every choice: mlcommons/training, retired_benchmarks/resnet-tf2/tensorflow2/resnet_model.py.
Convolutions have no bias and start from He's normal, the classifier from N(0, 0.01); batch norm has
momentum 0.9 and epsilon 1e-5; strided windows are padded as TensorFlow's SAME (or as PyTorch's), except
the 7x7, which has 3 on every side. ResNet-50 with 1,000 classes has 25,557,032 parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.classifier import Classifier
from models.layers import Conv, Padding, convolve
from models.norms import BatchNorm
from models.pooling import max_pool

EXPANSION = 4
"""A bottleneck's output has this many times the channels of its 3x3 convolution."""


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a bottleneck ResNet.

    Attributes:
        stages: bottlenecks per stage; every stage but the first halves height and width.
        width: channels of the stem and of the first stage's 3x3; each later stage doubles them.
        num_classes: logits.
        image_size: height and width of the images, in pixels.
        channels_in: channels of the images.
        stem: "imagenet" (7x7/2, batch norm, ReLU, 3x3/2 max-pool) or "small" (3x3/2, batch norm, ReLU).
        bn_span: samples per group of batch norm; 0 for the whole global batch.
        zero_init_last_gamma: start each residual branch at zero (arXiv:1706.02677). The reference
            starts at one; accepted submissions did either.
        space_to_depth: compute the 7x7/2 stem as a 4x4/1 convolution over 2x2 blocks of pixels, with
            the same kernel and numbers: 12 input channels fill a TPU's matrix unit better than 3.
        padding: of strided 3x3 windows: "tf" as TensorFlow's SAME, at the end only where sizes are even;
            "torch" by one on every side, which published PyTorch weights were trained with; "fixed" so but for
            the max-pool, as in TensorFlow's official model (tensorflow/models, official/resnet/resnet_model.py).
        groups: into so many the channels of each 3x3 are cut (ResNeXt, arXiv:1611.05431).
        inner: channels of a bottleneck's 3x3, in times of its stage's width; 2 with 32 groups in
            ResNeXt-50 32x4d.
        strided: which convolution of a bottleneck has the stride: "3x3" (v1.5) or "1x1", the first (v1).
        norm_epsilon: added to the variance by every batch norm.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    num_classes: int = 1000
    image_size: int = 224
    channels_in: int = 3
    stem: str = "imagenet"
    bn_span: int = 0
    zero_init_last_gamma: bool = False
    space_to_depth: bool = False
    padding: str = "tf"
    groups: int = 1
    inner: int = 1
    strided: str = "3x3"
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if self.stem not in ("imagenet", "small"):
            raise ValueError(f"stem {self.stem!r} is neither 'imagenet' nor 'small'")
        if self.padding not in ("tf", "torch", "fixed"):
            raise ValueError(f"padding {self.padding!r} is none of 'tf', 'torch' and 'fixed'")
        if self.strided not in ("3x3", "1x1"):
            raise ValueError(f"strided {self.strided!r} is neither '3x3' nor '1x1'")
        if self.space_to_depth and (self.stem != "imagenet" or self.image_size % 2):
            raise ValueError("space_to_depth needs the imagenet stem and an even image_size")

    @property
    def padding_3x3(self) -> Padding:
        """Of 3x3 convolutions, as `models.layers` takes it."""
        return "SAME" if self.padding == "tf" else ((1, 1), (1, 1))

    @property
    def padding_pool(self) -> Padding:
        """Of the max-pool."""
        return ((1, 1), (1, 1)) if self.padding == "torch" else "SAME"

    @classmethod
    def resnet50(cls) -> ResNetConfig:
        """MLPerf's model."""
        return cls()

    @classmethod
    def mini(cls) -> ResNetConfig:
        """The same bottlenecks at a size for 28x28 grey images on a laptop."""
        return cls(stages=(1, 1, 1), width=8, num_classes=10, image_size=28, channels_in=1, stem="small")


class Stem(nnx.Module):
    """The 7x7/2 convolution, [B, H, W, I] to [B, H/2, W/2, O], optionally over 2x2 blocks of pixels."""

    def __init__(self, config: ResNetConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        size, padding = (7, ((3, 3), (3, 3))) if config.stem == "imagenet" else (3, config.padding_3x3)
        self.conv = Conv(
            config.channels_in, config.width, size, stride=2, padding=padding, policy=policy, rngs=rngs
        )
        self.space_to_depth = config.space_to_depth

    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.space_to_depth:
            return self.conv(x)
        # Output o reads pixels 2o-3 ... 2o+3. With a zero row and column put before it the kernel reads
        # 2o-4 ... 2o+3, which is blocks o-2 ... o+1 of two pixels: four taps, padded (2, 1), stride 1.
        kernel = jnp.pad(self.conv.kernel[...], ((1, 0), (1, 0), (0, 0), (0, 0)))
        _, _, channels, features = kernel.shape
        kernel = kernel.reshape(4, 2, 4, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
        kernel = kernel.reshape(4, 4, 4 * channels, features)
        dtype = self.conv.dtype
        return convolve(space_to_depth(x).astype(dtype), kernel.astype(dtype), 1, ((2, 1), (2, 1)))


def space_to_depth(x: jax.Array) -> jax.Array:
    """Moves 2x2 blocks of pixels into channels: [B, H, W, C] to [B, H/2, W/2, 4C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


class Bottleneck(nnx.Module):
    """1x1, 3x3 (one of them strided), 1x1 with batch norms, added to a shortcut that is projected where shapes differ."""

    def __init__(
        self,
        features_in: int,
        width: int,
        stride: int,
        config: ResNetConfig,
        *,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        inner, features_out = config.inner * width, EXPANSION * width
        last_scale = 0.0 if config.zero_init_last_gamma else 1.0

        def norm(features: int, scale: float = 1.0) -> BatchNorm:
            return BatchNorm(
                features, span=config.bn_span, scale=scale, epsilon=config.norm_epsilon, policy=policy
            )

        first, second = (stride, 1) if config.strided == "1x1" else (1, stride)
        self.conv1 = Conv(features_in, inner, 1, stride=first, policy=policy, rngs=rngs)
        self.norm1 = norm(inner)
        self.conv2 = Conv(
            inner,
            inner,
            3,
            stride=second,
            padding=config.padding_3x3,
            groups=config.groups,
            policy=policy,
            rngs=rngs,
        )
        self.norm2 = norm(inner)
        self.conv3 = Conv(inner, features_out, 1, policy=policy, rngs=rngs)
        self.norm3 = norm(features_out, last_scale)
        self.projects = stride > 1 or features_in != features_out
        if self.projects:
            self.conv_shortcut = Conv(features_in, features_out, 1, stride=stride, policy=policy, rngs=rngs)
            self.norm_shortcut = norm(features_out)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, I] to [B, H/stride, W/stride, 4 width]."""
        y = nnx.relu(self.norm1(pin(self.conv1(x)), train=train))
        y = nnx.relu(self.norm2(pin(self.conv2(y)), train=train))
        y = self.norm3(pin(self.conv3(y)), train=train)
        if self.projects:
            x = self.norm_shortcut(pin(self.conv_shortcut(x)), train=train)
        return nnx.relu(y + x)


class BasicBlock(nnx.Module):
    """3x3 (strided), 3x3 with batch norms, added to a shortcut that is projected where shapes differ.

    The block of ResNet-18 and -34, which detectors use as a backbone.
    """

    def __init__(
        self,
        features_in: int,
        width: int,
        stride: int,
        config: ResNetConfig,
        *,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        def conv3x3(features: int, stride: int) -> Conv:
            return Conv(
                features, width, 3, stride=stride, padding=config.padding_3x3, policy=policy, rngs=rngs
            )

        def norm(scale: float = 1.0) -> BatchNorm:
            return BatchNorm(
                width, span=config.bn_span, scale=scale, epsilon=config.norm_epsilon, policy=policy
            )

        self.conv1 = conv3x3(features_in, stride)
        self.norm1 = norm()
        self.conv2 = conv3x3(width, 1)
        self.norm2 = norm(0.0 if config.zero_init_last_gamma else 1.0)
        self.projects = stride > 1 or features_in != width
        if self.projects:
            self.conv_shortcut = Conv(features_in, width, 1, stride=stride, policy=policy, rngs=rngs)
            self.norm_shortcut = norm()

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, I] to [B, H/stride, W/stride, width]."""
        y = nnx.relu(self.norm1(pin(self.conv1(x)), train=train))
        y = self.norm2(pin(self.conv2(y)), train=train)
        if self.projects:
            x = self.norm_shortcut(pin(self.conv_shortcut(x)), train=train)
        return nnx.relu(y + x)


class ResNet(nnx.Module):
    """A bottleneck ResNet for classification."""

    def __init__(self, config: ResNetConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.config = config
        self.stem = Stem(config, policy=policy, rngs=rngs)
        self.norm = BatchNorm(config.width, span=config.bn_span, epsilon=config.norm_epsilon, policy=policy)
        self.blocks: nnx.Dict[Bottleneck] = nnx.Dict()
        features = config.width
        for name, width, stride in bottlenecks(config):
            self.blocks[name] = Bottleneck(features, width, stride, config, policy=policy, rngs=rngs)
            features = EXPANSION * width
        self.head = Classifier(features, config.num_classes, policy=policy, rngs=rngs)

    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Classifies images.

        Args:
            inputs: [B, H, W, channels_in], any float dtype, already normalised.
            train: normalise by the batch's statistics and update the running ones.

        Returns:
            Logits [B, num_classes] in the policy's output dtype.
        """
        x = nnx.relu(self.norm(pin(self.stem(inputs)), train=train))
        if self.config.stem == "imagenet":
            x = pin(max_pool(x, self.config.padding_pool))
        for name, _, _ in bottlenecks(self.config):
            x = pin(self.blocks[name](x, train=train))
        return self.head(x)


def stage_blocks(width: int, stages: Sequence[int], strides: Sequence[int]) -> list[tuple[str, int, int]]:
    """Every block's name, width and stride, in order.

    Args:
        width: of the first stage; each later one doubles it.
        stages: blocks of each.
        strides: of each stage's first block; the others have 1.
    """
    return [
        (f"stage{s + 1}_block{b + 1}", width << s, stride if b == 0 else 1)
        for s, (count, stride) in enumerate(zip(stages, strides, strict=True))
        for b in range(count)
    ]


def bottlenecks(config: ResNetConfig) -> list[tuple[str, int, int]]:
    """Every bottleneck's name, width and stride, in order."""
    return stage_blocks(config.width, config.stages, [1, *[2] * len(config.stages)][: len(config.stages)])


def pin(x: jax.Array) -> jax.Array:
    """Pins images of features [B, H, W, C] to the layout in use."""
    return constrain(x, "batch", "height", "width", "channels")


def flops_per_image(config: ResNetConfig, *, train: bool) -> int:
    """Floating-point operations that the model itself asks for, per image, for model FLOP utilisation.

    A convolution of kernel k x k from I to O channels with an output of h x w counts
    `2 k k I O h w` (a multiply and an add), the classifier `2 I O`; norms, activations, pooling and the
    optimizer count nothing. Training counts three times the forward pass: each product has two
    gradients of its own size. ResNet-50 at 224 pixels: 8.2 GFLOP forward, 24.5 GFLOP in training.
    """
    size = _halved(config.image_size)
    kernel = 7 if config.stem == "imagenet" else 3
    products = kernel**2 * config.channels_in * config.width * size**2
    if config.stem == "imagenet":
        size = _halved(size)
    features = config.width
    for _, width, stride in bottlenecks(config):
        inner, features_out = config.inner * width, EXPANSION * width
        before, size = size, _halved(size) if stride == 2 else size
        products += features * inner * (size if config.strided == "1x1" else before) ** 2
        products += (9 * inner * inner // config.groups + inner * features_out) * size**2
        if stride > 1 or features != features_out:
            products += features * features_out * size**2
        features = features_out
    products += features * config.num_classes
    return 2 * products * (3 if train else 1)


def _halved(size: int) -> int:
    return (size + 1) // 2
