"""MLPerf's optimizers, as optax transformations, each transcribed from the rules' own equation.

The rules name other frameworks' implementations and ask anyone else to state the equation and
show that it is equivalent (training_policies, appendix "Allowed optimizers"): here the equation is in
the docstring and the tests run it against NumPy. `sgd` and `lars` hold the learning rate inside the
momentum, as their references do: a change of rate then acts on new gradients only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mlperf_jax.errors import UserError

OptimizerFactory = Callable[..., optax.GradientTransformation]
"""`factory(config, schedule, mask)` -> the optimizer; see `make_optimizer`."""

_REGISTRY: dict[str, OptimizerFactory] = {}


def register(name: str) -> Callable[[OptimizerFactory], OptimizerFactory]:
    """Makes a factory known to `make_optimizer` by `name`."""

    def add(factory: OptimizerFactory) -> OptimizerFactory:
        _REGISTRY[name] = factory
        return factory

    return add


def make_optimizer(config: Any, schedule: optax.Schedule, mask: optax.Params) -> optax.GradientTransformation:
    """Builds the optimizer that a workload's config asks for.

    Args:
        config: has `name` and that optimizer's numbers as attributes (`momentum`, `weight_decay`, ...).
        schedule: learning rate as a function of the steps taken.
        mask: True where a parameter decays; see `decay_mask`.

    Raises:
        UserError: no optimizer has that name.
    """
    if config.name not in _REGISTRY:
        raise UserError(f"There is no optimizer {config.name!r}; use one of {', '.join(sorted(_REGISTRY))}.")
    return _REGISTRY[config.name](config, schedule, mask)


def decay_mask(params: optax.Params) -> optax.Params:
    """Which parameters decay: the tree of `params` with False at norms' scales and at biases.

    These are the leaves named "scale" or "bias"; arrays or their shapes will do.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return getattr(path[-1], "key", None) not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(decays, params)


class MomentumState(NamedTuple):
    """State of `sgd` and `lars`.

    Attributes:
        count: updates made so far, int32 scalar.
        momentum: m in their equations, of the parameters' shapes.
    """

    count: jax.Array  # type: ignore[assignment]  # tuples have a method of the name that optax gives it
    momentum: optax.Updates


Direction = Callable[[jax.Array, jax.Array, bool], jax.Array]
"""(gradient, parameter, whether it decays) -> what the learning rate multiplies."""


def _momentum(
    direction: Direction, schedule: optax.Schedule, momentum: float, mask: optax.Params
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

        def step(m: jax.Array, g: jax.Array, w: jax.Array, decays: bool) -> jax.Array:
            return (momentum * m - lr * direction(g, w, decays)).astype(m.dtype)

        new = jax.tree.map(step, state.momentum, grads, params, mask)
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
    schedule: optax.Schedule, *, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Gradient descent with momentum as PyTorch's `optim.SGD` has it: a change of rate acts on all of m.

    m <- momentum * m + g + weight_decay * w;  w <- w - lr * m, where every parameter decays.
    Source: mlcommons/training, retired_benchmarks/ssd-v1/ssd/train.py.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum=momentum))


def lars(
    schedule: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float = 0.001,
    epsilon: float = 0.0,
    mask: optax.Params,
) -> optax.GradientTransformation:
    """Layer-wise adaptive rate scaling (You et al., arXiv:1708.03888), as MLPerf's reference has it.

    Per parameter array w with gradient g, norms in at least float32:

        trust = trust_coefficient * |w| / (|g| + weight_decay * |w| + epsilon), 1 where |w| or |g| is 0
        m <- momentum * m - lr * trust * (g + weight_decay * w)
        w <- w + m

    Where `mask` is False (norms and biases, the reference's skip list): m <- momentum * m - lr * g.
    Source: mlcommons/training, retired_benchmarks/resnet-tf2/tensorflow2/lars_optimizer.py.
    """

    def direction(g: jax.Array, w: jax.Array, decays: bool) -> jax.Array:
        if not decays:
            return g
        w_norm, g_norm = _norm(w), _norm(g)
        denominator = g_norm + weight_decay * w_norm + epsilon
        scalable = (w_norm > 0) & (g_norm > 0)
        trust = jnp.where(scalable, trust_coefficient * w_norm / jnp.where(scalable, denominator, 1), 1)
        return trust * (g + weight_decay * w)

    return _momentum(direction, schedule, momentum, mask)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))))


class AdamState(NamedTuple):
    """State of `adam` and `lazy_adam`.

    Attributes:
        count: updates made so far, int32 scalar.
        mean, square: m and v in their equations, of the parameters' shapes.
    """

    count: jax.Array  # type: ignore[assignment]  # tuples have a method of the name that optax gives it
    mean: optax.Updates
    square: optax.Updates


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

    def init(params: optax.Params) -> AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

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

    return optax.GradientTransformation(init, update)


def _in_rows_of(g: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """`new` in the rows where `g` is not all zeros, else `old`."""
    looked_up = (g != 0).reshape(len(g), -1).any(1)
    return jnp.where(looked_up.reshape(-1, *[1] * (g.ndim - 1)), new, old)


def table_mask(params: optax.Params) -> optax.Params:
    """Which parameters are tables that are looked up in: the leaves named "embedding"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "embedding", params
    )


@register("sgd")
def _sgd(config: Any, schedule: optax.Schedule, mask: optax.Params) -> optax.GradientTransformation:
    return sgd(schedule, momentum=config.momentum, weight_decay=config.weight_decay, mask=mask)


@register("torch_sgd")
def _torch_sgd(config: Any, schedule: optax.Schedule, mask: optax.Params) -> optax.GradientTransformation:
    return torch_sgd(schedule, momentum=config.momentum, weight_decay=config.weight_decay)


@register("lars")
def _lars(config: Any, schedule: optax.Schedule, mask: optax.Params) -> optax.GradientTransformation:
    return lars(
        schedule,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        trust_coefficient=config.trust_coefficient,
        epsilon=config.epsilon,
        mask=mask,
    )


@register("adam")
def _adam(config: Any, schedule: optax.Schedule, mask: optax.Params) -> optax.GradientTransformation:
    return adam(schedule, beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon)


@register("lazy_adam")
def _lazy_adam(config: Any, schedule: optax.Schedule, mask: optax.Params) -> optax.GradientTransformation:
    return adam(
        schedule, beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon, lazy=table_mask(mask)
    )
