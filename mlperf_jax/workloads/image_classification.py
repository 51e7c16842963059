"""Image classification: a picture in, the class out; quality is top-1 accuracy."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import input_pipelines
from mlperf_jax.metrics import classification
from mlperf_jax.parallel.layout import LogicalAxes, constrain
from mlperf_jax.supervised import SupervisedWorkload
from mlperf_jax.training import optimizers, schedules
from mlperf_jax.workload import Batch
from models.resnet import ResNet, ResNetConfig, flops_per_image


class ImageClassification(SupervisedWorkload):
    """Label-smoothed cross-entropy on uint8 images [B, H, W, C], top-1 over all of the evaluation set."""

    unit = "images"

    @functools.cached_property
    def dataset(self) -> Any:
        if self.synthetic:
            return input_pipelines.synthetic(self.config.data)
        return input_pipelines.open_dataset(self.config.data.name, self.data_dir, self.config.data)

    @property
    def num_train(self) -> int:
        return self.dataset.num_train

    @property
    def num_eval(self) -> int:
        return self.dataset.num_eval

    @property
    def data_description(self) -> str:
        return self.dataset.description

    def check_data(self) -> None:
        self.dataset  # noqa: B018  Opening it reads its manifest and says what is missing.

    def batch_axes(self, name: str) -> LogicalAxes:
        return ("batch", "height", "width") if name == "image" else ("batch",)

    def normalise(self, images: jax.Array) -> jax.Array:
        """Turns uint8 [B, H, W, C] into zero mean and unit variance in the compute dtype."""
        # Subtraction and scaling in full precision: a bf16 pixel would lose its last three bits.
        wide = jnp.promote_types(self.policy.param_dtype, jnp.float32)
        mean, std = (jnp.asarray(self.config.data[k], wide) for k in ("mean", "std"))
        images = (images.astype(wide) - mean) / std
        return constrain(images.astype(self.policy.compute_dtype), "batch", "height", "width", None)

    def loss(self, model: nnx.Module, batch: Batch, key: jax.Array) -> jax.Array:
        logits = model(self.normalise(batch["image"]), train=True)
        return classification.cross_entropy(logits, batch["label"], label_smoothing=self.config.label_smoothing)

    def eval_totals(self) -> Any:
        return classification.init()

    def eval_update(self, totals: Any, model: nnx.Module, batch: Batch) -> Any:
        logits = model(self.normalise(batch["image"]), train=False)
        return classification.update(totals, logits, batch["label"], batch["mask"])

    def eval_result(self, totals: Any) -> dict[str, float]:
        result = classification.compute(totals)
        return result | {"quality": result["accuracy"]}


class ResNet50(ImageClassification):
    """ResNet-50 v1.5 on ImageNet (closed), and a small one of its family on Fashion-MNIST (mini)."""

    benchmark = "resnet"

    @functools.cached_property
    def model_config(self) -> ResNetConfig:
        return ResNetConfig(**self.config.model.to_dict())

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return ResNet(self.model_config, policy=self.policy, rngs=rngs)

    def make_optimizer(self, params: Any) -> optax.GradientTransformation:
        mask = optimizers.decay_mask(params)
        return optimizers.make_optimizer(self.config.optimizer, self.schedule(), mask)

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        config = self.config.schedule
        return schedules.polynomial_with_warmup(
            self.config.optimizer.base_lr, self.warmup_steps, self.decay_steps, config.end_lr, config.power
        )

    @property
    def warmup_steps(self) -> int:
        return self._step_after(self.config.schedule.warmup_epochs)

    @property
    def decay_steps(self) -> int:
        """As the config has it; 0 there means: down to the end of `max_epochs`."""
        train_steps = self._step_after(self.config.max_epochs)
        return self.config.schedule.decay_steps or train_steps - self.warmup_steps + 1

    def train_flops_per_example(self) -> float:
        return flops_per_image(self.model_config)
