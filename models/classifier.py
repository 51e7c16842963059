"""The head of image classifiers."""

from __future__ import annotations

import jax
from flax import nnx

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.layers import Dense


class Classifier(Dense):
    """A dense layer over the mean of an image's features.

    Both run in the output dtype: logits decide by small margins.
    """

    def __init__(self, features: int, num_classes: int, *, policy: Policy, rngs: nnx.Rngs) -> None:
        super().__init__(
            features,
            num_classes,
            axes=("embed", "vocab"),
            stddev=0.01,
            dtype=policy.output_dtype,
            policy=policy,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features [B, H, W, I] to logits [B, num_classes] in the output dtype."""
        return constrain(super().__call__(x.mean((1, 2), dtype=self.dtype)), "batch", "vocab")
