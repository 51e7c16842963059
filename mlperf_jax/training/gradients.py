"""The gradient of a loss within less memory: in micro-batches, or with activations computed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlperf_jax.errors import UserError
from mlperf_jax.parallel.layout import LogicalAxes, constrain

LOSS_REMAT = {
    "none": None,
    "save_products": jax.checkpoint_policies.dots_saveable,
    "save_nothing": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass finds in memory of a whole loss: everything; results of products and convolutions,
so that only norms and activations are computed again; or nothing, so that the forward pass is done a second
time. Models of stacked layers have a table for a layer, `models.stack.LAYER_REMAT`, under the same names."""

LossFunction = Callable[[Any, Any, Any, jax.Array], tuple[tuple[jax.Array, jax.Array | int], Any]]
"""(parameters, model state, batch, key) -> ((sum [], weight []), new model state).

The loss of a batch is its sum by its weight: the examples, tokens or other things that the sum is over."""


def gradients(
    loss: LossFunction,
    params: Any,
    model_state: Any,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    micro_batches: int = 1,
    remat: str = "none",
    axes: Callable[[str], LogicalAxes] = lambda name: ("batch",),
) -> tuple[jax.Array, Any, Any]:
    """Loss, new model state and gradients of a batch.

    In micro-batches the result is that of the whole batch, up to rounding, whatever the weight of each: sums and
    their gradients are added up, and divided by the weight of all. Batch statistics are those of each
    micro-batch, and running ones follow all of them.

    Args:
        loss: what to differentiate.
        params, model_state: its first two arguments.
        batch: arrays [B, ...] by name.
        key: for dropout; every micro-batch has its own.
        micro_batches: in how many parts, one after the other; summed in the parameters' dtype.
        remat: one of `LOSS_REMAT`.
        axes: logical axes of an entry of the batch.

    Raises:
        UserError: `micro_batches` does not divide the batch, or there is no such policy.
    """
    if remat not in LOSS_REMAT:
        raise UserError(f"There is no --config.remat={remat}; use {', '.join(LOSS_REMAT)}.")
    if remat != "none":
        loss = jax.checkpoint(loss, policy=LOSS_REMAT[remat])

    def summed(*args: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        (total, weight), model_state = loss(*args)
        return total, (jnp.asarray(weight, total.dtype), model_state)

    def mean(*args: Any) -> tuple[jax.Array, Any]:
        (total, weight), model_state = loss(*args)
        return total / _divisor(weight), model_state

    if micro_batches == 1:
        (value, model_state), grads = jax.value_and_grad(mean, has_aux=True)(params, model_state, batch, key)
        return value, model_state, grads
    differentiate = jax.value_and_grad(summed, has_aux=True)
    parts = {name: _split(name, x, micro_batches, axes(name)) for name, x in batch.items()}

    def micro_step(carry: Any, part: Any) -> tuple[Any, None]:
        total, weight, model_state, grads = carry
        index, micro_batch = part
        micro_key = jax.random.fold_in(key, index)
        (more, (heavier, model_state)), new = differentiate(params, model_state, micro_batch, micro_key)
        return (total + more, weight + heavier, model_state, jax.tree.map(jnp.add, grads, new)), None

    one = jax.tree.map(lambda x: x[0], parts)
    (total, (weight, _)), _ = jax.eval_shape(differentiate, params, model_state, one, key)
    zeros = jax.tree.map(jnp.zeros_like, (total, weight))
    start = *zeros, model_state, jax.tree.map(jnp.zeros_like, params)
    carry, _ = jax.lax.scan(micro_step, start, (jnp.arange(micro_batches), parts))
    total, weight, model_state, grads = carry
    divisor = jnp.asarray(_divisor(weight))
    return total / divisor, model_state, jax.tree.map(lambda g: g / divisor.astype(g.dtype), grads)


def _divisor(weight: jax.Array | int) -> jax.Array | int:
    """The weight, or 1 where nothing counts, so that the loss of nothing is 0."""
    if isinstance(weight, int):
        return weight or 1
    return jnp.where(weight == 0, 1, weight)


def _split(name: str, x: jax.Array, parts: int, axes: LogicalAxes) -> jax.Array:
    """[B, ...] to [parts, B / parts, ...]: micro-batch i has the rows i, i + parts, i + 2 parts, ...

    So every device cuts the rows that it holds, and none travels.
    """
    if x.shape[0] % parts:
        raise UserError(
            f"--config.gradient_accumulation_steps={parts} does not divide the batch of {x.shape[0]}; "
            "use a number that does."
        )
    x = jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
    return constrain(x, None, *axes, *[None] * (x.ndim - 1 - len(axes)))
