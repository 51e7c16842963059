"""SSD-MobileNet v2's graph with folded norms (MediaPipe's .tflite), by the place of its layers, into `models.ssd_mobilenet_v2`.

It predicts a box as (y, x, height, width), ours as (x, y, width, height).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.weights import onnx_layers
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.mobilenet import Arrays, Graph
from mlperf_jax.weights.ssd_mobilenet import across_first, predictors_layer, with_predictors
from mlperf_jax.workload import State
from models.ssd_mobilenet_v2 import SSDMobileNetV2Config


def from_graph(tensors: Mapping[str, Tensor], config: SSDMobileNetV2Config) -> State:
    """Parameters of the whole detector, float32.

    Args:
        tensors: graph.0.weight, ..., as `onnx_layers.numbered` has them.
        config: sizes.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    if "graph.0.weight" not in tensors:
        raise UserError(
            "These weights are not the layers of a graph; this model's are those of MediaPipe's "
            "object_detection_ssd_mobilenetv2_oidv4_fp16.tflite."
        )
    chain, ends = _layers(config)
    graph = Graph(tensors, with_predictors(chain, ends), onnx_layers.EPSILON)

    def conv(name: str, size: int, features_in: int, features_out: int) -> Arrays:
        return graph.conv(name, size, features_in, features_out) | {"bias": graph.bias(name, features_out)}

    params: dict[str, Any] = {
        "stem": conv("stem", 3, 3, config.stem),
        "blocks": {},
        "extras": {},
        "heads": {},
    }
    for i, (_, features_out, _) in enumerate(config.blocks, 1):
        features_in, expanded = config.features_in(i), config.expanded(i)
        inner = expanded or features_in
        params["blocks"][f"block{i}"] = {
            **({"expand": conv(f"block{i}/expand", 1, features_in, inner)} if expanded else {}),
            "depthwise": conv(f"block{i}/depthwise", 3, 1, inner),
            "project": conv(f"block{i}/project", 1, inner, features_out),
        }
    features = config.last
    params["last"] = conv("last", 1, config.blocks[-1][1], features)
    for i, (inner, outer) in enumerate(zip(config.extra_inner, config.extra_outer, strict=True), 1):
        params["extras"][f"stage{i}"] = {
            "conv1": conv(f"stage{i}/conv1", 1, features, inner),
            "conv2": conv(f"stage{i}/conv2", 3, inner, outer),
        }
        features = outer
    for i, (features, anchors) in enumerate(zip(config.map_channels, config.anchors, strict=True)):
        boxes = predictors_layer(graph, i, features, 4 * anchors)
        params["heads"][f"map{i + 1}"] = {
            "boxes": {name: across_first(array) for name, array in boxes.items()},
            "classes": predictors_layer(graph, i, features, config.num_classes * anchors),
        }
    return {"params": params}


def _layers(config: SSDMobileNetV2Config) -> tuple[list[str], list[int]]:
    """The layers that follow each other, and the places among them of those that are predicted from."""
    chain = ["stem"]
    ends = []
    for i in range(1, len(config.blocks) + 1):
        if config.expanded(i):
            chain.append(f"block{i}/expand")
        if i == config.taken_in:
            ends.append(len(chain) - 1)
        chain += [f"block{i}/depthwise", f"block{i}/project"]
    chain.append("last")
    ends.append(len(chain) - 1)
    for i in range(1, len(config.extra_inner) + 1):
        chain += [f"stage{i}/conv1", f"stage{i}/conv2"]
        ends.append(len(chain) - 1)
    return chain, ends
