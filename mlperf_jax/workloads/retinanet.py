"""RetinaNet: an object detector that looks at every place and size of a picture, on a feature pyramid."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from mlperf_jax.detection.focal import retinanet_loss
from mlperf_jax.detection.levels import detect_on_levels, level_anchors
from mlperf_jax.detection.suppression import Detections, Selection
from mlperf_jax.supervised import Loss, mean_of
from mlperf_jax.training import schedules
from mlperf_jax.weights import retinanet as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import State
from mlperf_jax.workloads.object_detection import ObjectDetection
from models.retinanet import RetinaNet, RetinaNetConfig, flops_per_image


class RetinaNetDetection(ObjectDetection):
    """RetinaNet-ResNeXt50 on OpenImages (closed), and a small one of its family on composites (mini)."""

    benchmark = "retinanet"
    published_backbone = "torchvision's resnext50_32x4d-7cdf4587.pth"
    background = False

    @functools.cached_property
    def model_config(self) -> RetinaNetConfig:
        return RetinaNetConfig(**self.model_numbers())

    @functools.cached_property
    def anchors(self) -> list[np.ndarray]:
        """[A, 4] of every level, as `level_anchors` has them."""
        model = self.model_config
        return level_anchors(model.image_size, model.feature_sizes, self.config.anchor_sizes)

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return RetinaNet(self.model_config, policy=self.policy, rngs=rngs)

    def is_frozen(self, path: tuple[str | int, ...]) -> bool:
        return self.model_config.is_fixed(path)

    def box_loss(
        self, codes: Sequence[jax.Array], logits: Sequence[jax.Array], boxes: jax.Array, labels: jax.Array
    ) -> Loss:
        corners = boxes * self.model_config.image_size
        return mean_of(retinanet_loss(codes, logits, corners, labels, self.anchors))

    def detect(self, codes: Sequence[jax.Array], logits: Sequence[jax.Array]) -> Detections:
        selection = Selection(**self.config.detection.to_dict())
        return detect_on_levels(codes, logits, self.anchors, self.model_config.image_size, selection)

    def schedule(self) -> optax.Schedule:
        config = self.config.schedule
        return schedules.linear_warmup(
            self.config.optimizer.base_lr,
            config.warmup_epochs * self.num_train / self.batch_size,
            config.warmup_factor,
            boundaries=[self._step_after(epoch) for epoch in config.decay_epochs],
            decay_factor=config.decay_factor,
        )

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule = self.config.optimizer, self.config.schedule
        return {
            "opt_name": "adam",
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_weight_decay": optimizer.weight_decay,
            "opt_learning_rate_warmup_epochs": schedule.warmup_epochs,
            "opt_learning_rate_warmup_factor": schedule.warmup_factor,
            "backbone_weights": self.backbone_file.name if self.backbone_file else "random",
        }

    def import_backbone(self, tensors: Mapping[str, Tensor]) -> State:
        return weights.backbone(tensors, self.model_config)

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        return self.parted(weights.from_reference(tensors, self.model_config)), weights.CONFIG

    def train_flops_per_example(self) -> float:
        return flops_per_image(self.model_config, train=True)
