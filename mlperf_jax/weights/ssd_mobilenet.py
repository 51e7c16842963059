"""SSD-MobileNet v1 under its published names, into `models.ssd_mobilenet`; and a classifier's trunk.

Three forms are known:

- variables as TensorFlow's Object Detection API saves them (ssd_mobilenet_v1_coco_2018_01_28, model.ckpt and
  frozen_inference_graph.pb):
  FeatureExtractor/MobilenetV1/Conv2d_1_depthwise/depthwise_weights,
  FeatureExtractor/MobilenetV1/Conv2d_13_pointwise_1_Conv2d_2_1x1_256/weights,
  BoxPredictor_0/BoxEncodingPredictor/weights, BoxPredictor_0/ClassPredictor/biases;
- MLPerf Inference's own in PyTorch (mlcommons/inference, vision/classification_and_detection/python/models/
  ssd_mobilenet_v1.py), whose norms were folded into the convolutions before them, depthwise ones excepted:
  backbone.1.depthwise.weight, backbone.1.depthwise/BatchNorm.scale, extras.0.0.weight, predictors.0.regression.weight;
- the graph of TensorFlow's in ONNX, as MLPerf Inference has it (ssd_mobilenet_v1_coco_2018_01_28.onnx), whose layers are
  known by their place.

Both predict a box as (y, x, height, width), ours as (x, y, width, height).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from mlperf_jax.weights.lazy import LazyArray, Tensor
from mlperf_jax.weights.mobilenet import CONFIG as CLASSIFIERS_CONFIG
from mlperf_jax.weights.mobilenet import (
    Arrays,
    Graph,
    Layers,
    Variables,
    classifiers_layers,
    trunk,
    trunks_layers,
)
from mlperf_jax.weights.source import Source, unwrapped
from mlperf_jax.workload import State
from models.ssd_mobilenet import SSDMobileNetConfig

CONFIG = {key: CLASSIFIERS_CONFIG[key] for key in ("model.epsilon", "data.mean", "data.std")}
"""What goes with such weights: pixels from -1 to 1."""


def backbone(tensors: Mapping[str, Tensor], config: SSDMobileNetConfig) -> State:
    """Parameters and statistics of the trunk from a classifier, as `weights.mobilenet` knows it, float32.

    Raises:
        UserError: an array is missing or has another shape.
    """
    params, stats = trunk(classifiers_layers(tensors, config.trunk), config.trunk)
    return {"params": params, "model_state": stats}


def from_published(tensors: Mapping[str, Tensor], config: SSDMobileNetConfig) -> State:
    """Parameters and statistics of a whole detector, float32, in whichever form.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    if "graph.0.weight" in tensors:
        return _detector(_DetectorGraph(tensors, config), config)
    plain = {unwrapped(name): array for name, array in tensors.items()}
    if any(name.startswith(_Port.FIRST) for name in plain):
        return _detector(_Port(plain), config)
    return _detector(_Detector(tensors, "FeatureExtractor/MobilenetV1"), config)


class _Detectors(Layers, Protocol):
    def predictor(self, place: int, kind: str, features: int, values: int) -> Arrays:
        """The 1x1 of a map, from 0; `kind` is "BoxEncodingPredictor" or "ClassPredictor"."""
        ...


def _detector(source: _Detectors, config: SSDMobileNetConfig) -> State:
    params, stats = trunk(source, config.trunk)
    channels, extras, seen, heads = config.map_channels, {}, {}, {}
    features = config.blocks[-1][0]
    for i, (inner, outer) in enumerate(zip(config.extra_inner, config.extra_outer, strict=True), 1):
        first, second = _extras_layers(config, i)
        norm1, seen1 = source.norm(first, inner)
        norm2, seen2 = source.norm(second, outer)
        extras[f"stage{i}"] = {
            "conv1": source.conv(first, 1, features, inner),
            "norm1": norm1,
            "conv2": source.conv(second, 3, inner, outer),
            "norm2": norm2,
        }
        seen[f"stage{i}"] = {"norm1": seen1, "norm2": seen2}
        features = outer
    for i, (features, anchors) in enumerate(zip(channels, config.anchors, strict=True)):
        boxes = source.predictor(i, "BoxEncodingPredictor", features, 4 * anchors)
        heads[f"map{i + 1}"] = {
            "boxes": {name: across_first(array) for name, array in boxes.items()},
            "classes": source.predictor(i, "ClassPredictor", features, config.num_classes * anchors),
        }
    return {
        "params": {"backbone": params, "extras": extras, "heads": heads},
        "model_state": {"backbone": stats, "extras": seen},
    }


def _extras_layers(config: SSDMobileNetConfig, stage: int) -> tuple[str, str]:
    """TensorFlow's names of the two convolutions of a stage, from 1, after the trunk."""
    last, inner, outer = (
        f"Conv2d_{len(config.blocks)}_pointwise",
        config.extra_inner[stage - 1],
        config.extra_outer[stage - 1],
    )
    return f"{last}_1_Conv2d_{stage + 1}_1x1_{inner}", f"{last}_2_Conv2d_{stage + 1}_3x3_s2_{outer}"


def across_first(array: Tensor) -> LazyArray:
    """(y, x, height, width) of every anchor, along the last axis, as (x, y, width, height)."""
    order = np.arange(array.shape[-1]).reshape(-1, 2)[:, ::-1].ravel()
    return LazyArray(array.shape, np.float32, lambda index: np.asarray(array)[..., order][index])


class _Detector(Variables):
    """The variables of TensorFlow's detector."""

    hint = "this model's are those of TensorFlow's ssd_mobilenet_v1_coco checkpoints."

    def predictor(self, place: int, kind: str, features: int, values: int) -> Arrays:
        name = f"BoxPredictor_{place}/{kind}"
        return {
            "kernel": self.take(f"{name}/weights", (1, 1, features, values)),
            "bias": self.take(f"{name}/biases", (values,)),
        }


class _DetectorGraph(Graph):
    """The layers of TensorFlow's detector in ONNX; after each map come first what leads on, then its two predictors."""

    def __init__(self, tensors: Mapping[str, Tensor], config: SSDMobileNetConfig) -> None:
        chain = trunks_layers(config.trunk)
        for stage in range(1, len(config.extra_inner) + 1):
            chain += _extras_layers(config, stage)
        ends = [2 * block for block in config.taken_after]
        ends += range(ends[-1] + 2, len(chain), 2)
        super().__init__(tensors, with_predictors(chain, ends), config.epsilon)

    def predictor(self, place: int, kind: str, features: int, values: int) -> Arrays:
        return predictors_layer(self, place, features, values)


def with_predictors(chain: Sequence[str], ends: Sequence[int]) -> list[str]:
    """The names of all layers of a detector's graph.

    Args:
        chain: those of the layers that follow each other.
        ends: places in it of the layers whose features are predicted from, in rising order, the last one's at its end.
    """
    names: list[str] = []
    for i, name in enumerate(chain):
        names.append(name)
        if i - 1 in ends:
            names += _pair(ends.index(i - 1))
    return [*names, *_pair(len(ends) - 1)]


def predictors_layer(graph: Graph, place: int, features: int, values: int) -> Arrays:
    """The 1x1 of a map, from 0: of its two the one that has so many values, for they come in any order."""
    pair = _pair(place)
    name = next((name for name in pair if graph.features(name) == values), pair[0])
    return graph.conv(name, 1, features, values) | {"bias": graph.bias(name, values)}


def _pair(place: int) -> list[str]:
    return [f"BoxPredictor_{place}/{i}" for i in range(2)]


class _Port(Source):
    """MLPerf's detector in PyTorch, asked for by TensorFlow's names."""

    hint = "this model's are those of MLPerf's ssd_mobilenet_v1."
    FIRST = "backbone.0.0."
    _EPSILON = 1e-3

    @staticmethod
    def _place(name: str) -> str:
        if extra := re.search(r"pointwise_(\d)_Conv2d_(\d+)_", name):
            return f"extras.{int(extra[2]) - 2}.{2 * int(extra[1]) - 2}"
        _, block, *kind = name.split("_")
        return f"backbone.{block}.{kind[0] if kind else '0'}"

    def _kernel(self, place: str, *shape: int) -> Arrays:
        return {"kernel": self.take(f"{place}.weight", shape).transpose(2, 3, 1, 0)}

    def conv(self, name: str, size: int, features_in: int, features_out: int) -> Arrays:
        return self._kernel(self._place(name), features_out, features_in, size, size)

    def depthwise(self, name: str, size: int, features: int) -> Arrays:
        return self._kernel(self._place(name), features, 1, size, size)

    def norm(self, name: str, features: int) -> tuple[Arrays, Arrays]:
        """A norm of mean 0 and variance 1 that says what is left of the one that was there."""
        place, shape = self._place(name), (features,)
        rest = place if place.startswith("extras") else f"{place}/BatchNorm"
        one = np.ones(shape, np.float32)
        scale = self.take(f"{rest}.scale", shape) if place.endswith("depthwise") else one
        params = {"scale": scale, "bias": self.take(f"{rest}.bias", shape)}
        return params, {"mean": np.zeros(shape, np.float32), "var": one - np.float32(self._EPSILON)}

    def predictor(self, place: int, kind: str, features: int, values: int) -> Arrays:
        name = f"predictors.{place}.{'regression' if kind.startswith('Box') else 'classification'}"
        return self._kernel(name, values, features, 1, 1) | {"bias": self.take(f"{name}.bias", (values,))}
