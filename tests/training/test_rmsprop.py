"""RMSProp against NumPy."""

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from mlperf_jax.training.optimizers import decay_mask, make_optimizer


def test_twenty_steps_equal_numpys():
    random = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "bias": (3,)}
    start = {name: random.normal(size=shape) for name, shape in shapes.items()}
    gradients = [{name: random.normal(size=shape) for name, shape in shapes.items()} for _ in range(20)]
    config = ConfigDict(dict(name="rmsprop", decay=0.8, momentum=0.7, epsilon=0.5, weight_decay=0.1))

    def rate(step):
        return 0.05 / (1 + step)

    with jax.enable_x64(True):
        optimizer = make_optimizer(config, rate, decay_mask(start))
        update = jax.jit(optimizer.update)
        params, state = start, optimizer.init(start)
        for grads in gradients:
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
    for name, w in start.items():
        v, m = np.ones_like(w), np.zeros_like(w)
        for step, grads in enumerate(gradients):
            d = grads[name] + (0.1 * w if name == "kernel" else 0)
            v = 0.8 * v + 0.2 * d**2
            m = 0.7 * m + rate(step) * d / np.sqrt(v + 0.5)
            w = w - m
        np.testing.assert_allclose(params[name], w, rtol=1e-12, atol=1e-12)
