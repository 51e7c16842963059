"""Published weights for `models.retinanet`: torchvision's ResNeXt-50 as its trunk, and whole detectors.

Whole ones are named as torchvision names them and as MLPerf's own files do (mlcommons/training,
retired_benchmarks/retinanet; mlcommons/inference, resnext50_32x4d_fpn.pth and .onnx): backbone.body is
torchvision's classifier, backbone.fpn the pyramid, head the two heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlperf_jax.weights import resnet
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import TorchSource, unwrapped
from mlperf_jax.workload import State
from models.retinanet import RetinaNetConfig

CONFIG = {key: resnet.CONFIG[key] for key in ("data.mean", "data.std")}
"""The config that goes with such weights: what pixels are normalised by."""

# Newer editions of torchvision put each convolution into a part of its own.
_OLDER = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.0(?=\.\w+$)", r"\1"),
    (r"(head\.\w+\.conv)\.(\d+)\.0(?=\.\w+$)", lambda m: f"{m[1]}.{2 * int(m[2])}"),
)


def backbone(tensors: Mapping[str, Tensor], config: RetinaNetConfig) -> State:
    """Parameters and statistics of the trunk from an image classifier, float32.

    The classifier's head, which a detector has not, is left out.

    Raises:
        UserError: an array is missing or has another shape.
    """
    params, stats = resnet.trunk(TorchSource(resnet.torchvision_names(tensors)), config.trunk)
    return {"params": params, "model_state": stats}


def from_reference(tensors: Mapping[str, Tensor], config: RetinaNetConfig) -> State:
    """Parameters and statistics of a whole detector, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = TorchSource({_older(unwrapped(name)): array for name, array in tensors.items()})
    params, stats = resnet.trunk(source, config.trunk, "backbone.body.")
    whole = {
        "backbone": params,
        "pyramid": _pyramid(source, config),
        "boxes": _head(source, config, "regression_head", "bbox_reg", 4),
        "classes": _head(source, config, "classification_head", "cls_logits", config.num_classes),
    }
    source.refuse_left_over()
    return {"params": whole, "model_state": {"backbone": stats}}


def _older(name: str) -> str:
    for pattern, replacement in _OLDER:
        name = re.sub(f"^{pattern}", replacement, name)
    return name


def _pyramid(source: TorchSource, config: RetinaNetConfig) -> dict[str, Any]:
    channels, fpn = config.channels, "backbone.fpn"
    maps = list(enumerate(config.map_channels))
    return {
        "lateral": {i: source.conv(f"{fpn}.inner_blocks.{i}", 1, n, channels, bias=True) for i, n in maps},
        "output": {
            i: source.conv(f"{fpn}.layer_blocks.{i}", 3, channels, channels, bias=True) for i, _ in maps
        },
        "beyond": {
            i: source.conv(f"{fpn}.extra_blocks.p{6 + i}", 3, channels, channels, bias=True)
            for i in range(config.beyond)
        },
    }


def _head(source: TorchSource, config: RetinaNetConfig, name: str, last: str, values: int) -> dict[str, Any]:
    channels = config.channels
    return {
        "tower": {
            i: source.conv(f"head.{name}.conv.{2 * i}", 3, channels, channels, bias=True)
            for i in range(config.tower)
        },
        "last": source.conv(f"head.{name}.{last}", 3, channels, config.anchors * values, bias=True),
    }
