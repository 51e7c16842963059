"""NeuMF: neural matrix factorisation, the score of a user and an item.

Two views of both are joined: the elementwise product of two vectors (GMF), and an MLP on two more (He et al.,
arXiv:1708.05031). One row of a table holds both of a user's, or an item's, vectors side by side, so that one
look-up serves the two. Here is the dense part alone: looking up is `mlperf_jax.embedding`.

Source: mlcommons/training at fe17e83 (v0.5), recommendation/pytorch/neumf.py.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.dlrm import MLP

TABLE_STD = 0.01
"""Of the normal distribution that tables start with."""


@dataclasses.dataclass(frozen=True)
class NeuMFConfig:
    """The shape of a model.

    Attributes:
        factors: width of the vectors that are multiplied.
        layers: the MLP's sizes, its input first, which a user's and an item's vectors fill by halves.
    """

    factors: int
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.layers) < 2 or self.layers[0] % 2:
            raise ValueError(f"model.layers={self.layers} is no even size and then layers")

    @property
    def width(self) -> int:
        """Of a row of the tables: a vector to multiply, then one for the MLP."""
        return self.factors + self.layers[0] // 2


def _glorot_uniform(key: jax.Array, features_in: int, features_out: int) -> tuple[jax.Array, jax.Array]:
    """The reference's: kernel uniform within sqrt(6 / (in + out)), bias as torch.nn.Linear leaves it."""
    kernel, bias = jax.random.split(key)
    limit, bound = np.sqrt(6 / (features_in + features_out)), 1 / np.sqrt(features_in)
    return (
        jax.random.uniform(kernel, (features_in, features_out), minval=-limit, maxval=limit),
        jax.random.uniform(bias, (features_out,), minval=-bound, maxval=bound),
    )


def _lecun_uniform(key: jax.Array, features_in: int, features_out: int) -> tuple[jax.Array, jax.Array]:
    """As `_glorot_uniform`, the kernel within sqrt(3 / in)."""
    kernel, bias = jax.random.split(key)
    limit, bound = np.sqrt(3 / features_in), 1 / np.sqrt(features_in)
    return (
        jax.random.uniform(kernel, (features_in, features_out), minval=-limit, maxval=limit),
        jax.random.uniform(bias, (features_out,), minval=-bound, maxval=bound),
    )


class NeuMF(nnx.Module):
    """The dense part: an MLP, and the layer that reads a logit off both views."""

    def __init__(self, config: NeuMFConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        self.config, self.dtype, self.output_dtype = config, policy.compute_dtype, policy.output_dtype
        self.mlp = MLP(config.layers, init=_glorot_uniform, activate_last=True, policy=policy, rngs=rngs)
        last = (config.factors + config.layers[-1], 1)
        self.final = MLP(last, init=_lecun_uniform, activate_last=False, policy=policy, rngs=rngs)

    def __call__(self, rows: jax.Array) -> jax.Array:
        """Logits [B] in the output dtype, of rows [B, 2, D]: a user's and an item's."""
        rows = constrain(rows.astype(self.dtype), "batch", None, None)
        user, item = rows[:, 0], rows[:, 1]
        factors = self.config.factors
        product = user[:, :factors] * item[:, :factors]
        joined = jnp.concatenate([user[:, factors:], item[:, factors:]], axis=1)
        joined = jnp.concatenate([product, self.mlp(joined)], axis=1)
        return self.final(joined)[:, 0].astype(self.output_dtype)


def count_parameters(config: NeuMFConfig, num_users: int, num_items: int) -> int:
    """All parameters, tables included: 31,832,577 of the reference on MovieLens-20M."""
    dense = sum((i + 1) * o for i, o in zip(config.layers, config.layers[1:], strict=False))
    return (num_users + num_items) * config.width + dense + config.factors + config.layers[-1] + 1


def flops_per_example(config: NeuMFConfig) -> float:
    """Model FLOPs (2 per multiply-add) of a forward pass."""
    products = sum(i * o for i, o in zip(config.layers, config.layers[1:], strict=False))
    return 2.0 * (products + config.factors + config.layers[-1]) + config.factors
