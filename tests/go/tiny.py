"""A small board and a network without layers, for tests of what is around the network."""

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.go.features import PLANES, features
from mlperf_jax.go.rules import Rules

RULES = Rules(3, 0.5, 18)
play = jax.jit(RULES.play)
planes = jax.jit(lambda position: features(position, 3))
_RANDOM = np.random.default_rng(11)
POLICY = _RANDOM.normal(size=(9 * PLANES, 10)).astype(np.float32)
VALUE = (0.3 * _RANDOM.normal(size=9 * PLANES)).astype(np.float32)


def linear(scale, planes):
    """A network: fixed random weights, times `scale`."""
    x = planes.reshape(len(planes), -1).astype(jnp.float32)
    return scale * (x @ POLICY), jnp.tanh(scale * (x @ VALUE))
