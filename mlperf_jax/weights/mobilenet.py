"""MobileNet v1 as TensorFlow names it (MobilenetV1/Conv2d_1_depthwise/depthwise_weights, ...), into
`models.mobilenet`: its checkpoint and frozen graph (tensorflow/models, mobilenet_v1_1.0_224), and the layers of that
graph in ONNX, where names tell nothing and most norms are folded into convolutions. MLPerf Inference v0.5 measured them.

They have 1,001 classes, of which the first is no class of ImageNet's: it is left out, so that a picture for which it
was the likeliest gets the next. Slots of the optimizer and running averages of weights are left out too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.weights import onnx_layers
from mlperf_jax.weights.lazy import Tensor, shifted, without_first
from mlperf_jax.weights.source import Source, TorchSource
from mlperf_jax.workload import State
from models.mobilenet import MobileNetConfig

CONFIG = {
    "model.padding": "tf",
    "model.epsilon": 1e-3,
    "data.mean": (127.5, 127.5, 127.5),
    "data.std": (127.5, 127.5, 127.5),
}
"""What goes with such weights: pixels from -1 to 1, TensorFlow's padding."""


_LOGITS = "Logits/Conv2d_1c_1x1"

Arrays = dict[str, Tensor]


class Layers(Protocol):
    """The layers of a published network, by TensorFlow's names for them."""

    def conv(self, name: str, size: int, features_in: int, features_out: int) -> Arrays: ...

    def depthwise(self, name: str, size: int, features: int) -> Arrays: ...

    def norm(self, name: str, features: int) -> tuple[Arrays, Arrays]:
        """(parameters, statistics) of the norm after the convolution of that name."""
        ...


def published(tensors: Mapping[str, Tensor], config: MobileNetConfig) -> State:
    """Parameters and batch statistics, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = classifiers_layers(tensors, config)
    params, stats = trunk(source, config)
    features = config.channels(config.blocks[-1][0])
    head = source.classifier(_LOGITS, features, config.num_classes)
    return {"params": {"trunk": params, "head": head}, "model_state": {"trunk": stats}}


def classifiers_layers(tensors: Mapping[str, Tensor], config: MobileNetConfig) -> Graph | Variables:
    """The layers of a classifier, in whichever form."""
    if "graph.0.weight" in tensors:
        return Graph(tensors, [*trunks_layers(config), _LOGITS], config.epsilon)
    return Variables(tensors)


def trunks_layers(config: MobileNetConfig) -> list[str]:
    """TensorFlow's names of the convolutions of the trunk, one after the other."""
    blocks = range(1, len(config.blocks) + 1)
    return ["Conv2d_0", *(f"Conv2d_{i}_{kind}" for i in blocks for kind in ("depthwise", "pointwise"))]


def trunk(source: Layers, config: MobileNetConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters, statistics) of `models.mobilenet.MobileNetTrunk`."""
    features = config.channels(config.stem)
    params: dict[str, Any] = {"blocks": {}}
    stats: dict[str, Any] = {"blocks": {}}
    params["stem"] = source.conv("Conv2d_0", 3, config.channels_in, features)
    params["norm"], stats["norm"] = source.norm("Conv2d_0", features)
    for i, (at_width_one, _) in enumerate(config.blocks, 1):
        features_out = config.channels(at_width_one)
        depthwise, pointwise = f"Conv2d_{i}_depthwise", f"Conv2d_{i}_pointwise"
        norm1, seen1 = source.norm(depthwise, features)
        norm2, seen2 = source.norm(pointwise, features_out)
        params["blocks"][f"block{i}"] = {
            "depthwise": source.depthwise(depthwise, 3, features),
            "norm1": norm1,
            "pointwise": source.conv(pointwise, 1, features, features_out),
            "norm2": norm2,
        }
        stats["blocks"][f"block{i}"] = {"norm1": seen1, "norm2": seen2}
        features = features_out
    return params, stats


class Variables(Source):
    """The variables of a checkpoint or a frozen graph, by layer.

    Args:
        tensors: by their names.
        scope: what these begin with.
    """

    hint = "this model's are those of TensorFlow's mobilenet_v1 checkpoints."

    def __init__(self, tensors: Mapping[str, Tensor], scope: str = "MobilenetV1") -> None:
        super().__init__(tensors)
        self._scope = scope

    def _take(self, name: str, *shape: int) -> Tensor:
        return self.take(f"{self._scope}/{name}", shape)

    def conv(self, name: str, size: int, features_in: int, features_out: int) -> Arrays:
        return {"kernel": self._take(f"{name}/weights", size, size, features_in, features_out)}

    def depthwise(self, name: str, size: int, features: int) -> Arrays:
        return {
            "kernel": self._take(f"{name}/depthwise_weights", size, size, features, 1).transpose(0, 1, 3, 2)
        }

    def norm(self, name: str, features: int) -> tuple[Arrays, Arrays]:
        """(parameters, statistics)"""
        place = f"{name}/BatchNorm"
        params = {
            "scale": self._take(f"{place}/gamma", features),
            "bias": self._take(f"{place}/beta", features),
        }
        stats = {
            "mean": self._take(f"{place}/moving_mean", features),
            "var": self._take(f"{place}/moving_variance", features),
        }
        return params, stats

    def classifier(self, name: str, features: int, classes: int) -> Arrays:
        """A 1x1 convolution of the mean, [1, 1, I, 1 + O], as a dense layer of the last O."""
        kernel = self._take(f"{name}/weights", 1, 1, features, classes + 1).transpose(3, 0, 1, 2)
        bias = self._take(f"{name}/biases", classes + 1)
        return _dense(kernel, bias, features, classes)


class Graph:
    """The numbered layers of an ONNX graph (`onnx_layers`), by the names that TensorFlow gives them.

    Args:
        tensors: of the graph.
        names: of its layers, in their order.
        epsilon: of this model's norms.

    Raises:
        UserError: the graph has more layers, or wants images that are not from -1 to 1.
    """

    def __init__(self, tensors: Mapping[str, Tensor], names: Sequence[str], epsilon: float) -> None:
        self._tensors, self._source = tensors, TorchSource(tensors)
        self._epsilon = epsilon
        self._places = {name: f"graph.{i}" for i, name in enumerate(names)}
        if f"graph.{len(names)}.weight" in tensors:
            raise UserError(
                f"The weights' graph has more than {len(names)} layers; they are of another model."
            )
        if "graph.input" in tensors:
            factor, summand = np.asarray(tensors["graph.input"]).tolist()
            if abs(127.5 * factor - 1) > 1e-3 or abs(summand + 1) > 1e-3:
                raise UserError(
                    f"The weights' graph takes images times {factor:.5g} plus {summand:.5g}, where this model's are "
                    "from -1 to 1; they are of another model."
                )

    def conv(self, name: str, size: int, features_in: int, features_out: int) -> Arrays:
        return self._source.conv(self._places[name], size, features_in, features_out)

    def depthwise(self, name: str, size: int, features: int) -> Arrays:
        return self.conv(name, size, 1, features)

    def norm(self, name: str, features: int) -> tuple[Arrays, Arrays]:
        """(parameters, statistics), for this model's epsilon."""
        place = self._places[name]
        params, stats = self._source.norm(f"{place}.norm", place, features)
        return params, stats | {"var": shifted(stats["var"], onnx_layers.EPSILON - self._epsilon)}

    def features(self, name: str) -> int:
        """How many a layer gives, 0 where it is missing."""
        weight = self._tensors.get(f"{self._places[name]}.weight")
        return 0 if weight is None else weight.shape[0]

    def bias(self, name: str, features: int) -> Tensor:
        """Of a layer without a norm, [O]."""
        return self._source.take(f"{self._places[name]}.bias", (features,))

    def classifier(self, name: str, features: int, classes: int) -> Arrays:
        place = self._places[name]
        kernel = self._source.take(f"{place}.weight", (classes + 1, features, 1, 1))
        return _dense(kernel, self._source.take(f"{place}.bias", (classes + 1,)), features, classes)


def _dense(kernel: Tensor, bias: Tensor, features: int, classes: int) -> Arrays:
    """A dense layer [I, O] of a convolution whose first row is left out: kernel of 1 + O rows, bias [1 + O]."""
    rows = without_first(kernel).reshape(classes, features)
    return {"kernel": rows.T, "bias": without_first(bias)}
