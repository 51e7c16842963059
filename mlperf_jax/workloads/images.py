"""What workloads on images share: the data set behind them, and pixels made ready for a model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import input_pipelines
from mlperf_jax.parallel.layout import LogicalAxes, constrain
from mlperf_jax.supervised import SupervisedWorkload


class ImageWorkload(SupervisedWorkload):
    """Examples with an `image`, uint8 [B, H, W, C], from the data set that `config.data` names."""

    unit = "images"

    @classmethod
    def prepare(cls, config: ConfigDict, data_dir: Path) -> None:
        input_pipelines.prepare(config.data.name, data_dir, fake=config.data.get("fake", 0))

    @functools.cached_property
    def dataset(self) -> Any:
        options = self.config.data.to_dict() | {"synthetic": self.synthetic}
        return input_pipelines.open_dataset(self.config.data.name, self.data_dir, options)

    @property
    def num_train(self) -> int:
        return self.dataset.num_train

    @property
    def num_eval(self) -> int:
        return self.dataset.num_eval

    @property
    def data_description(self) -> str:
        return self.dataset.description

    @property
    def made_up_data(self) -> bool:
        return self.dataset.fake

    def check_data(self) -> None:
        _ = self.dataset  # Opening it reads its manifest and says what is missing.

    def batch_axes(self, name: str) -> LogicalAxes:
        return ("batch", "height", "width") if name == "image" else ("batch",)

    def normalise(self, images: jax.Array) -> jax.Array:
        """Turns uint8 [B, H, W, C] into zero mean and unit variance in the compute dtype."""
        # Subtraction and scaling in full precision: a bf16 pixel would lose its last three bits.
        wide = jnp.promote_types(self.policy.param_dtype, jnp.float32)
        mean, std = (jnp.asarray(self.config.data[k], wide) for k in ("mean", "std"))
        images = (images.astype(wide) - mean) / std
        return constrain(images.astype(self.policy.compute_dtype), "batch", "height", "width", None)
