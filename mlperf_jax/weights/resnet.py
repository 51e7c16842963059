"""ResNet-50 as torchvision names it (conv1, bn1, layer1.0.conv1, ..., fc) into `models.resnet`.

The same names have MLPerf's PyTorch file (resnet50-19c8e357.pth) and timm's; Hugging Face's own
(resnet.encoder.stages...) are turned into them first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import TorchSource, unwrapped
from mlperf_jax.workload import State
from models.resnet import ResNetConfig

# What torchvision divides pixels of 0 to 255 by and subtracts from them.
CONFIG = {
    "model.padding": "torch",
    "data.mean": tuple(255 * m for m in (0.485, 0.456, 0.406)),
    "data.std": tuple(255 * s for s in (0.229, 0.224, 0.225)),
}

_HUGGING_FACE = (
    (r"(?:resnet\.)?embedder\.embedder\.convolution", "conv1"),
    (r"(?:resnet\.)?embedder\.embedder\.normalization", "bn1"),
    (
        r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution",
        r"layer\1.\2.downsample.0",
    ),
    (
        r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization",
        r"layer\1.\2.downsample.1",
    ),
    (r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution", r"layer\1.\2.conv\3"),
    (r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization", r"layer\1.\2.bn\3"),
    (r"classifier\.1", "fc"),
)


def from_torchvision(tensors: Mapping[str, Tensor], config: ResNetConfig) -> State:
    """Parameters and batch statistics, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = TorchSource(torchvision_names(tensors))
    params: dict[str, Any] = {"blocks": {}}
    stats: dict[str, Any] = {"blocks": {}}
    kernel = 7 if config.stem == "imagenet" else 3
    params["stem"] = {"conv": source.conv("conv1", kernel, config.channels_in, config.width)}
    params["norm"], stats["norm"] = source.norm("bn1", "conv1", config.width)
    features = config.width
    for stage, count in enumerate(config.stages):
        width = config.width << stage
        for block in range(count):
            ours, theirs = f"stage{stage + 1}_block{block + 1}", f"layer{stage + 1}.{block}"
            params["blocks"][ours], stats["blocks"][ours] = source.block(
                theirs,
                [(1, features, width), (3, width, width), (1, width, 4 * width)],
                shortcut=None if block else (features, 4 * width),
            )
            features = 4 * width
    params["head"] = source.dense("fc", features, config.num_classes)
    source.refuse_left_over()
    return {"params": params, "model_state": stats}


def torchvision_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, array in tensors.items():
        name = unwrapped(name)
        for pattern, replacement in _HUGGING_FACE:
            name, changed = re.subn(f"^{pattern}(?=\\.)", replacement, name)
            if changed:
                break
        named[_counted_from_one(name) if changed else name] = array
    return named


def _counted_from_one(name: str) -> str:
    """Hugging Face counts stages and a block's layers from 0, torchvision from 1."""
    name = re.sub(r"^layer(\d+)", lambda m: f"layer{int(m[1]) + 1}", name)
    return re.sub(r"^(layer\d+\.\d+\.(?:conv|bn))(\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}", name)
