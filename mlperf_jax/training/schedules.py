"""Learning-rate schedules: functions of the number of steps already taken."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax


def polynomial_with_warmup(
    base_lr: float, warmup_steps: float, decay_steps: float, end_lr: float = 1e-4, power: float = 2.0
) -> optax.Schedule:
    """Linear warm-up from zero, then polynomial decay: the ResNet-50 rules' schedule.

    At step s (0 for the first update, whose rate is therefore 0):

        s <= warmup_steps:  base_lr * s / warmup_steps
        otherwise:          (base_lr - end_lr) * (1 - t)**power + end_lr,
                            t = min((s - warmup_steps) / decay_steps, 1)

    The reference sets decay_steps = train_steps - warmup_steps + 1. Source: mlcommons/training,
    retired_benchmarks/resnet-tf2/tensorflow2/lars_util.py, PolynomialDecayWithWarmup.

    Args:
        base_lr: the rate at the end of the warm-up.
        warmup_steps: may be fractional (epochs times steps per epoch); 0 for none.
        decay_steps: steps from `base_lr` to `end_lr`; the rate stays there.
        end_lr: the last rate.
        power: of the decay.
    """
    if warmup_steps < 0 or decay_steps <= 0:
        raise ValueError(f"warmup_steps {warmup_steps} must be >= 0 and decay_steps {decay_steps} > 0")

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, float)
        t = jnp.clip((step - warmup_steps) / decay_steps, 0, 1)
        decayed = (base_lr - end_lr) * (1 - t) ** power + end_lr
        if warmup_steps == 0:
            return decayed
        return jnp.where(step <= warmup_steps, base_lr * (step / warmup_steps), decayed)

    return schedule


def step_decay_with_warmup(
    base_lr: float,
    warmup_steps: float,
    boundaries: Sequence[float],
    *,
    decay_factor: float = 0.1,
    warmup_factor: float = 0.0,
) -> optax.Schedule:
    """Linear warm-up, then a rate that falls at some steps: SSD's schedule.

    At step s (0 for the first update):

        s < warmup_steps:  base_lr - (warmup_steps - s) * base_lr / (warmup_steps * 2**warmup_factor)
        otherwise:         base_lr * decay_factor**n, n of the boundaries being <= s

    Source: mlcommons/training, retired_benchmarks/ssd-v1/ssd/train.py.

    Args:
        base_lr: the rate at the end of the warm-up.
        warmup_steps: 0 for none.
        boundaries: steps at which the rate falls.
        decay_factor: what it is multiplied by.
        warmup_factor: the warm-up begins at 1 - 2**-warmup_factor of the rate; 0 at zero.
    """

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, float)
        fallen = sum((step >= boundary).astype(step.dtype) for boundary in boundaries)
        rate = base_lr * jnp.power(jnp.asarray(decay_factor, step.dtype), fallen)
        if warmup_steps == 0:
            return rate
        slope = base_lr / (warmup_steps * 2**warmup_factor)
        return jnp.where(step < warmup_steps, base_lr - (warmup_steps - step) * slope, rate)

    return schedule
