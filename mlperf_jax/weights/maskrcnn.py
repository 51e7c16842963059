"""Published weights for `models.maskrcnn`: an ImageNet classifier as its trunk, and whole detectors.

Whole ones are named as maskrcnn-benchmark names them (mlcommons/training, retired_benchmarks/maskrcnn) or as
torchvision does; a trunk alone as torchvision names it, or as Caffe2 does (MSRA's R-50.pkl of Detectron, which the
reference begins with). Caffe2's and the reference's see blue first, and pixels of 0 to 255 from which a mean is
subtracted: here the first kernel is turned, so that all models see red first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlperf_jax.weights import resnet
from mlperf_jax.weights.lazy import LazyArray, Tensor, mirrored
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


CONFIG = {"data.mean": (122.7717, 115.9465, 102.9801), "data.std": (1.0, 1.0, 1.0)}
"""What goes with the reference's weights: MSRA's means of red, green and blue."""

TORCHVISION_CONFIG = {key: resnet.CONFIG[key] for key in ("data.mean", "data.std")} | {
    "model.strided": "3x3",
    "model.norm_epsilon": 1e-5,
}
"""What goes with torchvision's."""

_STEM = "backbone.body.stem.conv1.weight"  # under the reference's names only


def published(tensors: Mapping[str, Tensor], config: MaskRCNNConfig) -> tuple[State, dict[str, Any]]:
    """Parameters and statistics of a whole detector, float32, and the config that goes with them.

    Raises:
        UserError: as `from_reference`.
    """
    named = {unwrapped(name): array for name, array in tensors.items()}
    if _STEM not in named:
        return from_reference(named, config), dict(TORCHVISION_CONFIG)
    named[_STEM] = mirrored(named[_STEM], axis=1)
    return from_reference(named, config), dict(CONFIG)


_BRANCHES = {"branch1": "downsample", "branch2a": "1", "branch2b": "2", "branch2c": "3"}


def _from_caffe2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Caffe2's names of a ResNet (conv1_w, res_conv1_bn_s, res2_0_branch2a_w, ...) as torchvision's.

    Its norms are a scale and a bias, so that the mean is 0 and the variance 1.
    """
    found: dict[str, Tensor] = {"conv1.weight": mirrored(tensors["conv1_w"], axis=1)}
    for name, array in tensors.items():
        norm = re.fullmatch(r"res_conv1_bn_([sb])", name)
        layer = re.fullmatch(r"res(\d)_(\d+)_(branch\w+?)_(w|bn_[sb])", name)
        if norm:
            _put_norm(found, "bn1", norm[1], array)
        elif layer and layer[3] in _BRANCHES:
            block, part = f"layer{int(layer[1]) - 1}.{layer[2]}", _BRANCHES[layer[3]]
            conv, bn = (f"{part}.0", f"{part}.1") if part == "downsample" else (f"conv{part}", f"bn{part}")
            if layer[4] == "w":
                found[f"{block}.{conv}.weight"] = array
            else:
                _put_norm(found, f"{block}.{bn}", layer[4][-1], array)
    return found


def _put_norm(found: dict[str, Tensor], name: str, kind: str, array: Tensor) -> None:
    if kind == "b":
        found[f"{name}.bias"] = array
        return
    found[f"{name}.weight"] = array
    found[f"{name}.running_mean"] = LazyArray.of(np.zeros(array.shape, np.float32))
    found[f"{name}.running_var"] = LazyArray.of(np.ones(array.shape, np.float32))


def backbone(tensors: Mapping[str, Tensor], config: MaskRCNNConfig) -> State:
    """Parameters and statistics of the trunk from an image classifier, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    if "conv1_w" in tensors:
        tensors = _from_caffe2(tensors)
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
