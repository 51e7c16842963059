"""What MLPerf wants said of every training run from ruleset 6.1.0 on: precision, parallelism, micro-batch, config.

Names and allowed values: mlperf_logging/compliance_checker/training_6.1.0/common.yaml, which does not say what
they mean. Submissions log Megatron's figures under them, and so does this: the devices are the product of
tensor, pipeline, context and data parallelism, and a micro-batch is what one of the data-parallel replicas of
the model takes at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from mlperf_jax.parallel.layout import Layout
from mlperf_jax.precision import Policy

_NAMES = {"float64": "fp64", "float32": "fp32", "bfloat16": "bfloat16", "float16": "fp16"}
# Products of float32 operands: by `Policy.matmul`, where that is "default" by the platform.
_PRODUCTS = {"highest": "fp32", "tensorfloat32": "tf32", "bfloat16": "bfloat16"}
_DEFAULT_PRODUCTS = {"cpu": "fp32", "gpu": "tf32", "tpu": "bfloat16"}
_POSITIONS = ("length", "position", "depth", "height", "width")


def disclosed(
    policy: Policy, layout: Layout, *, batch_size: int, accumulation: int, config_file: str
) -> dict[str, Any]:
    """The keys, in the order to be logged.

    Args:
        policy: dtypes. A model without attention states those of its other products for it.
        layout: strategy and mesh. Tables or parameters that are split over the axis of the batch are no tensor
            parallelism: every device there has examples of its own.
        batch_size: of the global batch.
        accumulation: micro-batches of a step.
        config_file: where the run's numbers are written.
    """
    products = _products(policy, layout)
    batch = _axes(layout, ("batch",))
    positions = _axes(layout, _POSITIONS)
    experts = _axes(layout, ("expert",))
    model = _axes(layout, set(layout.strategy.rules) - {"batch", "expert", *_POSITIONS}) - batch
    return {
        "lowest_numerical_precision_in_linear": products,
        "lowest_numerical_precision_in_attn": products,
        "lowest_numerical_precision_in_comm": _NAMES.get(policy.reduce, policy.reduce),
        "tensor_parallelism": _size(layout, model),
        "pipeline_parallelism": 1,
        "context_parallelism": _size(layout, positions - batch - model),
        "expert_parallelism": _size(layout, experts),
        "micro_batch_size": max(batch_size // (accumulation * _size(layout, batch)), 1),
        "config_filename": config_file,
    }


def _products(policy: Policy, layout: Layout) -> str:
    if policy.compute != "float32":
        return _NAMES.get(policy.compute, policy.compute)
    platform = layout.mesh.devices.flat[0].platform
    return _PRODUCTS.get(policy.matmul, _DEFAULT_PRODUCTS.get(platform, "fp32"))


def _axes(layout: Layout, meanings: Iterable[str]) -> set[str]:
    """The mesh axes that may carry one of these meanings, alone or together with others."""
    found: set[str] = set()
    for meaning in meanings:
        for carrier in layout.strategy.rules.get(meaning, ()):
            found |= {carrier} if isinstance(carrier, str) else set(carrier)
    return found


def _size(layout: Layout, axes: set[str]) -> int:
    return math.prod(layout.mesh.shape.get(axis, 1) for axis in axes)
