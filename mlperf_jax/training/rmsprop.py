"""RMSProp (Tieleman and Hinton, 2012) as TensorFlow has it."""

from __future__ import annotations

import optax


def rmsprop(
    schedule: optax.Schedule,
    *,
    decay: float,
    momentum: float,
    epsilon: float,
    weight_decay: float,
    mask: optax.Params,
) -> optax.GradientTransformation:
    """Steps divided by the root of a running mean of squared gradients, which starts as 1; with L2 regularisation.

    With d = g + weight_decay * w, without decay where `mask` is False:

        v <- decay * v + (1 - decay) * d**2
        m <- momentum * m + lr * d / sqrt(v + epsilon)
        w <- w - m

    Source: tensorflow/core/kernels/training_ops.cc, ApplyRMSProp; python/training/rmsprop.py.
    """
    steps = optax.rmsprop(
        schedule, decay=decay, eps=epsilon, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum
    )
    return optax.chain(optax.add_decayed_weights(weight_decay, mask), steps)
