"""What workloads on images share: how a batch lies, and pixels made ready for a model."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mlperf_jax.parallel.layout import LogicalAxes, constrain
from mlperf_jax.supervised import SupervisedWorkload


class ImageWorkload(SupervisedWorkload):
    """Examples with an `image`, uint8 [B, H, W, C]."""

    unit = "images"

    def batch_axes(self, name: str) -> LogicalAxes:
        return ("batch", "height", "width") if name == "image" else ("batch",)

    def normalise(self, images: jax.Array) -> jax.Array:
        """Turns uint8 [B, H, W, C] into zero mean and unit variance in the compute dtype."""
        # Subtraction and scaling in full precision: a bf16 pixel would lose its last three bits.
        wide = jnp.promote_types(self.policy.param_dtype, jnp.float32)
        mean, std = (jnp.asarray(self.config.data[k], wide) for k in ("mean", "std"))
        images = (images.astype(wide) - mean) / std
        return constrain(images.astype(self.policy.compute_dtype), "batch", "height", "width", None)
