"""Gradient descent with momentum, and LARS.

`sgd` and `lars` hold the learning rate inside the momentum, as their references do: a change of rate then acts
on new gradients only. In `torch_sgd` it acts on all of the momentum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mlperf_jax.training.norms import norm


class MomentumState(NamedTuple):
    """State of `sgd` and `lars`.

    Attributes:
        count: updates made so far, int32 scalar.
        momentum: m in their equations, of the parameters' shapes.
    """

    count: jax.Array  # type: ignore[assignment]  # tuples have a method of the name that optax gives it
    momentum: optax.Updates


Direction = Callable[..., jax.Array]
"""(gradient, parameter, what each of the marks says of it) -> what the learning rate multiplies."""


def _momentum(
    direction: Direction, schedule: optax.Schedule, momentum: float, *marks: optax.Params
) -> optax.GradientTransformation:
    """m <- momentum * m - lr * direction(g, w); w <- w + m."""

    def init(params: optax.Params) -> MomentumState:
        return MomentumState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(
        grads: optax.Updates, state: MomentumState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MomentumState]:
        if params is None:
            raise ValueError(optax.NO_PARAMS_MSG)
        lr = schedule(state.count)

        def step(m: jax.Array, g: jax.Array, w: jax.Array, *marks: bool) -> jax.Array:
            return (momentum * m - lr * direction(g, w, *marks)).astype(m.dtype)

        new = jax.tree.map(step, state.momentum, grads, params, *marks)
        return new, MomentumState(optax.safe_increment(state.count), new)

    return optax.GradientTransformation(init, update)


def sgd(
    schedule: optax.Schedule, *, momentum: float, weight_decay: float, mask: optax.Params
) -> optax.GradientTransformation:
    """Gradient descent with momentum and L2 regularisation.

    m <- momentum * m - lr * (g + weight_decay * w);  w <- w + m, without decay where `mask` is False:
    the gradient of a loss that holds `weight_decay / 2 * |w|**2`.
    """

    def direction(g: jax.Array, w: jax.Array, decays: bool) -> jax.Array:
        return g + weight_decay * w if decays else g

    return _momentum(direction, schedule, momentum, mask)


def torch_sgd(
    schedule: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
    bias_rate: float = 1.0,
    bias_decay: float = 1.0,
    mask: optax.Params | None = None,
) -> optax.GradientTransformation:
    """Gradient descent with momentum as PyTorch's `optim.SGD` has it: a change of rate acts on all of m.

    With d = g + weight_decay * w, where every parameter decays:

        m <- momentum * m + d;  w <- w - lr * m, with `nesterov` w <- w - lr * (momentum * m + d)

    Where `mask` is False (biases) the rate is `bias_rate` times lr, and the decay `bias_decay` times `weight_decay`.
    Source: mlcommons/training, retired_benchmarks/ssd-v1/ssd/train.py; with `nesterov`
    retired_benchmarks/unet3d/pytorch/runtime/training.py; of biases
    retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark/solver/build.py.
    """
    descent = optax.sgd(schedule, momentum=momentum, nesterov=nesterov)
    decay = optax.add_decayed_weights(weight_decay)
    if mask is None or bias_rate == bias_decay == 1:
        return optax.chain(decay, descent)
    biases = jax.tree.map(lambda kept: not kept, mask)
    return optax.chain(
        optax.masked(decay, mask),
        optax.masked(optax.add_decayed_weights(bias_decay * weight_decay), biases),
        descent,
        optax.masked(optax.scale(bias_rate), biases),
    )


def lars(
    schedule: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float = 0.001,
    epsilon: float = 0.0,
    mask: optax.Params,
    stacked: optax.Params,
) -> optax.GradientTransformation:
    """Layer-wise adaptive rate scaling (You et al., arXiv:1708.03888), as MLPerf's reference has it.

    Per parameter array w with gradient g, or per layer where `stacked` says that it holds several, norms in
    at least float32:

        trust = trust_coefficient * |w| / (|g| + weight_decay * |w| + epsilon), 1 where |w| or |g| is 0
        m <- momentum * m - lr * trust * (g + weight_decay * w)
        w <- w + m

    Where `mask` is False (norms and biases, the reference's skip list): m <- momentum * m - lr * g.
    Source: mlcommons/training, retired_benchmarks/resnet-tf2/tensorflow2/lars_optimizer.py.
    """

    def direction(g: jax.Array, w: jax.Array, decays: bool, stacked: bool) -> jax.Array:
        if not decays:
            return g
        w_norm, g_norm = norm(w, stacked), norm(g, stacked)
        denominator = g_norm + weight_decay * w_norm + epsilon
        scalable = (w_norm > 0) & (g_norm > 0)
        trust = jnp.where(scalable, trust_coefficient * w_norm / jnp.where(scalable, denominator, 1), 1)
        return trust * (g + weight_decay * w)

    return _momentum(direction, schedule, momentum, mask, stacked)
