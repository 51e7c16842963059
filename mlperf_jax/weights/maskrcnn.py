"""Published weights for `models.maskrcnn`: an ImageNet classifier as its trunk, and whole detectors.

Whole ones are named as maskrcnn-benchmark names them (mlcommons/training, retired_benchmarks/maskrcnn) or as
torchvision does; the same for a trunk alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlperf_jax.weights import resnet
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import TorchSource, unwrapped
from mlperf_jax.workload import State
from models.maskrcnn import MaskRCNNConfig

# Torchvision's names, of which newer editions put each convolution into a part of its own, in the reference's.
_TORCHVISION = (
    (r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?", lambda m: f"backbone.fpn.fpn_inner{int(m[1]) + 1}"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?", lambda m: f"backbone.fpn.fpn_layer{int(m[1]) + 1}"),
    (r"rpn\.head\.conv\.0\.0", "rpn.head.conv"),
    (r"roi_heads\.box_head\.(fc\d)", r"roi_heads.box.feature_extractor.\1"),
    (r"roi_heads\.box_predictor", "roi_heads.box.predictor"),
    (r"roi_heads\.mask_head\.mask_fcn(\d+)", r"roi_heads.mask.feature_extractor.mask_fcn\1"),
    (
        r"roi_heads\.mask_head\.(\d+)\.0",
        lambda m: f"roi_heads.mask.feature_extractor.mask_fcn{int(m[1]) + 1}",
    ),
    (r"roi_heads\.mask_predictor", "roi_heads.mask.predictor"),
    (r"((?:backbone\.body\.)?)stem\.", r"\1"),  # the reference's own, of which torchvision's trunk has none
)


def backbone(tensors: Mapping[str, Tensor], config: MaskRCNNConfig) -> State:
    """Parameters and statistics of the trunk from an image classifier, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    named = {_named(name): array for name, array in resnet.torchvision_names(tensors).items()}
    source = TorchSource({name: array for name, array in named.items() if not name.startswith("fc.")})
    params, stats = resnet.trunk(source, config.trunk)
    source.refuse_left_over()
    return {"params": params, "model_state": stats}


def from_reference(tensors: Mapping[str, Tensor], config: MaskRCNNConfig) -> State:
    """Parameters and statistics of a whole detector, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = TorchSource({_named(unwrapped(name)): array for name, array in tensors.items()})
    params, stats = resnet.trunk(source, config.trunk, "backbone.body.")
    channels = config.channels
    maps = list(enumerate(config.map_channels))
    whole = {
        "backbone": params,
        "pyramid": {
            "lateral": {
                i: source.conv(f"backbone.fpn.fpn_inner{i + 1}", 1, n, channels, bias=True) for i, n in maps
            },
            "output": {
                i: source.conv(f"backbone.fpn.fpn_layer{i + 1}", 3, channels, channels, bias=True)
                for i, _ in maps
            },
        },
        "proposals": {
            "conv": source.conv("rpn.head.conv", 3, channels, channels, bias=True),
            "objectness": source.conv("rpn.head.cls_logits", 1, channels, config.anchors, bias=True),
            "codes": source.conv("rpn.head.bbox_pred", 1, channels, 4 * config.anchors, bias=True),
        },
        "boxes": _box_head(source, config),
        "masks": _mask_head(source, config),
    }
    source.refuse_left_over()
    return {"params": whole, "model_state": {"backbone": stats}}


def _named(name: str) -> str:
    for pattern, replacement in _TORCHVISION:
        name = re.sub(f"^{pattern}", replacement, name)
    return name


def _box_head(source: TorchSource, config: MaskRCNNConfig) -> dict[str, Any]:
    features, classes, window = config.dense, config.num_classes, config.box_window
    layers, last = "roi_heads.box.feature_extractor", "roi_heads.box.predictor"
    first = source.dense(f"{layers}.fc6", config.channels * window**2, features)
    # There channels come first in what the layer sees, here last.
    kernel = first["kernel"].reshape(config.channels, window, window, features)
    first["kernel"] = kernel.transpose(1, 2, 0, 3).reshape(config.channels * window**2, features)
    return {
        "first": first,
        "second": source.dense(f"{layers}.fc7", features, features),
        "classes": source.dense(f"{last}.cls_score", features, classes),
        "codes": source.dense(f"{last}.bbox_pred", features, 4 * classes),
    }


def _mask_head(source: TorchSource, config: MaskRCNNConfig) -> dict[str, Any]:
    layers, last = "roi_heads.mask.feature_extractor", "roi_heads.mask.predictor"
    features = config.channels
    convs: dict[int, Any] = {}
    for i, channels in enumerate(config.mask_channels):
        convs[i] = source.conv(f"{layers}.mask_fcn{i + 1}", 3, features, channels, bias=True)
        features = channels
    return {
        "convs": convs,
        "enlarged": source.conv(f"{last}.conv5_mask", 2, features, features, bias=True, transposed=True),
        "masks": source.conv(f"{last}.mask_fcn_logits", 1, features, config.num_classes, bias=True),
    }
