"""One precision policy, from which every model takes its dtypes.

Accepted TPU submissions keep parameters and batch statistics in fp32, compute in bf16 and
reduce gradients in bf16 (training_results_v0.7, Google: bert/run_pretraining.py,
resnet/train.py). CPUs have no fast bf16, so they run fp32. `float64` exists for tests:
two layouts of one model agree there to the last digits, while in fp32 they part by themselves.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from mlperf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Policy:
    """Names of dtypes, and of the precision of matrix products.

    Attributes:
        param: parameters, optimizer state and batch statistics.
        compute: activations and the operands of convolutions and matrix products.
        reduce: gradients as they are summed over devices and micro-batches; the optimizer sees
            them in `param`. No wider than `compute`: XLA sums a product's gradient in the
            product's own dtype, whatever it is cast to afterwards (seen in programs for TPU v5e).
        output: logits, and with them the loss.
        matmul: jax's name of the precision of products whose operands are float32:
            "highest" (true fp32), "tensorfloat32" (NVIDIA), "bfloat16" (one TPU pass),
            "default" (the backend's own choice).
    """

    param: str = "float32"
    compute: str = "float32"
    reduce: str = "float32"
    output: str = "float32"
    matmul: str = "highest"

    def __post_init__(self) -> None:
        if self.reduce_dtype.itemsize > self.compute_dtype.itemsize:
            raise ValueError(f"gradients of products in {self.compute} cannot be summed in {self.reduce}")

    @property
    def param_dtype(self) -> np.dtype:
        return jnp.dtype(self.param)

    @property
    def compute_dtype(self) -> np.dtype:
        return jnp.dtype(self.compute)

    @property
    def reduce_dtype(self) -> np.dtype:
        return jnp.dtype(self.reduce)

    @property
    def output_dtype(self) -> np.dtype:
        return jnp.dtype(self.output)

    @property
    def needs_x64(self) -> bool:
        """Whether jax's 64-bit mode must be on."""
        return "float64" in (self.param, self.compute, self.reduce, self.output)


_MIXED = Policy("float32", "bfloat16", "bfloat16", "float32", "bfloat16")

POLICIES: dict[str, Policy] = {
    "float32": Policy(),
    "tensorfloat32": Policy(matmul="tensorfloat32"),
    "bfloat16": _MIXED,
    "float64": Policy("float64", "float64", "float64", "float64", "highest"),
}
_PLATFORM_DEFAULT = {"cpu": "float32", "gpu": "bfloat16", "tpu": "bfloat16"}


def resolve_policy(name: str, platform: str) -> Policy:
    """Returns the policy called `name`, or for "auto" the one that suits `platform`.

    Raises:
        UserError: there is no policy of that name.
    """
    name = _PLATFORM_DEFAULT[platform] if name == "auto" else name
    if name not in POLICIES:
        raise UserError(f"There is no precision {name!r}; use auto, {', '.join(POLICIES)}.")
    return POLICIES[name]
