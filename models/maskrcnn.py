"""Mask R-CNN (He et al., arXiv:1703.06870) on a ResNet with a feature pyramid, as MLPerf's reference has it.

Source of every choice: mlcommons/training, retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark/modeling.
The trunk is the first ResNet-50: strides in the 1x1, norms that keep their published values and add nothing to the
variance. The pyramid's levels are P2 ... P5 of all stages, and P6, every other pixel of P5. On every level one 3x3
convolution proposes boxes at three anchors a cell. What the boxes hold is pooled (`mlperf_jax.detection.roi_align`)
and goes through two heads: two dense layers for classes and box codes of every class, four convolutions and one
transposed for a mask of every class. Class 0 is the background.

With COCO's 81 classes the model has 44,400,693 parameters, of which the norms have 53,120.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
from flax import nnx
from jax.nn import initializers

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.fpn import FeaturePyramid, Trunk
from models.layers import Conv, ConvTranspose, Dense
from models.resnet import EXPANSION, ResNetConfig, pin
from models.resnet import flops_per_image as resnet_flops


@dataclasses.dataclass(frozen=True)
class MaskRCNNConfig:
    """Sizes of a Mask R-CNN.

    Attributes:
        num_classes: with the background.
        width, stages: of the trunk, see `models.resnet.ResNetConfig`.
        strided: which convolution of a bottleneck has the stride; torchvision's model has it in the "3x3".
        channels: of the pyramid and of the head that proposes.
        anchors: per cell.
        box_window: height and width of what the box head sees of a box.
        dense: features of its two layers.
        mask_window: height and width of what the mask head sees; its masks have twice that.
        mask_channels: of each of its convolutions.
        fixed: parts of the trunk whose kernels stay as they are: 0 none, 1 the stem, 2 the stem and the
            first stage, and so on.
        fixed_norms: the norms of the trunk stay as they are, statistics, scales and biases.
        norm_epsilon: added to the variance.
        bn_span: samples per group of batch norm; 0 for the whole global batch.
    """

    num_classes: int = 81
    width: int = 64
    stages: tuple[int, ...] = (3, 4, 6, 3)
    strided: str = "1x1"
    channels: int = 256
    anchors: int = 3
    box_window: int = 7
    dense: int = 1024
    mask_window: int = 14
    mask_channels: tuple[int, ...] = (256, 256, 256, 256)
    fixed: int = 2
    fixed_norms: bool = True
    norm_epsilon: float = 0.0
    bn_span: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "mask_channels", tuple(self.mask_channels))

    @property
    def trunk(self) -> ResNetConfig:
        """The trunk's part, padded as PyTorch's, which its published weights were trained with."""
        return ResNetConfig(
            stages=self.stages,
            width=self.width,
            bn_span=self.bn_span,
            padding="torch",
            strided=self.strided,
            norm_epsilon=self.norm_epsilon,
        )

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of the trunk's maps, which the pyramid is made of."""
        return tuple(EXPANSION * self.width << s for s in range(len(self.stages)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from cell to cell of every level, the pooled one too."""
        return tuple(4 << level for level in range(len(self.stages) + 1))

    def is_fixed(self, path: tuple[str | int, ...]) -> bool:
        """Whether a parameter, by the names that lead to it in the model, stays as it is."""
        part, *names = path
        if part != "backbone":
            return False
        if any(str(name).startswith("norm") for name in names):
            return self.fixed_norms
        stage = 0 if names[0] == "stem" else int(str(names[1]).split("_")[0].removeprefix("stage"))
        return stage < self.fixed


_uniform = initializers.variance_scaling(1, "fan_in", "uniform")
_relu_out = initializers.variance_scaling(2, "fan_out", "normal")


class ProposalHead(nnx.Module):
    """A 3x3 convolution with ReLU, and from it for every anchor how likely it holds something, and a box code."""

    def __init__(self, config: MaskRCNNConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        conv = functools.partial(
            Conv, bias=True, kernel_init=initializers.normal(0.01), policy=policy, rngs=rngs
        )
        channels = config.channels
        self.conv = conv(channels, channels, 3, padding=((1, 1), (1, 1)))
        self.objectness = conv(channels, config.anchors, 1)
        self.codes = conv(channels, 4 * config.anchors, 1)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps a level [B, H, W, C] to logits [B, H W anchors] and codes [B, H W anchors, 4]."""
        x = nnx.relu(pin(self.conv(x)))
        return self.objectness(x).reshape(len(x), -1), self.codes(x).reshape(len(x), -1, 4)


class BoxHead(nnx.Module):
    """Two dense layers, and from them what a box holds and where exactly that is."""

    def __init__(self, config: MaskRCNNConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        dense = functools.partial(Dense, policy=policy, rngs=rngs)
        flat, features, classes = config.box_window**2 * config.channels, config.dense, config.num_classes
        self.first = dense(flat, features, axes=("embed", "mlp"), kernel_init=_uniform)
        self.second = dense(features, features, axes=("mlp", "embed"), kernel_init=_uniform)
        self.classes = dense(features, classes, axes=("embed", None), stddev=0.01)
        self.codes = dense(features, 4 * classes, axes=("embed", None), stddev=0.001)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps what boxes hold, [B, R, window, window, C], to logits [B, R, classes] and codes [B, R, classes, 4]."""
        x = x.reshape(*x.shape[:2], -1)
        x = constrain(nnx.relu(self.first(x)), "batch", None, "mlp")
        x = constrain(nnx.relu(self.second(x)), "batch", None, None)
        logits, codes = self.classes(x), self.codes(x)
        return logits, codes.reshape(*logits.shape, 4)


class MaskHead(nnx.Module):
    """3x3 convolutions and a transposed 2x2, each with ReLU, and from them a mask for every class."""

    def __init__(self, config: MaskRCNNConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        conv = functools.partial(Conv, bias=True, kernel_init=_relu_out, policy=policy, rngs=rngs)
        features = config.channels
        convs: list[Conv] = []
        for channels in config.mask_channels:
            convs.append(conv(features, channels, 3, padding=((1, 1), (1, 1))))
            features = channels
        self.convs = nnx.List(convs)
        self.enlarged = ConvTranspose(
            features,
            features,
            2,
            stride=2,
            bias=True,
            kernel_init=initializers.variance_scaling(2, "fan_in", "normal"),
            policy=policy,
            rngs=rngs,
        )
        self.masks = conv(features, config.num_classes, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps what boxes hold, [B, R, window, window, C], to logits [B, R, 2 window, 2 window, classes]."""
        boxes = x.shape[:2]
        x = x.reshape(-1, *x.shape[2:])
        for conv in self.convs:
            x = nnx.relu(_pin_boxes(conv(x)))
        x = self.masks(nnx.relu(_pin_boxes(self.enlarged(x))))
        return x.reshape(*boxes, *x.shape[1:])


def _pin_boxes(x: jax.Array) -> jax.Array:
    """Pins what boxes hold, [B R, window, window, C]: small, so that its height stays whole where images' is split."""
    return constrain(x, "batch", None, None, "channels")


class MaskRCNN(nnx.Module):
    """The detector, without what makes boxes of its predictions (`mlperf_jax.detection`)."""

    def __init__(self, config: MaskRCNNConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.backbone = Trunk(config.trunk, fixed_norms=config.fixed_norms, policy=policy, rngs=rngs)
        self.pyramid = FeaturePyramid(config.map_channels, config.channels, 0, policy=policy, rngs=rngs)
        self.proposals = ProposalHead(config, policy=policy, rngs=rngs)
        self.boxes = BoxHead(config, policy=policy, rngs=rngs)
        self.masks = MaskHead(config, policy=policy, rngs=rngs)

    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
        """The first of two stages; the second are the heads `boxes` and `masks`, on what its boxes hold.

        Args:
            images: [B, H, W, 3], any float dtype, already normalised.
            train: normalise by the batch's statistics and update the running ones, unless norms are fixed.

        Returns:
            The levels that boxes are looked up in, [B, h, w, channels], the largest first; and of these and of the
            last one, pooled, logits [B, A] and box codes [B, A, 4] in the compute dtype: anchors row by row, cell by
            cell.
        """
        levels = self.pyramid(self.backbone(images, train=train))
        found = [self.proposals(x) for x in (*levels, levels[-1][:, ::2, ::2])]
        return levels, [logits for logits, _ in found], [codes for _, codes in found]


def flops_per_image(
    config: MaskRCNNConfig, size: tuple[int, int], boxes: int, masks: int, *, train: bool
) -> int:
    """Floating-point operations that the model itself asks for, per image (see `models.resnet`).

    Fixed kernels have no gradient, and what lies before the first that is trained passes none on; other
    layers count three times in training.

    Args:
        config: the model.
        size: height and width of the image, multiples of the last map's stride.
        boxes: that go through the box head.
        masks: boxes that go through the mask head.
        train: count the gradients too.
    """
    height, width = size
    units = height * width // config.strides[-2] ** 2  # cells of the last map

    def trunk(stages: int) -> int:
        part = dataclasses.replace(
            config.trunk, num_classes=0, stages=config.stages[:stages], image_size=config.strides[-2]
        )
        return units * resnet_flops(part, train=False)

    whole = trunk(len(config.stages))
    fixed = trunk(config.fixed - 1) if config.fixed else 0
    channels = config.channels
    head = 9 * channels**2 + 5 * config.anchors * channels
    cells = [units * 4**s for s in reversed(range(len(config.stages)))]
    products = sum(
        n * (features * channels + 9 * channels**2 + head)
        for n, features in zip(cells, config.map_channels, strict=True)
    )
    products += -(-height // config.strides[-1]) * -(-width // config.strides[-1]) * head
    dense = config.dense
    products += boxes * dense * (config.box_window**2 * channels + dense + 5 * config.num_classes)
    features, per_cell = channels, 0
    for mask_channels in config.mask_channels:
        per_cell += 9 * features * mask_channels
        features = mask_channels
    per_cell += 4 * features * (features + config.num_classes)
    products += masks * config.mask_window**2 * per_cell
    return (fixed + 3 * (whole - fixed) if train else whole) + 2 * products * (3 if train else 1)
