"""ShuffleNet v2 as torchvision names it (conv1, stage2.0.branch1, ..., conv5, fc), and v1 as its authors do
(first_conv, features.0.branch_main_1, ..., classifier.0; megvii-model/ShuffleNet-Series), into `models.shufflenet`.

The authors' own v2 takes channels by turns where torchvision's takes halves; that file is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.resnet import CONFIG as _TORCHVISION
from mlperf_jax.weights.source import TorchSource
from mlperf_jax.workload import State
from models.shufflenet import ShuffleNetConfig

CONFIG = {key: _TORCHVISION[key] for key in ("data.mean", "data.std")}
"""The config that goes with such weights: what pixels are normalised by."""

Layers = list[tuple[str, str, str, int, int, int]]  # ours, conv, norm, size, features in (of a group), out


def from_torch(tensors: Mapping[str, Tensor], config: ShuffleNetConfig) -> State:
    """Parameters and batch statistics, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = TorchSource({name.removeprefix("module."): array for name, array in tensors.items()})
    v2 = config.version == 2
    stem, last, head = ("conv1", "conv5", "fc") if v2 else ("first_conv", "", "classifier.0")
    params: dict[str, Any] = {"units": {}}
    stats: dict[str, Any] = {"units": {}}

    def take(into: str, layers: Layers) -> tuple[dict[str, Any], dict[str, Any]]:
        taken, seen = {}, {}
        for ours, conv, norm, size, features_in, features_out in layers:
            scale, statistics = source.norm(f"{into}{norm}", f"{into}{conv}", features_out)
            taken[ours] = {
                "conv": source.conv(f"{into}{conv}", size, features_in, features_out),
                "norm": scale,
            }
            seen[ours] = {"norm": statistics}
        return taken, seen

    def add(name: str, prefix: str, size: int, features_in: int, features_out: int) -> None:
        taken, seen = take(f"{prefix}.", [(name, "0", "1", size, features_in, features_out)])
        params.update(taken)
        stats.update(seen)

    add("stem", stem, 3, config.channels_in, config.stem_width)
    features, index = config.stem_width, 0
    for stage, (width, count) in enumerate(zip(config.widths, config.repeats, strict=True), 2):
        for unit in range(count):
            ours = f"stage{stage}_unit{unit + 1}"
            if v2:
                theirs, layers = f"stage{stage}.{unit}.", _unit_v2(features, width, strided=unit == 0)
            else:
                theirs = f"features.{index}."
                layers = _unit_v1(features, width, config.groups, first=index == 0, strided=unit == 0)
            params["units"][ours], stats["units"][ours] = take(theirs, layers)
            features, index = width, index + 1
    if v2:
        add("last", last, 1, features, config.last)
        features = config.last
        params["head"] = source.dense(head, features, config.num_classes)
    else:
        params["head"] = source.dense(head, features, config.num_classes, bias=False)
    source.refuse_left_over()
    return {"params": params, "model_state": stats}


def _unit_v2(features: int, width: int, *, strided: bool) -> Layers:
    half = width // 2
    side: Layers = [
        ("side_depthwise", "branch1.0", "branch1.1", 3, 1, features),
        ("side_pointwise", "branch1.2", "branch1.3", 1, features, half),
    ]
    return [
        *(side if strided else []),
        ("pointwise1", "branch2.0", "branch2.1", 1, features if strided else half, half),
        ("depthwise", "branch2.3", "branch2.4", 3, 1, half),
        ("pointwise2", "branch2.5", "branch2.6", 1, half, half),
    ]


def _unit_v1(features: int, width: int, groups: int, *, first: bool, strided: bool) -> Layers:
    middle = width // 4
    into = width - features if strided else width
    return [
        ("pointwise1", "branch_main_1.0", "branch_main_1.1", 1, features // (1 if first else groups), middle),
        ("depthwise", "branch_main_1.3", "branch_main_1.4", 3, 1, middle),
        ("pointwise2", "branch_main_2.0", "branch_main_2.1", 1, middle // groups, into),
    ]
