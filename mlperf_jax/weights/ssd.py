"""Published weights for `models.ssd`: torchvision's ResNet-34 as its backbone, and whole detectors.

Whole ones are named as in MLPerf's own files (mlcommons/training, retired_benchmarks/ssd-v1, and for
1200 pixels mlcommons/inference, resnet34-ssd1200.pth): model.layer1.0 is torchvision's conv1,
model.layer1.4 its layer1, model.layer2.0 its layer3; then additional_blocks, loc and conf.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlperf_jax.weights import resnet
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import TorchSource, unwrapped
from mlperf_jax.workload import State
from models.ssd import SSDConfig

CONFIG = {key: resnet.CONFIG[key] for key in ("data.mean", "data.std")}
"""The config that goes with such weights: what pixels are normalised by."""

# What follows tells a part of nn.Sequential from a block of torchvision's.
_SEQUENTIAL = (
    (r"layer1\.0(?=\.\w+$)", "conv1"),
    (r"layer1\.1(?=\.\w+$)", "bn1"),
    (r"layer1\.4(?=\.\d+\.)", "layer1"),
    (r"layer1\.5(?=\.\d+\.)", "layer2"),
    (r"layer2\.0(?=\.\d+\.)", "layer3"),
)


def backbone(tensors: Mapping[str, Tensor], config: SSDConfig) -> State:
    """Parameters and statistics of the backbone from an image classifier, float32.

    The classifier's last stage and head, which a detector has not, are left out.

    Raises:
        UserError: an array is missing or has another shape.
    """
    source = TorchSource(resnet.torchvision_names(tensors))
    params, stats = _backbone(source, config)
    return {"params": params, "model_state": stats}


def from_reference(tensors: Mapping[str, Tensor], config: SSDConfig) -> State:
    """Parameters and statistics of a whole detector, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = TorchSource({_plain(name): array for name, array in tensors.items()})
    params, stats = _backbone(source, config)
    return {
        "params": {"backbone": params, **_detector(source, config)},
        "model_state": {"backbone": stats},
    }


def _plain(name: str) -> str:
    name = unwrapped(name)
    for pattern, replacement in _SEQUENTIAL:
        changed = re.sub(f"^{pattern}", replacement, name)
        if changed != name:
            return changed
    return name


def _backbone(source: TorchSource, config: SSDConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    params: dict[str, Any] = {"blocks": {}, "stem": {"conv": source.conv("conv1", 7, 3, config.width)}}
    stats: dict[str, Any] = {"blocks": {}}
    params["norm"], stats["norm"] = source.norm("bn1", "conv1", config.width)
    features = config.width
    for ours, width, stride in config.blocks:
        stage, block = map(int, re.findall(r"\d+", ours))
        params["blocks"][ours], stats["blocks"][ours] = source.block(
            f"layer{stage}.{block - 1}",
            [(3, features, width), (3, width, width)],
            shortcut=(features, width) if stride > 1 or features != width else None,
        )
        features = width
    return params, stats


def _detector(source: TorchSource, config: SSDConfig) -> dict[str, Any]:
    channels, extras, heads = config.map_channels, {}, {}
    for i, (inner, outer) in enumerate(zip(config.extra_inner, config.extra_outer, strict=True)):
        name = f"additional_blocks.{i}"
        extras[f"stage{i + 1}"] = {
            "conv1": source.conv(f"{name}.0", 1, channels[i], inner, bias=True),
            "conv2": source.conv(f"{name}.2", 3, inner, outer, bias=True),
        }
    for i, (features, anchors) in enumerate(zip(channels, config.anchors, strict=True)):
        heads[f"map{i + 1}"] = {
            "boxes": source.conv(f"loc.{i}", 3, features, 4 * anchors, bias=True),
            "classes": source.conv(f"conf.{i}", 3, features, config.num_classes * anchors, bias=True),
        }
    source.refuse_left_over()
    return {"extras": extras, "heads": heads}


def logged_names(config: SSDConfig) -> list[str]:
    """The names under which MLPerf's log has what was initialised, in order.

    Those of the checker (mlperf_logging/compliance_checker/training_1.1.0/closed_ssd.yaml). A stage's
    convolutions and norms count through its blocks, a projection after its block's two; the two
    predictors of a map, boxes and classes, are one there.
    """
    names = _convolution("resnetmlperf0_", 0)
    for stage, count in enumerate(config.stages, 1):
        for i in range(2 * count + (stage > 1)):
            names += _convolution(f"resnetmlperf0_stage{stage}_", i)
    extras = [
        f"{kind}_conv{i}" for i in range(len(config.extra_outer)) for kind in ("expand_trans", "expand")
    ]
    heads = [f"convpredictor{i}_conv0" for i in range(len(config.anchors))]
    names += [f"{name}_{part}" for name in extras + heads for part in ("weight", "bias")]
    return [f"ssd0_{name}" for name in names]


def _convolution(place: str, i: int) -> list[str]:
    return [f"{place}conv{i}_weight", f"{place}batchnorm{i}_gamma", f"{place}batchnorm{i}_beta"]
