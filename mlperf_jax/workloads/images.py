"""What workloads on images share: how a batch lies, and pixels made ready for a model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mlperf_jax.errors import UserError
from mlperf_jax.parallel.layout import LogicalAxes, constrain
from mlperf_jax.supervised import D, M, SupervisedWorkload


class ImageWorkload(SupervisedWorkload[M, D]):
    """Examples with an `image`, uint8 [B, H, W, C]."""

    unit = "images"

    def batch_axes(self, name: str) -> LogicalAxes:
        return ("batch", "height", "width") if name == "image" else ("batch",)

    def model_numbers(self) -> dict[str, Any]:
        """`config.model`, as a model's config takes it.

        Raises:
            UserError: the batch does not divide into the groups of its batch normalisation.
        """
        span = self.config.model.bn_span
        if span and self.batch_size % span:
            raise UserError(
                f"A batch of {self.batch_size} does not divide into groups of --config.model.bn_span={span}; "
                "use a multiple of it, or --config.model.bn_span=0 for the whole batch."
            )
        return self.config.model.to_dict()

    def logged_span(self) -> int:
        """`model_bn_span` of MLPerf's log; a span of 0 stands for the whole global batch."""
        return self.config.model.bn_span or self.batch_size

    def normalise(self, images: jax.Array) -> jax.Array:
        """Turns uint8 [B, H, W, C] into zero mean and unit variance in the compute dtype."""
        # Subtraction and scaling in full precision: a bf16 pixel would lose its last three bits.
        wide = jnp.promote_types(self.policy.param_dtype, jnp.float32)
        mean, std = (jnp.asarray(self.config.data[k], wide) for k in ("mean", "std"))
        images = (images.astype(wide) - mean) / std
        return constrain(images.astype(self.policy.compute_dtype), "batch", "height", "width", None)
