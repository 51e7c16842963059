"""Adam and what came of it: LazyAdam, AdamW and LAMB."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mlperf_jax.training.norms import norm


class AdamState(NamedTuple):
    """State of all of them.

    Attributes:
        count: updates made so far, int32 scalar.
        mean, square: m and v in their equations, of the parameters' shapes.
    """

    count: jax.Array  # type: ignore[assignment]  # tuples have a method of the name that optax gives it
    mean: optax.Updates
    square: optax.Updates


def _init(params: optax.Params) -> AdamState:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))


def adam(
    schedule: optax.Schedule, *, beta1: float, beta2: float, epsilon: float, lazy: optax.Params | None = None
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, arXiv:1412.6980), as the end of its section 2 and TensorFlow have it.

    At update t, from 1, of a parameter w with gradient g:

        m <- beta1 * m + (1 - beta1) * g;  v <- beta2 * v + (1 - beta2) * g**2
        w <- w - lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + epsilon)

    LazyAdam does so only in the rows of a table that were looked up: m, v and w of the others stay as they
    are. Here a row was looked up if its gradient is not all zeros; a table that is also a product's
    operand, as embeddings shared with the logits, has no such rows, and both are the same. Source:
    tensorflow/contrib/opt, lazy_adam_optimizer.py.

    Args:
        schedule: lr.
        beta1, beta2, epsilon: numbers of the equations.
        lazy: True where a parameter is a table [N, ...] to be updated lazily; None for none.
    """

    def update(
        grads: optax.Updates, state: AdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AdamState]:
        count = optax.safe_increment(state.count)
        t = count.astype(float)
        rate = schedule(state.count) * jnp.sqrt(1 - beta2**t) / (1 - beta1**t)

        def moments(g: jax.Array, m: jax.Array, v: jax.Array, lazy: bool) -> tuple[jax.Array, jax.Array]:
            new = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * jnp.square(g)
            return (_in_rows_of(g, new[0], m), _in_rows_of(g, new[1], v)) if lazy else new

        def step(g: jax.Array, m: jax.Array, v: jax.Array, lazy: bool) -> jax.Array:
            change = (-rate * m / (jnp.sqrt(v) + epsilon)).astype(g.dtype)
            return _in_rows_of(g, change, jnp.zeros_like(g)) if lazy else change

        is_lazy = jax.tree.map(lambda _: False, grads) if lazy is None else lazy
        both = jax.tree.map(moments, grads, state.mean, state.square, is_lazy)
        mean, square = jax.tree.transpose(jax.tree.structure(grads), jax.tree.structure((0, 0)), both)
        return jax.tree.map(step, grads, mean, square, is_lazy), AdamState(count, mean, square)

    return optax.GradientTransformation(_init, update)


def lazy_adam(
    schedule: optax.Schedule, *, beta1: float, beta2: float, epsilon: float, tables: optax.Params
) -> optax.GradientTransformation:
    """`adam`, lazily where `tables` is True."""
    return adam(schedule, beta1=beta1, beta2=beta2, epsilon=epsilon, lazy=tables)


def _in_rows_of(g: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """`new` in the rows where `g` is not all zeros, else `old`."""
    looked_up = (g != 0).reshape(len(g), -1).any(1)
    return jnp.where(looked_up.reshape(-1, *[1] * (g.ndim - 1)), new, old)


def adamw(
    schedule: optax.Schedule,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    mask: optax.Params,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101), as PyTorch has it.

    At update t, from 1, of a parameter w with gradient g:

        m <- beta1 * m + (1 - beta1) * g;  v <- beta2 * v + (1 - beta2) * g**2
        u = m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + epsilon)
        w <- w - lr * (u + weight_decay * w)

    Where `mask` is False: w <- w - lr * u. Unlike in `adam`, epsilon is added to the corrected root; without
    decay it is `torch.optim.Adam`. Source: torch/optim/adamw.py; without decay of norms and biases
    NVIDIA/Megatron-LM, megatron/core/optimizer.
    """

    def step(u: jax.Array, w: jax.Array, decays: bool) -> jax.Array:
        return u + weight_decay * w if decays else u

    return _corrected(step, schedule, beta1, beta2, epsilon, mask)


def lamb(
    schedule: optax.Schedule,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    mask: optax.Params,
    stacked: optax.Params,
) -> optax.GradientTransformation:
    """Layer-wise adaptive moments (You et al., arXiv:1904.00962), as MLPerf's references of BERT and RNN-T have it.

    With m, v and u as in `adamw`, and norms in at least float32 of the parameter array w, or of each layer
    where `stacked` says that it holds several:

        d = u + weight_decay * w
        trust = |w| / |d|, 1 where either is 0; not clipped
        w <- w - lr * trust * d

    Where `mask` is False (BERT's norms and biases): w <- w - lr * u. Both references clip the gradients to a
    global norm of 1 before. Source: mlcommons/training, retired_benchmarks/bert/optimization.py, whose
    lamb_optimizer_v1 is TensorFlow's; retired_benchmarks/rnnt/pytorch/train.py, whose FusedLAMB is NVIDIA/apex's
    and decays all parameters.
    """

    def step(u: jax.Array, w: jax.Array, decays: bool, stacked: bool) -> jax.Array:
        if not decays:
            return u
        d = u + weight_decay * w
        w_norm, d_norm = norm(w, stacked), norm(d, stacked)
        scalable = (w_norm > 0) & (d_norm > 0)
        return jnp.where(scalable, w_norm / jnp.where(scalable, d_norm, 1), 1) * d

    return _corrected(step, schedule, beta1, beta2, epsilon, mask, stacked)


def _corrected(
    step: Callable[..., jax.Array],
    schedule: optax.Schedule,
    beta1: float,
    beta2: float,
    epsilon: float,
    *marks: optax.Params,
) -> optax.GradientTransformation:
    """w <- w - lr * step(u, w, what each of the marks says of w), with u as in `adamw`."""

    def update(
        grads: optax.Updates, state: AdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AdamState]:
        if params is None:
            raise ValueError(optax.NO_PARAMS_MSG)
        count = optax.safe_increment(state.count)
        t, lr = count.astype(float), schedule(state.count)
        of_mean, of_square = 1 - beta1**t, 1 - beta2**t
        mean = jax.tree.map(lambda g, m: beta1 * m + (1 - beta1) * g, grads, state.mean)
        square = jax.tree.map(lambda g, v: beta2 * v + (1 - beta2) * jnp.square(g), grads, state.square)

        def change(m: jax.Array, v: jax.Array, w: jax.Array, *marks: bool) -> jax.Array:
            u = m / of_mean / (jnp.sqrt(v / of_square) + epsilon)
            return (-lr * step(u, w, *marks)).astype(w.dtype)

        return jax.tree.map(change, mean, square, params, *marks), AdamState(count, mean, square)

    return optax.GradientTransformation(_init, update)
