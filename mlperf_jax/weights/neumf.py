"""NeuMF as MLPerf's reference of v0.5 names it (recommendation/pytorch/neumf.py), into `models.neumf`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlperf_jax.embedding.tables import Tables
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import TorchSource, unwrapped
from mlperf_jax.workload import State
from models.neumf import NeuMFConfig


def from_state_dict(tensors: Mapping[str, Tensor], config: NeuMFConfig, tables: Tables) -> State:
    """Parameters, float32, with the tables stacked.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = TorchSource({unwrapped(name): array for name, array in tensors.items()})
    widths = {"mf": config.factors, "mlp": config.layers[0] // 2}

    def table(side: str, size: int) -> np.ndarray:
        parts = (source.take(f"{view}_{side}_embed.weight", (size, width)) for view, width in widths.items())
        return np.concatenate([np.asarray(part) for part in parts], axis=1)

    stack = tables.stacked(
        (table(side, size) for side, size in zip(("user", "item"), tables.sizes, strict=True)), np.float32
    )
    sizes = zip(config.layers, config.layers[1:], strict=False)
    mlp = [source.dense(f"mlp.{i}", *size) for i, size in enumerate(sizes)]
    final = [source.dense("final", config.factors + config.layers[-1], 1)]
    source.refuse_left_over()
    dense = {
        name: {
            "kernels": dict(enumerate(layer["kernel"] for layer in layers)),
            "biases": dict(enumerate(layer["bias"] for layer in layers)),
        }
        for name, layers in (("mlp", mlp), ("final", final))
    }
    return {"params": {"dense": dense, "table": stack}, "model_state": {}}
