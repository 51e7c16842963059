"""Image classification: a picture in, the class out; quality is top-1 accuracy."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipelines.base import Dataset
from mlperf_jax.metrics import classification
from mlperf_jax.supervised import Loss, mean_of
from mlperf_jax.training import schedules
from mlperf_jax.weights import mobilenet as mobilenet_weights
from mlperf_jax.weights import resnet as resnet_weights
from mlperf_jax.weights import shufflenet as shufflenet_weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import Batch, Evaluation, State
from mlperf_jax.workloads.images import ImageWorkload
from models import mobilenet, resnet, shufflenet


class ImageClassification(ImageWorkload[nnx.Module, Dataset]):
    """Label-smoothed cross-entropy on uint8 images [B, H, W, C], top-1 over all of the evaluation set.

    Trained as MLPerf trains on ImageNet: LARS or SGD, a rate that warms up and falls as a polynomial; or, as
    others do, at given epochs (`config.schedule.boundary_epochs`).
    """

    metric = "top-1 accuracy"

    def loss(self, model: nnx.Module, batch: Batch, key: jax.Array) -> Loss:
        logits = model(self.normalise(batch["image"]), train=True)
        smoothing = self.config.label_smoothing
        return mean_of(classification.cross_entropy(logits, batch["label"], label_smoothing=smoothing))

    def eval_totals(self) -> Any:
        return classification.init()

    def eval_update(self, totals: Any, model: nnx.Module, batch: Batch) -> Any:
        logits = model(self.normalise(batch["image"]), train=False)
        return classification.update(totals, logits, batch["label"], batch["mask"])

    def eval_result(self, totals: Any) -> dict[str, float]:
        result = classification.compute(totals)
        return result | {"quality": result["accuracy"]}

    # Inference.

    input_names = ("image",)

    def answer(self, model: nnx.Module, inputs: Batch) -> jax.Array:
        """The class of each image, [B] int32."""
        return model(self.normalise(inputs["image"]), train=False).argmax(1).astype(jnp.int32)

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        labels = self.dataset.read_eval(indices, ("label",))["label"]
        classes = np.array([np.frombuffer(answer, "<i4").item() for answer in answers])
        return {"quality": float(np.mean(classes == labels))}

    # Training.

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        config = self.config.schedule
        if "boundary_epochs" in config:
            return schedules.step_decay_with_warmup(
                self.config.optimizer.base_lr,
                self._steps(config.warmup_epochs),
                [self._steps(epoch) for epoch in config.boundary_epochs],
                decay_factor=config.decay_factor,
            )
        return schedules.polynomial_with_warmup(
            self.config.optimizer.base_lr,
            self._steps(config.warmup_epochs),
            self.decay_steps,
            config.end_lr,
            config.power,
        )

    @property
    def decay_steps(self) -> int:
        """Written as steps in reference convergence points, elsewhere as epochs."""
        config = self.config.schedule
        return config.decay_steps if "decay_steps" in config else round(self._steps(config.decay_epochs))

    def _steps(self, epochs: float) -> float:
        return epochs * self.num_train / self.batch_size

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule = self.config.optimizer, self.config.schedule
        name = optimizer.name
        if "boundary_epochs" in schedule:
            decay = {
                "opt_learning_rate_decay_boundary_epochs": list(schedule.boundary_epochs),
                "opt_learning_rate_decay_factor": schedule.decay_factor,
            }
        else:
            decay = {
                "opt_end_learning_rate": schedule.end_lr,
                "opt_learning_rate_decay_poly_power": schedule.power,
                "opt_learning_rate_decay_steps": self.decay_steps,
            }
        numbers = {
            "opt_base_learning_rate": optimizer.base_lr,
            **decay,
            "opt_momentum": optimizer.momentum,
            "opt_weight_decay": optimizer.weight_decay,
        }
        # The checker wants the warm-up under LARS's prefix, but for SGD under none.
        warmup = f"{'lars_' if name == 'lars' else ''}opt_learning_rate_warmup_epochs"
        epsilon = {"lars_epsilon": optimizer.epsilon} if name == "lars" else {}
        return {
            "opt_name": name,
            **{f"{name}_{key}": value for key, value in numbers.items()},
            warmup: schedule.warmup_epochs,
            **epsilon,
            "model_bn_span": self.logged_span(),
        }


class ResNet50(ImageClassification):
    """ResNet-50 v1.5 on ImageNet (closed), and a small one of its family on Fashion-MNIST (mini)."""

    benchmark = "resnet"

    @functools.cached_property
    def model_config(self) -> resnet.ResNetConfig:
        return resnet.ResNetConfig(**self.model_numbers())

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return resnet.ResNet(self.model_config, policy=self.policy, rngs=rngs)

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        return resnet_weights.published(tensors, self.model_config)

    def train_flops_per_example(self) -> float:
        return resnet.flops_per_image(self.model_config, train=True)


class MobileNet(ImageClassification):
    """MobileNet v1 on ImageNet (closed), and a small one of its family on Fashion-MNIST (mini)."""

    benchmark = "mobilenet"

    @functools.cached_property
    def model_config(self) -> mobilenet.MobileNetConfig:
        return mobilenet.MobileNetConfig(**self.model_numbers())

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return mobilenet.MobileNet(self.model_config, policy=self.policy, rngs=rngs)

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        return mobilenet_weights.published(tensors, self.model_config), dict(mobilenet_weights.CONFIG)

    def train_flops_per_example(self) -> float:
        return mobilenet.flops_per_image(self.model_config, train=True)


class ShuffleNet(ImageClassification):
    """ShuffleNet v2 (v1 as a variant) on ImageNet (closed), and a small one on Fashion-MNIST (mini)."""

    benchmark = "shufflenet"

    @functools.cached_property
    def model_config(self) -> shufflenet.ShuffleNetConfig:
        return shufflenet.ShuffleNetConfig(**self.model_numbers())

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return shufflenet.ShuffleNet(self.model_config, policy=self.policy, rngs=rngs)

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        config = shufflenet_weights.CONFIG | {"variant": self.config.get("variant", "")}
        return shufflenet_weights.from_torch(tensors, self.model_config), config

    def train_flops_per_example(self) -> float:
        return shufflenet.flops_per_image(self.model_config, train=True)
