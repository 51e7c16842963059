"""ResNet-50, and ResNeXt, as torchvision names it (conv1, bn1, layer1.0.conv1, ..., fc) into `models.resnet`.

The same names have MLPerf's PyTorch file (resnet50-19c8e357.pth) and timm's; all others are turned into them first:
Hugging Face's (resnet.encoder.stages...), those of TensorFlow's official model (resnet_model/conv2d_1/kernel, ...; its
checkpoints, and MLPerf's resnet50_v1.pb), and the layers of its graph in ONNX (MLPerf's resnet50_v1.onnx), whose names
tell nothing. TensorFlow's have 1,001 classes, of which the first is no class of ImageNet's and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.weights.lazy import Tensor, without_first
from mlperf_jax.weights.source import TorchSource, unwrapped
from mlperf_jax.workload import State
from models.resnet import EXPANSION, ResNetConfig

# What torchvision divides pixels of 0 to 255 by and subtracts from them.
CONFIG = {
    "model.padding": "torch",
    "data.mean": tuple(255 * m for m in (0.485, 0.456, 0.406)),
    "data.std": tuple(255 * s for s in (0.229, 0.224, 0.225)),
}

# Of TensorFlow's official model, as MLPerf Inference prepares its images.
TENSORFLOW_CONFIG = {
    "model.padding": "fixed",
    "data.mean": (123.68, 116.78, 103.94),
    "data.std": (1.0, 1.0, 1.0),
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


_TENSORFLOW = "resnet_model/"
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def published(tensors: Mapping[str, Tensor], config: ResNetConfig) -> tuple[State, dict[str, Any]]:
    """Parameters and batch statistics, float32, and the config that goes with them, by any of the names above.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    if "graph.0.weight" in tensors:
        named = _from_graph(tensors, config)
    elif any(name.startswith(_TENSORFLOW) for name in tensors):
        named = _from_variables(tensors, config)
    else:
        return from_torchvision(tensors, config), dict(CONFIG)
    for name in ("fc.weight", "fc.bias"):
        if name in named and named[name].shape[:1] == (config.num_classes + 1,):
            named[name] = without_first(named[name])
    return from_torchvision(named, config), dict(TENSORFLOW_CONFIG)


def _from_graph(tensors: Mapping[str, Tensor], config: ResNetConfig) -> dict[str, Tensor]:
    """The numbered layers of an ONNX graph by torchvision's names."""
    if "graph.input" in tensors:
        raise UserError(
            "The weights' graph scales its images, as no published ResNet-50 does; they are of another model."
        )
    places = [*_places(config, shortcut=1), ("fc", "")]
    layers = sum(name.startswith("graph.") and name.endswith(".weight") for name in tensors)
    layers -= sum(name.startswith("graph.") and name.endswith(".norm.weight") for name in tensors)
    if layers != len(places):
        raise UserError(
            f"The weights' graph has {layers} layers where this model has {len(places)}; they are of another model."
        )
    named = {}
    for i, (conv, norm) in enumerate(places):
        for part in ("weight", "bias"):
            named[f"{conv}.{part}"] = tensors.get(f"graph.{i}.{part}")
        for part in _NORM.values():
            named[f"{norm}.{part}"] = tensors.get(f"graph.{i}.norm.{part}")
    return {name: array for name, array in named.items() if array is not None}


def _from_variables(tensors: Mapping[str, Tensor], config: ResNetConfig) -> dict[str, Tensor]:
    """TensorFlow's variables, which are counted as the model is built, by torchvision's names."""
    named = {}
    for i, (conv, norm) in enumerate(_places(config, shortcut=0)):
        count = f"_{i}" if i else ""
        kernel = tensors.get(f"{_TENSORFLOW}conv2d{count}/kernel")
        if kernel is not None and kernel.ndim == 4:
            named[f"{conv}.weight"] = kernel.transpose(3, 2, 0, 1)
        for theirs, ours in _NORM.items():
            array = tensors.get(f"{_TENSORFLOW}batch_normalization{count}/{theirs}")
            if array is not None:
                named[f"{norm}.{ours}"] = array
    if f"{_TENSORFLOW}dense/kernel" in tensors:
        named["fc.weight"] = tensors[f"{_TENSORFLOW}dense/kernel"].T
    if f"{_TENSORFLOW}dense/bias" in tensors:
        named["fc.bias"] = tensors[f"{_TENSORFLOW}dense/bias"]
    return named


def _places(config: ResNetConfig, *, shortcut: int) -> Iterator[tuple[str, str]]:
    """torchvision's names of every convolution and the norm after it; of a block the shortcut's in the given place."""
    yield "conv1", "bn1"
    for stage, count in enumerate(config.stages, 1):
        for block in range(count):
            place = f"layer{stage}.{block}"
            found = [(f"{place}.conv{i}", f"{place}.bn{i}") for i in (1, 2, 3)]
            if block == 0:
                found.insert(shortcut, (f"{place}.downsample.0", f"{place}.downsample.1"))
            yield from found


def from_torchvision(tensors: Mapping[str, Tensor], config: ResNetConfig) -> State:
    """Parameters and batch statistics, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = TorchSource(torchvision_names(tensors))
    params, stats = trunk(source, config)
    features = EXPANSION * config.width << len(config.stages) - 1
    params["head"] = source.dense("fc", features, config.num_classes)
    source.refuse_left_over()
    return {"params": params, "model_state": stats}


def trunk(
    source: TorchSource, config: ResNetConfig, prefix: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters, statistics) of all but the classifier, whose names begin with `prefix`.

    Raises:
        UserError: an array is missing or has another shape.
    """
    kernel = 7 if config.stem == "imagenet" else 3
    params: dict[str, Any] = {
        "blocks": {},
        "stem": {"conv": source.conv(f"{prefix}conv1", kernel, config.channels_in, config.width)},
    }
    stats: dict[str, Any] = {"blocks": {}}
    params["norm"], stats["norm"] = source.norm(f"{prefix}bn1", f"{prefix}conv1", config.width)
    features = config.width
    for stage, count in enumerate(config.stages):
        inner, features_out = config.inner * config.width << stage, EXPANSION * config.width << stage
        for block in range(count):
            ours, theirs = f"stage{stage + 1}_block{block + 1}", f"{prefix}layer{stage + 1}.{block}"
            params["blocks"][ours], stats["blocks"][ours] = source.block(
                theirs,
                [(1, features, inner), (3, inner // config.groups, inner), (1, inner, features_out)],
                shortcut=None if block else (features, features_out),
            )
            features = features_out
    return params, stats


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
