"""Mask R-CNN for phones: people's boxes, masks and 17 keypoints, after what was published of Mask R-CNN2Go.

**Published** ("Enabling full body AR with Mask R-CNN2Go", research.fb.com, 25 January 2018): five parts. A trunk of few
and narrow convolutions; regions proposed at anchors of given sizes and aspects; a first RoI align and a head of convolutions,
pooling and dense layers that says how surely a box holds a person, and refines it; of the final boxes a second RoI
align, which a segmentation head and a keypoint head of like architecture share; a map for every keypoint, whose single largest
value is where it is. A few megabytes. **Not published**: layers, widths, input sizes, losses, schedules, figures on COCO. Its
authors' later open code, facebookresearch/d2go, has a model of the kind on COCO's keypoints, on a searched trunk
(FBNetV3-A) at 224 / 448 pixels: keypoint AP .3556, which is taken as target (configs/maskrcnn2go.py).

**Chosen here**: the trunk is MobileNet v2 without its last convolution (Sandler et al., arXiv:1801.04381), for which
ImageNet's weights are public. Its maps at strides 4 to 32 feed a pyramid of 64 channels, so that joints a few
pixels apart are told apart. Heads are depthwise separable, with ReLU. What was left open of losses and of how a map is
made finer (transposed convolution, then bilinear by two) is as Mask R-CNN has it (He et al., arXiv:1703.06870, section 5).
Closed the model has 2,205,484 parameters, 1,811,712 of them in the trunk.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
from flax import nnx
from jax.nn import initializers

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.fpn import FeaturePyramid
from models.layers import Conv, ConvTranspose, Dense
from models.norms import BatchNorm
from models.resnet import pin

Stage = tuple[int, int, int, int]

MOBILENET_V2: tuple[Stage, ...] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@dataclasses.dataclass(frozen=True)
class MaskRCNN2GoConfig:
    """Sizes of the model.

    Attributes:
        num_classes: with the background.
        num_keypoints: of an object.
        stem: channels of the first convolution, which halves height and width.
        stages: (expansion, channels, blocks, stride of the first) of the trunk's inverted residuals.
        channels: of the pyramid and of the heads' convolutions.
        anchors: per cell.
        box_window: height and width of what the box head sees of a box.
        dense: features of its dense layer.
        mask_window: height and width of what the mask and keypoint heads see; masks have twice that, keypoints' maps four times.
        convs: in each of these two heads.
        norm_epsilon: added to the variance in batch norm.
        norm_momentum: how much of its running statistics stays at each step.
        bn_span: samples per group of batch norm; 0 for the whole global batch.
    """

    num_classes: int = 2
    num_keypoints: int = 17
    stem: int = 32
    stages: tuple[Stage, ...] = MOBILENET_V2
    channels: int = 64
    anchors: int = 3
    box_window: int = 7
    dense: int = 128
    mask_window: int = 14
    convs: int = 4
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    bn_span: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(tuple(stage) for stage in self.stages))

    @property
    def blocks(self) -> list[tuple[int, int, int]]:
        """(expansion, channels, stride) of every block of the trunk."""
        return [
            (expansion, channels, stride if i == 0 else 1)
            for expansion, channels, count, stride in self.stages
            for i in range(count)
        ]

    @property
    def taken_after(self) -> list[int]:
        """The blocks, from 0, that are the last of their size, from a quarter of the image's on."""
        strides = [stride for _, _, stride in self.blocks]
        found = [i for i, following in enumerate([*strides[1:], 2]) if following == 2]
        return found[1:] if strides[0] == 1 else found

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of the trunk's maps, which the pyramid is made of."""
        return tuple(self.blocks[i][1] for i in self.taken_after)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from cell to cell of every level, the pooled one too."""
        return tuple(4 << level for level in range(len(self.taken_after) + 1))


_SAME = ((1, 1), (1, 1))
_relu_out = initializers.variance_scaling(2, "fan_out", "normal")


class InvertedResidual(nnx.Module):
    """A 1x1 convolution to more channels, a 3x3 of each by itself, and a 1x1 to fewer; added to what came in where that fits.

    Batch norm after all three, ReLU6 after the first two. Without expansion there is no first.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        expansion: int,
        stride: int,
        config: MaskRCNN2GoConfig,
        *,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        conv = functools.partial(Conv, kernel_init=_relu_out, policy=policy, rngs=rngs)
        inner = expansion * features_in
        self.expands = expansion > 1
        if self.expands:
            self.expand = conv(features_in, inner, 1)
            self.norm1 = _norm(inner, config, policy)
        self.depthwise = conv(inner, inner, 3, stride=stride, padding=_SAME, groups=inner)
        self.norm2 = _norm(inner, config, policy)
        self.project = conv(inner, features_out, 1)
        self.norm3 = _norm(features_out, config, policy)
        self.adds = stride == 1 and features_in == features_out

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, I] to [B, H/stride, W/stride, O]."""
        y = jax.nn.relu6(self.norm1(pin(self.expand(x)), train=train)) if self.expands else x
        y = jax.nn.relu6(self.norm2(pin(self.depthwise(y)), train=train))
        y = self.norm3(pin(self.project(y)), train=train)
        return pin(x + y) if self.adds else y


def _norm(features: int, config: MaskRCNN2GoConfig, policy: Policy) -> BatchNorm:
    momentum, epsilon = config.norm_momentum, config.norm_epsilon
    return BatchNorm(features, span=config.bn_span, momentum=momentum, epsilon=epsilon, policy=policy)


class MobileTrunk(nnx.Module):
    """MobileNet v2 without its last convolution and its classifier."""

    def __init__(self, config: MaskRCNN2GoConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        self.stem = Conv(
            3, config.stem, 3, stride=2, padding=_SAME, kernel_init=_relu_out, policy=policy, rngs=rngs
        )
        self.norm = _norm(config.stem, config, policy)
        features, blocks = config.stem, []
        for expansion, channels, stride in config.blocks:
            blocks.append(
                InvertedResidual(features, channels, expansion, stride, config, policy=policy, rngs=rngs)
            )
            features = channels
        self.blocks = nnx.List(blocks)
        self.taken_after = tuple(config.taken_after)

    def __call__(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        """Maps images [B, H, W, 3] to [B, H/4, W/4, ...], [B, H/8, W/8, ...] and so on."""
        x = jax.nn.relu6(self.norm(pin(self.stem(images)), train=train))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x, train=train)
            if i in self.taken_after:
                maps.append(x)
        return maps


class Separable(nnx.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1, with biases, and ReLU."""

    def __init__(self, features: int, *, stride: int = 1, policy: Policy, rngs: nnx.Rngs) -> None:
        conv = functools.partial(Conv, bias=True, kernel_init=_relu_out, policy=policy, rngs=rngs)
        self.depthwise = conv(features, features, 3, stride=stride, padding=_SAME, groups=features)
        self.pointwise = conv(features, features, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H/stride, W/stride, C]."""
        return nnx.relu(self.pointwise(self.depthwise(x)))


class ProposalHead(nnx.Module):
    """A separable convolution, and from it for every anchor how likely it holds something, and a box code."""

    def __init__(self, config: MaskRCNN2GoConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        conv = functools.partial(
            Conv, bias=True, kernel_init=initializers.normal(0.01), policy=policy, rngs=rngs
        )
        self.conv = Separable(config.channels, policy=policy, rngs=rngs)
        self.objectness = conv(config.channels, config.anchors, 1)
        self.codes = conv(config.channels, 4 * config.anchors, 1)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps a level [B, H, W, C] to logits [B, H W anchors] and codes [B, H W anchors, 4]."""
        x = pin(self.conv(x))
        return self.objectness(x).reshape(len(x), -1), self.codes(x).reshape(len(x), -1, 4)


class BoxHead(nnx.Module):
    """A strided separable convolution and a dense layer, and from them what a box holds and where exactly that is."""

    def __init__(self, config: MaskRCNN2GoConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        dense = functools.partial(Dense, policy=policy, rngs=rngs)
        flat = ((config.box_window + 1) // 2) ** 2 * config.channels
        uniform = initializers.variance_scaling(1, "fan_in", "uniform")
        self.conv = Separable(config.channels, stride=2, policy=policy, rngs=rngs)
        self.dense = dense(flat, config.dense, axes=("embed", "mlp"), kernel_init=uniform)
        self.classes = dense(config.dense, config.num_classes, axes=("mlp", None), stddev=0.01)
        self.codes = dense(config.dense, 4 * config.num_classes, axes=("mlp", None), stddev=0.001)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps what boxes hold, [B, R, window, window, C], to logits [B, R, classes] and codes [B, R, classes, 4]."""
        boxes = x.shape[:2]
        x = _pin_boxes(self.conv(x.reshape(-1, *x.shape[2:])))
        x = constrain(nnx.relu(self.dense(x.reshape(*boxes, -1))), "batch", None, "mlp")
        logits, codes = self.classes(x), self.codes(x)
        return logits, codes.reshape(*logits.shape, 4)


class WindowHead(nnx.Module):
    """Separable convolutions and a transposed 2x2, with ReLU, and from them maps of twice the window: of classes, or of keypoints."""

    def __init__(self, maps: int, config: MaskRCNN2GoConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        channels = config.channels
        self.convs = nnx.List([Separable(channels, policy=policy, rngs=rngs) for _ in range(config.convs)])
        self.enlarged = ConvTranspose(
            channels,
            channels,
            2,
            stride=2,
            bias=True,
            kernel_init=initializers.variance_scaling(2, "fan_in", "normal"),
            policy=policy,
            rngs=rngs,
        )
        self.maps = Conv(channels, maps, 1, bias=True, kernel_init=_relu_out, policy=policy, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps what boxes hold, [B, R, window, window, C], to logits [B, R, 2 window, 2 window, maps]."""
        boxes = x.shape[:2]
        x = x.reshape(-1, *x.shape[2:])
        for conv in self.convs:
            x = _pin_boxes(conv(x))
        x = self.maps(nnx.relu(_pin_boxes(self.enlarged(x))))
        return x.reshape(*boxes, *x.shape[1:])


def _pin_boxes(x: jax.Array) -> jax.Array:
    """Pins what boxes hold, [B R, window, window, C]: small, so that its height stays whole where images' is split."""
    return constrain(x, "batch", None, None, "channels")


class MaskRCNN2Go(nnx.Module):
    """The detector, without what makes boxes and keypoints of its predictions (`mlperf_jax.detection`)."""

    def __init__(self, config: MaskRCNN2GoConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.backbone = MobileTrunk(config, policy=policy, rngs=rngs)
        self.pyramid = FeaturePyramid(config.map_channels, config.channels, 0, policy=policy, rngs=rngs)
        self.proposals = ProposalHead(config, policy=policy, rngs=rngs)
        self.boxes = BoxHead(config, policy=policy, rngs=rngs)
        self.masks = WindowHead(config.num_classes, config, policy=policy, rngs=rngs)
        self.keypoints = WindowHead(config.num_keypoints, config, policy=policy, rngs=rngs)

    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
        """The first of two stages, as `models.maskrcnn.MaskRCNN` has it; the heads `boxes`, `masks` and `keypoints` are the second.

        Args:
            images: [B, H, W, 3], any float dtype, already normalised.
            train: normalise by the batch's statistics and update the running ones.

        Returns:
            Levels [B, h, w, channels], and of these and of the last one, pooled, logits [B, A] and box codes [B, A, 4].
        """
        levels = self.pyramid(self.backbone(images, train=train))
        found = [self.proposals(x) for x in (*levels, levels[-1][:, ::2, ::2])]
        return levels, [logits for logits, _ in found], [codes for _, codes in found]


def flops_per_image(
    config: MaskRCNN2GoConfig, size: Sequence[int], boxes: int, windows: int, *, train: bool
) -> int:
    """Floating-point operations that the model itself asks for, per image (see `models.resnet`).

    Args:
        config: the model.
        size: height and width of the image, multiples of the last map's stride.
        boxes: that go through the box head.
        windows: boxes that go through the mask and the keypoint head.
        train: count the gradients too.
    """
    pixels = size[0] * size[1]
    cells = pixels // 4
    products, features = 27 * config.stem * cells, config.stem
    channels, separable = config.channels, 9 * config.channels + config.channels**2
    for i, (expansion, features_out, stride) in enumerate(config.blocks):
        inner = expansion * features
        products += cells * features * inner * (expansion > 1)
        cells //= stride**2
        products += cells * inner * (9 + features_out)
        features = features_out
        if i in config.taken_after:
            head = separable + 5 * config.anchors * channels
            products += cells * (features * channels + 9 * channels**2 + head)
    products += pixels // config.strides[-1] ** 2 * (separable + 5 * config.anchors * channels)
    side = (config.box_window + 1) // 2
    products += boxes * side**2 * (separable + channels * config.dense)
    products += boxes * 5 * config.num_classes * config.dense
    maps = config.num_classes + config.num_keypoints
    per_cell = 2 * (config.convs * separable + 4 * channels**2) + 4 * channels * maps
    products += windows * config.mask_window**2 * per_cell
    return 2 * products * (3 if train else 1)
