"""Low-rank changes of frozen products (LoRA; Hu et al., arXiv:2106.09685), as huggingface/peft has them by default."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from mlperf_jax.precision import Policy
from models.products import product
from models.random_bits import dropout

NAME = "low_rank"
"""With this the names of attributes that hold one begin: what is trained where all else is frozen."""

Axes = tuple[str | None, ...]


class LowRank(nnx.Module):
    """What is added to some products of one input: `scale * (dropout(x) down) up`, of which `down` is one for all of them."""

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shapes_out: Sequence[tuple[int, ...]],
        *,
        axes_in: Axes,
        axes_out: Axes,
        rank: int,
        scale: float,
        dropout_rate: float,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer; it adds nothing at first, as the kernels `up` are zeros.

        Args:
            shape_in, shapes_out: of the input and of each product, without the axes of the batch.
            axes_in, axes_out: what these mean to the layout.
            rank: R.
            scale: of what is added.
            dropout_rate: of the input.
            policy: dtypes.
            rngs: holds the stream "params".
        """
        self.shape_in, self.shapes_out = shape_in, tuple(shapes_out)
        self.rank, self.scale, self.dropout_rate = rank, scale, dropout_rate
        self.dtype = policy.compute_dtype
        side = 1 / math.sqrt(math.prod(shape_in))
        drawn = initializers.uniform(2 * side)(rngs.params(), (*shape_in, rank), policy.param_dtype) - side
        self.down = nnx.Param(drawn, axes=(*axes_in, None))
        for number, shape in enumerate(self.shapes_out):
            zeros = jnp.zeros((rank, *shape), policy.param_dtype)
            setattr(self, f"up_{number}", nnx.Param(zeros, axes=(None, *axes_out)))

    def __call__(self, x: jax.Array, key: jax.Array | None) -> list[jax.Array]:
        """Of [..., *shape_in] one [..., *shape] for each product, in the compute dtype; without a key none is dropped."""
        batch = x.shape[: x.ndim - len(self.shape_in)]
        x = dropout(x.astype(self.dtype), self.dropout_rate, key).reshape(*batch, -1)
        narrow = product(x, self.down[...].astype(self.dtype).reshape(-1, self.rank))
        narrow = narrow * jnp.asarray(self.scale, self.dtype)
        ups = (
            getattr(self, f"up_{number}")[...].astype(self.dtype) for number in range(len(self.shapes_out))
        )
        return [
            product(narrow, up.reshape(self.rank, -1)).reshape(*batch, *shape)
            for up, shape in zip(ups, self.shapes_out, strict=True)
        ]


def kernel(down: jax.Array, up: jax.Array) -> jax.Array:
    """The one product that both make, without the scale: [*shape_in, R] and [R, *shape_out] to [*shape_in, *shape_out]."""
    return jnp.tensordot(down, up, 1, precision=jax.lax.Precision.HIGHEST)
