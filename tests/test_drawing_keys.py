"""Keys made many at a time are those that NNX makes one by one."""

import jax
import numpy as np
from flax import nnx

from mlperf_jax.drawing_keys import AT_ONCE, DrawingKeys


def test_keys_are_nnxs_in_order():
    def data(rngs):
        return np.array([jax.random.key_data(rngs.params()) for _ in range(AT_ONCE + 2)])

    found = data(DrawingKeys(jax.random.key(5)))
    np.testing.assert_array_equal(found, data(nnx.Rngs(jax.random.key(5))))
    assert len(np.unique(found, axis=0)) == len(found)
