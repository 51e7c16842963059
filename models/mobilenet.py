"""MobileNet v1 (Howard et al., arXiv:1704.04861): 3x3 convolutions of single channels, and 1x1 between them.

Details that the paper leaves open are those of the published weights, which MLPerf Inference v0.5 measured
(tensorflow/models, research/slim/nets/mobilenet_v1.py): ReLU6, batch norm with epsilon 1e-3, TensorFlow's SAME
padding. Its dropout of 0.001 before the classifier is left out. Width 1.0 with 1,000 classes has 4,231,976
parameters.
"""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from mlperf_jax.precision import Policy
from models.classifier import Classifier
from models.layers import Conv, Padding
from models.norms import BatchNorm
from models.resnet import pin

_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


@dataclasses.dataclass(frozen=True)
class MobileNetConfig:
    """Sizes of a MobileNet.

    Attributes:
        stem: channels of the first convolution, which halves height and width.
        blocks: (channels, stride) of each depthwise separable block.
        width: by which all channels are multiplied.
        num_classes: logits.
        image_size: height and width of the images, in pixels.
        channels_in: channels of the images.
        bn_span: samples per group of batch norm; 0 for the whole global batch.
        padding: of 3x3 windows: "tf" as TensorFlow's SAME, at the end only where sizes are even; "torch" by one
            on every side.
        epsilon: added to the variance in batch norm.
        momentum: how much of batch norm's running statistics stays at each step.
    """

    stem: int = 32
    blocks: tuple[tuple[int, int], ...] = _BLOCKS
    width: float = 1.0
    num_classes: int = 1000
    image_size: int = 224
    channels_in: int = 3
    bn_span: int = 0
    padding: str = "tf"
    epsilon: float = 1e-3
    momentum: float = 0.9

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple((channels, stride) for channels, stride in self.blocks))
        if self.padding not in ("tf", "torch"):
            raise ValueError(f"padding {self.padding!r} is neither 'tf' nor 'torch'")

    @property
    def padding_3x3(self) -> Padding:
        """Of 3x3 windows, as `models.layers` takes it."""
        return "SAME" if self.padding == "tf" else ((1, 1), (1, 1))

    def channels(self, at_width_one: int) -> int:
        """Channels at this width."""
        return max(8, round(at_width_one * self.width))

    @classmethod
    def mini(cls) -> MobileNetConfig:
        """The same blocks at a size for 28x28 grey images on a laptop."""
        blocks = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1))
        return cls(stem=16, blocks=blocks, num_classes=10, image_size=28, channels_in=1)


class Separable(nnx.Module):
    """A 3x3 convolution of each channel by itself (strided), then a 1x1; batch norm and ReLU6 after both."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        stride: int,
        config: MobileNetConfig,
        *,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        self.depthwise = Conv(
            features_in,
            features_in,
            3,
            stride=stride,
            padding=config.padding_3x3,
            groups=features_in,
            policy=policy,
            rngs=rngs,
        )
        self.norm1 = make_norm(features_in, config, policy)
        self.pointwise = Conv(features_in, features_out, 1, policy=policy, rngs=rngs)
        self.norm2 = make_norm(features_out, config, policy)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, I] to [B, H/stride, W/stride, O]."""
        x = jax.nn.relu6(self.norm1(pin(self.depthwise(x)), train=train))
        return jax.nn.relu6(self.norm2(pin(self.pointwise(x)), train=train))


class MobileNetTrunk(nnx.Module):
    """Everything before the classifier. A detector takes the features after some of the blocks."""

    def __init__(self, config: MobileNetConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        features = config.channels(config.stem)
        self.stem = Conv(
            config.channels_in, features, 3, stride=2, padding=config.padding_3x3, policy=policy, rngs=rngs
        )
        self.norm = make_norm(features, config, policy)
        self.blocks: nnx.Dict[Separable] = nnx.Dict()
        for i, (channels, stride) in enumerate(config.blocks, 1):
            features_out = config.channels(channels)
            self.blocks[f"block{i}"] = Separable(
                features, features_out, stride, config, policy=policy, rngs=rngs
            )
            features = features_out
        self.features = features

    def __call__(self, inputs: jax.Array, *, train: bool) -> list[jax.Array]:
        """The features after every block, from images [B, H, W, channels_in], already normalised."""
        x = jax.nn.relu6(self.norm(pin(self.stem(inputs)), train=train))
        found = []
        for i in range(1, len(self.blocks) + 1):
            x = self.blocks[f"block{i}"](x, train=train)
            found.append(x)
        return found


class MobileNet(nnx.Module):
    """MobileNet v1 for classification."""

    def __init__(self, config: MobileNetConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.config = config
        self.trunk = MobileNetTrunk(config, policy=policy, rngs=rngs)
        self.head = Classifier(self.trunk.features, config.num_classes, policy=policy, rngs=rngs)

    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Classifies images [B, H, W, channels_in], already normalised: logits [B, num_classes] in the output dtype."""
        return self.head(self.trunk(inputs, train=train)[-1])


def make_norm(features: int, config: MobileNetConfig, policy: Policy) -> BatchNorm:
    """Batch norm with the config's numbers."""
    return BatchNorm(
        features, span=config.bn_span, momentum=config.momentum, epsilon=config.epsilon, policy=policy
    )


def trunk_products(config: MobileNetConfig) -> int:
    """Multiply-adds of the trunk for one image."""
    size = (config.image_size + 1) // 2
    features = config.channels(config.stem)
    products = 9 * config.channels_in * features * size**2
    for at_width_one, stride in config.blocks:
        size = -(-size // stride)
        features_out = config.channels(at_width_one)
        products += (9 + features_out) * features * size**2
        features = features_out
    return products


def flops_per_image(config: MobileNetConfig, *, train: bool) -> int:
    """Floating-point operations that the model asks for, per image, counted as `models.resnet` counts them.

    At width 1.0 and 224 pixels 1.14 GFLOP forward.
    """
    head = config.channels(config.blocks[-1][0]) * config.num_classes
    return 2 * (trunk_products(config) + head) * (3 if train else 1)
