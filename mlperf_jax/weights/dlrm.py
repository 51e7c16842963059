"""DLRM as facebookresearch/dlrm names it (emb_l, bot_l, top_l), and DCNv2 as torchrec does, into `models.dlrm`.

MLPerf's weights of DLRM (tb00_40M.pt) have the former names. Those of DCNv2 are published as a torchsnapshot
of shards; a state dict gathered from it has the latter.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlperf_jax.embedding.tables import Tables
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import TorchSource, unwrapped
from mlperf_jax.workload import State
from models.dlrm import DLRMConfig

_TORCHREC = "sparse_arch.embedding_bag_collection.embedding_bags"


def from_state_dict(tensors: Mapping[str, Tensor], config: DLRMConfig, tables: Tables) -> State:
    """Parameters, float32, with the tables stacked.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = TorchSource({unwrapped(name): array for name, array in tensors.items()})
    bottom, top = (config.dense_features, *config.bottom), (config.interacted, *config.top)
    if config.interaction == "dot":
        rows = [f"emb_l.{t}.weight" for t in range(config.num_tables)]
        dense = {
            "bottom": _mlp(source, [f"bot_l.{2 * i}" for i in range(len(config.bottom))], bottom),
            "top": _mlp(source, [f"top_l.{2 * i}" for i in range(len(config.top))], top),
        }
    else:
        rows = [f"{_TORCHREC}.t_cat_{t}.weight" for t in range(config.num_tables)]
        below = [f"dense_arch.model._mlp.{i}._linear" for i in range(len(config.bottom))]
        above = [f"over_arch.model.0._mlp.{i}._linear" for i in range(len(config.top) - 1)]
        dense = {
            "bottom": _mlp(source, below, bottom),
            "top": _mlp(source, [*above, "over_arch.model.1"], top),
            "cross": _cross(source, config),
        }
    # Each table is read as it is stacked: two copies of all would be 200 GB.
    taken = (
        np.asarray(source.take(name, (n, tables.width))) for name, n in zip(rows, tables.sizes, strict=True)
    )
    stack = tables.stacked(taken, np.float32)
    source.refuse_left_over()
    return {"params": {"dense": dense, "table": stack}, "model_state": {}}


def _mlp(source: TorchSource, names: list[str], sizes: tuple[int, ...]) -> dict[str, dict[int, Tensor]]:
    layers = [
        source.dense(name, *size)
        for name, size in zip(names, zip(sizes, sizes[1:], strict=False), strict=True)
    ]
    return {
        "kernels": dict(enumerate(layer["kernel"] for layer in layers)),
        "biases": dict(enumerate(layer["bias"] for layer in layers)),
    }


def _cross(source: TorchSource, config: DLRMConfig) -> dict[str, dict[int, Tensor]]:
    features, rank, layers = config.interacted, config.cross_rank, range(config.cross_layers)
    net = "inter_arch.crossnet"
    return {
        "down": {i: source.take(f"{net}.V_kernels.{i}", (rank, features)).T for i in layers},
        "up": {i: source.take(f"{net}.W_kernels.{i}", (features, rank)).T for i in layers},
        "bias": {i: source.take(f"{net}.bias.{i}", (features,)) for i in layers},
    }
