"""ResNet-50 as torchvision names it (conv1, bn1, layer1.0.conv1, ..., fc) into `models.resnet`.

The same names have MLPerf's PyTorch file (resnet50-19c8e357.pth) and timm's; Hugging Face's own
(resnet.encoder.stages...) are turned into them first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.workload import State
from models.resnet import ResNetConfig

# What torchvision divides pixels of 0 to 255 by and subtracts from them.
CONFIG = {
    "model.padding": "torch",
    "data.mean": tuple(255 * m for m in (0.485, 0.456, 0.406)),
    "data.std": tuple(255 * s for s in (0.229, 0.224, 0.225)),
}

_EPSILON = 1e-5
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


def from_torchvision(tensors: Mapping[str, np.ndarray], config: ResNetConfig) -> State:
    """Parameters and batch statistics, float32.

    A convolution with a bias and without a batch norm after it (they were folded together) gets one
    that only adds the bias.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = Source(torchvision_names(tensors))
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
            params["blocks"][ours], stats["blocks"][ours] = _block(
                source, theirs, features, width, block == 0
            )
            features = 4 * width
    params["head"] = source.dense("fc", features, config.num_classes)
    source.refuse_left_over()
    return {"params": params, "model_state": stats}


def _block(
    source: Source, name: str, features: int, width: int, projects: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    convolutions = {
        "1": (f"{name}.conv1", f"{name}.bn1", 1, features, width),
        "2": (f"{name}.conv2", f"{name}.bn2", 3, width, width),
        "3": (f"{name}.conv3", f"{name}.bn3", 1, width, 4 * width),
    }
    if projects:
        convolutions["_shortcut"] = (f"{name}.downsample.0", f"{name}.downsample.1", 1, features, 4 * width)
    params, stats = {}, {}
    for suffix, (conv, norm, size, features_in, features_out) in convolutions.items():
        params[f"conv{suffix}"] = source.conv(conv, size, features_in, features_out)
        params[f"norm{suffix}"], stats[f"norm{suffix}"] = source.norm(norm, conv, features_out)
    return params, stats


class Source:
    """Published arrays, each to be taken once."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._left = dict(tensors)

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self._left:
            raise UserError(f"The weights have no {name}; are they of another model, or of another depth?")
        array = self._left.pop(name)
        if array.shape != shape:
            raise UserError(f"The weights' {name} has shape {array.shape} where this model has {shape}.")
        return np.asarray(array, np.float32)

    def conv(
        self, name: str, size: int, features_in: int, features_out: int, *, bias: bool = False
    ) -> dict[str, np.ndarray]:
        kernel = self.take(f"{name}.weight", (features_out, features_in, size, size))
        biases = {"bias": self.take(f"{name}.bias", (features_out,))} if bias else {}
        return {"kernel": kernel.transpose(2, 3, 1, 0)} | biases

    def dense(self, name: str, features_in: int, features_out: int) -> dict[str, np.ndarray]:
        kernel = self.take(f"{name}.weight", (features_out, features_in))
        return {"kernel": kernel.T, "bias": self.take(f"{name}.bias", (features_out,))}

    def norm(
        self, name: str, conv: str, features: int
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(parameters, statistics)"""
        shape = (features,)
        if f"{name}.running_mean" not in self._left and f"{conv}.bias" in self._left:
            one, zero = np.ones(shape, np.float32), np.zeros(shape, np.float32)
            folded = {"scale": one, "bias": self.take(f"{conv}.bias", shape)}
            return folded, {"mean": zero, "var": one - np.float32(_EPSILON)}
        params = {"scale": self.take(f"{name}.weight", shape), "bias": self.take(f"{name}.bias", shape)}
        stats = {
            "mean": self.take(f"{name}.running_mean", shape),
            "var": self.take(f"{name}.running_var", shape),
        }
        return params, stats

    def refuse_left_over(self) -> None:
        # Anything of layers and weights; not a file's own counters and constants.
        left = [
            name
            for name in self._left
            if name.endswith((".weight", ".bias", ".running_mean", ".running_var"))
        ]
        if left:
            raise UserError(
                f"The weights have {left[0]}, which this model does not; they are of another model."
            )


def torchvision_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    named = {}
    for name, array in tensors.items():
        name = name.removeprefix("module.")
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
