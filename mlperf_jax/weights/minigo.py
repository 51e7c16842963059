"""MiniGo's own checkpoints (conv2d, batch_normalization, dense, ... in the order they were built).

MLPerf's start and target (minigo-pub, ml_perf/0.7) are TensorFlow checkpoints: give NAME.index. On 19x19 the
reference keeps channels first, so there the policy's dense layer reads its inputs channel by channel.
Source: mlcommons/training, retired_benchmarks/minigo/tensorflow/minigo/{dual_net.py,ml_perf/flags}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import Source
from mlperf_jax.workload import State
from models.minigo import DualNetworkConfig


def from_tensorflow(tensors: Mapping[str, Tensor], config: DualNetworkConfig) -> State:
    """Parameters and batch statistics, float32.

    Raises:
        UserError: an array is missing or has another shape.
    """
    source = _Checkpoint(tensors)
    width, points, layers = config.conv_width, config.size**2, config.trunk_layers
    params: dict[str, Any] = {"blocks": {}}
    stats: dict[str, Any] = {"blocks": {}}
    params["conv"] = source.conv(0, 3, config.planes, width)
    params["norm"], stats["norm"] = source.norm(0, width)
    for i in range(layers):
        block, seen = {}, {}
        for j in (1, 2):
            index = 2 * i + j
            block[f"conv{j}"] = source.conv(index, 3, width, width)
            block[f"norm{j}"], seen[f"norm{j}"] = source.norm(index, width)
        params["blocks"][f"block{i}"], stats["blocks"][f"block{i}"] = block, seen
    params["policy_conv"] = source.conv(2 * layers + 1, 1, width, 2)
    stats["policy_norm"] = source.statistics(2 * layers + 1, 2)
    params["policy_dense"] = source.dense(0, 2 * points, points + 1)
    params["value_conv"] = source.conv(2 * layers + 2, 1, width, 1)
    stats["value_norm"] = source.statistics(2 * layers + 2, 1)
    params["value_hidden"] = source.dense(1, points, config.fc_width)
    params["value_dense"] = source.dense(2, config.fc_width, 1)
    if config.size == 19:
        kernel = params["policy_dense"]["kernel"]
        by_channel = kernel.reshape(2, points, points + 1)
        params["policy_dense"]["kernel"] = by_channel.transpose(1, 0, 2).reshape(*kernel.shape)
    return {"params": params, "model_state": stats}


class _Checkpoint(Source):
    """The arrays of a checkpoint, by layer and number."""

    hint = "this model's are MiniGo's TensorFlow checkpoints."

    def _take(self, layer: str, index: int, variable: str, *shape: int) -> Tensor:
        return self.take(f"{layer}_{index}/{variable}" if index else f"{layer}/{variable}", shape)

    def conv(self, index: int, size: int, features_in: int, features_out: int) -> dict[str, Tensor]:
        return {"kernel": self._take("conv2d", index, "kernel", size, size, features_in, features_out)}

    def norm(self, index: int, features: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(parameters, statistics)"""
        layer = "batch_normalization"
        params = {
            "scale": self._take(layer, index, "gamma", features),
            "bias": self._take(layer, index, "beta", features),
        }
        return params, self.statistics(index, features)

    def statistics(self, index: int, features: int) -> dict[str, Tensor]:
        layer = "batch_normalization"
        return {
            "mean": self._take(layer, index, "moving_mean", features),
            "var": self._take(layer, index, "moving_variance", features),
        }

    def dense(self, index: int, features_in: int, features_out: int) -> dict[str, Tensor]:
        return {
            "kernel": self._take("dense", index, "kernel", features_in, features_out),
            "bias": self._take("dense", index, "bias", features_out),
        }
