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


def polynomial_under_warmup(
    base_lr: float, warmup_steps: int, decay_steps: int, *, start_warmup_step: int = 0, power: float = 1.0
) -> optax.Schedule:
    """Polynomial decay to zero from the first step on, in whose place a linear warm-up stands: BERT's schedule.

    At step s (0 for the first update):

        s - start_warmup_step < warmup_steps:  base_lr * (s - start_warmup_step) / warmup_steps
        otherwise:                             base_lr * (1 - min(s / decay_steps, 1))**power

    Source: mlcommons/training, language_model/tensorflow/bert/optimization.py.

    Args:
        base_lr: the rate that the warm-up leads to and the decay begins at.
        warmup_steps: 0 for none.
        decay_steps: from the first step to zero; the rate stays there.
        start_warmup_step: below 0 where the first update is in the middle of the warm-up.
        power: of the decay.
    """
    if warmup_steps < 0 or decay_steps <= 0:
        raise ValueError(f"warmup_steps {warmup_steps} must be >= 0 and decay_steps {decay_steps} > 0")

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, float)
        decayed = base_lr * (1 - jnp.minimum(step / decay_steps, 1)) ** power
        if warmup_steps == 0:
            return decayed
        done = step - start_warmup_step
        return jnp.where(done < warmup_steps, base_lr * done / warmup_steps, decayed)

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
        fallen = sum(((step >= b).astype(step.dtype) for b in boundaries), start=jnp.zeros_like(step))
        rate = base_lr * jnp.power(jnp.asarray(decay_factor, step.dtype), fallen)
        if warmup_steps == 0:
            return rate
        slope = base_lr / (warmup_steps * 2**warmup_factor)
        return jnp.where(step < warmup_steps, base_lr - (warmup_steps - step) * slope, rate)

    return schedule


def cosine_with_warmup(
    base_lr: float, warmup_steps: int, steps: int, warmup_factor: float = 0.001
) -> optax.Schedule:
    """Half a cosine from the first step on, which a warm-up multiplies: Detectron2's WarmupCosineLR.

    At step s (0 for the first update) base_lr * (1 + cos(pi min(s / steps, 1))) / 2, times a factor that rises linearly
    from `warmup_factor` to 1 in `warmup_steps`.

    Source: facebookresearch/detectron2, detectron2/solver/build.py and lr_scheduler.py.

    Args:
        base_lr: the rate at the beginning, but for the warm-up.
        warmup_steps: 0 for none.
        steps: until the rate is zero, where it stays.
        warmup_factor: of the first step.
    """
    if warmup_steps < 0 or steps <= 0:
        raise ValueError(f"warmup_steps {warmup_steps} must be >= 0 and steps {steps} > 0")

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, float)
        rate = base_lr * (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1))) / 2
        if warmup_steps == 0:
            return rate
        share = jnp.minimum(step / warmup_steps, 1)
        return rate * (warmup_factor * (1 - share) + share)

    return schedule


def halvings_with_exponential_warmup(
    base_lr: float,
    warmup_steps: int,
    remain_steps: int,
    decay_interval: int,
    *,
    decay_steps: int = 4,
    decay_factor: float = 0.5,
) -> optax.Schedule:
    """Exponential warm-up from a hundredth, then a rate that falls every so many steps: GNMT's schedule.

    At the update number c (1 for the first):

        c <= warmup_steps:   base_lr * 0.01**((warmup_steps - c) / warmup_steps)
        c >= remain_steps:   base_lr * decay_factor**min(1 + (c - remain_steps) // decay_interval, decay_steps)
        between:             base_lr

    A warm-up longer than `remain_steps` ends there. Source: mlcommons/training,
    rnn_translator/pytorch/seq2seq/train/lr_scheduler.py, WarmupMultiStepLR, which steps before its optimizer does.

    Args:
        base_lr: the rate at the end of the warm-up.
        warmup_steps: 0 for none.
        remain_steps: until the rate first falls.
        decay_interval: from one fall to the next, at least 1.
        decay_steps: falls at most.
        decay_factor: what the rate is multiplied by.
    """
    warmup_steps = min(warmup_steps, remain_steps)

    def schedule(step: jax.Array | int) -> jax.Array:
        count = jnp.asarray(step) + 1
        falls = jnp.clip((count - remain_steps) // decay_interval + 1, 0, decay_steps)
        rate = base_lr * jnp.power(jnp.asarray(decay_factor, float), falls)
        if warmup_steps == 0:
            return rate
        warming = base_lr * jnp.power(0.01, (warmup_steps - count) / warmup_steps)
        return jnp.where(count <= warmup_steps, warming, rate)

    return schedule


def linear_warmup(
    base_lr: float,
    warmup_steps: float,
    warmup_factor: float,
    *,
    boundaries: Sequence[float] = (),
    decay_factor: float = 0.1,
) -> optax.Schedule:
    """Linear warm-up to a rate that stays, as RetinaNet's does, or falls at some steps.

    At step s (0 for the first update), with t = min(s / warmup_steps, 1):

        base_lr * (warmup_factor * (1 - t) + t) * decay_factor**n, n of the boundaries being <= s

    Source: mlcommons/training, retired_benchmarks/retinanet/ssd/utils.py, warmup_lr_scheduler.

    Args:
        base_lr: the rate after the warm-up.
        warmup_steps: may be fractional (epochs times steps per epoch); 0 for none.
        warmup_factor: the warm-up begins at this part of the rate.
        boundaries: steps at which the rate falls.
        decay_factor: what it is multiplied by.
    """

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, float)
        t = jnp.minimum(step / warmup_steps, 1) if warmup_steps else jnp.ones_like(step)
        fallen = sum(((step >= b).astype(step.dtype) for b in boundaries), start=jnp.zeros_like(step))
        return base_lr * (warmup_factor * (1 - t) + t) * jnp.asarray(decay_factor, step.dtype) ** fallen

    return schedule


def epochs_warmup(
    base_lr: float,
    warmup_epochs: int,
    boundaries: Sequence[float] = (),
    *,
    steps_per_epoch: float,
    init_lr: float = 0.0,
    decay_factor: float = 0.1,
) -> optax.Schedule:
    """A rate that changes from epoch to epoch, warmed up, then constant or falling: 3D U-Net's schedule.

    In epoch e (1 for the first; step s is of epoch floor(s / steps_per_epoch) + 1):

        e <= warmup_epochs:  init_lr + (base_lr - init_lr) * e / warmup_epochs
        otherwise:           base_lr * decay_factor**n, n of the boundaries being < e

    Source: mlcommons/training, retired_benchmarks/unet3d/pytorch/runtime/training.py.

    Args:
        base_lr: the rate after the warm-up.
        warmup_epochs: 0 for none.
        boundaries: epochs after which the rate falls.
        steps_per_epoch: may be a fraction, where batches cross the borders of epochs.
        init_lr: the rate that the warm-up begins above.
        decay_factor: what it is multiplied by.
    """

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, float)
        # A step that begins an epoch may come out a hair before it.
        epoch = jnp.floor((step + 0.001) / steps_per_epoch) + 1
        fallen = sum(((epoch > b).astype(step.dtype) for b in boundaries), start=jnp.zeros_like(step))
        rate = base_lr * jnp.power(jnp.asarray(decay_factor, step.dtype), fallen)
        if warmup_epochs == 0:
            return rate
        rising = init_lr + (base_lr - init_lr) * epoch / warmup_epochs
        return jnp.where(epoch <= warmup_epochs, rising, rate)

    return schedule


def annealed_by_epoch(
    base_lr: float, anneal: float, *, steps_per_epoch: float, warmup_steps: int = 0
) -> optax.Schedule:
    """A rate that is divided by the same number after every epoch: DeepSpeech2's schedule; here after a warm-up.

    In epoch e (0 for the first; step s is of epoch floor(s / steps_per_epoch)):

        base_lr / anneal**e * min((s + 1) / warmup_steps, 1)

    Source: mlcommons/training, retired_benchmarks/never-adopted/speech_recognition/pytorch/train.py.

    Args:
        base_lr: the rate of the first epoch.
        anneal: what it is divided by.
        steps_per_epoch: may be a fraction, where batches cross the borders of epochs.
        warmup_steps: in which the rate rises on a line; 0 for none.
    """

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, float)
        # A step that begins an epoch may come out a hair before it.
        epoch = jnp.floor((step + 0.001) / steps_per_epoch)
        rate = base_lr * jnp.power(jnp.asarray(anneal, step.dtype), -epoch)
        return rate * jnp.minimum((step + 1) / warmup_steps, 1) if warmup_steps else rate

    return schedule


def exponential_after_hold(
    base_lr: float,
    warmup_epochs: float,
    hold_epochs: float,
    gamma: float,
    *,
    steps_per_epoch: float,
    min_lr: float = 1e-5,
) -> optax.Schedule:
    """Linear warm-up, a plateau, then a rate that falls by a factor every epoch: RNN-T's schedule.

    At the update number c (1 for the first), in epoch e (1 for the first), with w and h the steps of `warmup_epochs` and
    `hold_epochs`:

        c < w:      base_lr * (c + 1) / (w + 1)
        c < w + h:  base_lr
        later:      base_lr * gamma**(e - warmup_epochs - hold_epochs)

    and nowhere less than `min_lr`. Source: mlcommons/training, rnn_speech_recognition/pytorch/common/optimizers.py,
    lr_policy, and train.py, which counts steps and epochs from 1.

    Args:
        base_lr: the rate of the plateau.
        warmup_epochs, hold_epochs: may be 0.
        gamma: what the rate is multiplied by.
        steps_per_epoch: may be a fraction, where batches cross the borders of epochs.
        min_lr: the least rate.
    """
    warmup, held = warmup_epochs * steps_per_epoch, (warmup_epochs + hold_epochs) * steps_per_epoch

    def schedule(step: jax.Array | int) -> jax.Array:
        count = jnp.asarray(step, float) + 1
        # A step that begins an epoch may come out a hair before it.
        epoch = jnp.floor((count - 0.999) / steps_per_epoch) + 1
        falling = jnp.power(jnp.asarray(gamma, count.dtype), epoch - warmup_epochs - hold_epochs)
        share = jnp.where(count < warmup, (count + 1) / (warmup + 1), jnp.where(count < held, 1.0, falling))
        return jnp.maximum(base_lr * share, min_lr)

    return schedule


def rsqrt_with_warmup(scale: float, warmup_steps: float) -> optax.Schedule:
    """Linear warm-up from zero, then decay with the square root of the steps: the Transformer's schedule.

    At step s (0 for the first update, whose rate is therefore 0):

        scale * min(1, s / warmup_steps) / sqrt(max(s, warmup_steps))

    Source: Vaswani et al., arXiv:1706.03762, section 5.3; mlcommons/training,
    retired_benchmarks/transformer/tensorflow/transformer/transformer_main.py, get_learning_rate.

    Args:
        scale: of the whole; the benchmark's base rate over the root of the model's width.
        warmup_steps: until the largest rate, `scale / sqrt(warmup_steps)`.
    """
    if warmup_steps <= 0:
        raise ValueError(f"warmup_steps {warmup_steps} must be > 0")

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, float)
        return scale * jnp.minimum(1, step / warmup_steps) * jax.lax.rsqrt(jnp.maximum(step, warmup_steps))

    return schedule


def warmup_hold_square(
    base_lr: float, warmup_steps: int, decay_start_step: int, decay_steps: int
) -> optax.Schedule:
    """Linear warm-up, a plateau, then a decay by the square: DLRM's schedule, as its reference computes it.

    At the update number c (1 for the first), with w, s, d the three steps:

        c < w:           base_lr * c / w
        w <= c < s:      base_lr * (w - 1) / w, where the warm-up left it
        s <= c < s + d:  base_lr * ((s + d - c) / d)**2, at least 1e-7
        later:           the same as at c = s + d - 1

    Without warm-up (w = 0) the plateau is `base_lr`; without decay (d = 0) it has no end. Source:
    facebookresearch/dlrm, dlrm_s_pytorch.py, LRPolicyScheduler.
    """
    if min(warmup_steps, decay_steps) < 0 or (decay_steps and decay_start_step < warmup_steps):
        raise ValueError(
            f"warmup_steps {warmup_steps} and decay_steps {decay_steps} must be >= 0, and the decay must "
            f"start ({decay_start_step}) after the warm-up"
        )

    def schedule(step: jax.Array | int) -> jax.Array:
        count = jnp.asarray(step, float) + 1
        rate = jnp.full_like(count, base_lr)
        if warmup_steps:
            rate = (
                base_lr * jnp.minimum(count, warmup_steps - 1 if decay_steps else warmup_steps) / warmup_steps
            )
        if decay_steps:
            left = decay_start_step + decay_steps - jnp.minimum(count, decay_start_step + decay_steps - 1)
            decayed = jnp.maximum(base_lr * (left / decay_steps) ** 2, 1e-7)
            rate = jnp.where(count >= decay_start_step, decayed, rate)
        return rate

    return schedule


def cosine_after_warmup(base_lr: float, end_lr: float, warmup_steps: int, max_steps: int) -> optax.Schedule:
    """Linear warm-up, then half a cosine: NeMo's, with which MLPerf's language models are trained.

    At step s (0 for the first update):

        s < warmup_steps:  base_lr * (s + 1) / (warmup_steps + 1)
        otherwise:         end_lr + (base_lr - end_lr) * (1 + cos(pi * t)) / 2,
                           t = min((s - warmup_steps) / (max_steps - warmup_steps), 1)

    Source: NVIDIA/NeMo, nemo/core/optim/lr_scheduler.py, CosineAnnealing.

    Args:
        base_lr: the rate at the end of the warm-up.
        end_lr: the rate at `max_steps`, where it stays.
        warmup_steps: 0 for none.
        max_steps: counted from the first update.
    """
    if not 0 <= warmup_steps < max_steps:
        raise ValueError(f"warmup_steps {warmup_steps} must be >= 0 and less than max_steps {max_steps}")

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, float)
        t = jnp.clip((step - warmup_steps) / (max_steps - warmup_steps), 0, 1)
        decayed = end_lr + (base_lr - end_lr) * (1 + jnp.cos(jnp.pi * t)) / 2
        return jnp.where(step < warmup_steps, base_lr * (step + 1) / (warmup_steps + 1), decayed)

    return schedule
