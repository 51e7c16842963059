"""SSD-MobileNet: a detector whose classes have scores of their own, and whose examples are mined."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.greedy import GreedySelection, pick
from mlperf_jax.detection.grid_anchors import GridAnchorConfig, make_grid_anchors
from mlperf_jax.detection.mined_sigmoid import mined_loss
from mlperf_jax.detection.suppression import Detections
from mlperf_jax.errors import UserError
from mlperf_jax.supervised import Loss
from mlperf_jax.training import schedules
from mlperf_jax.weights import ssd_mobilenet as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import State
from mlperf_jax.workloads.object_detection import ObjectDetection
from models import ssd_mobilenet


class SSDMobileNet(ObjectDetection):
    """SSD-MobileNet v1 on COCO (closed), and a small one of its family on composites (mini).

    A class of the model is an id of the ground truth's categories: of COCO's 90, ten have no objects.
    """

    benchmark = "ssd-mobilenet"
    published_backbone = "TensorFlow's mobilenet_v1_1.0_224.ckpt (its .index and .data file)"

    @functools.cached_property
    def model_config(self) -> ssd_mobilenet.SSDMobileNetConfig:
        return ssd_mobilenet.SSDMobileNetConfig(**self.model_numbers())

    @functools.cached_property
    def anchors(self) -> np.ndarray:
        """[A, 4] float64, as `make_grid_anchors` has them."""
        config = GridAnchorConfig(**self.config.anchors.to_dict())
        return make_grid_anchors(config, self.model_config.feature_sizes)

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return ssd_mobilenet.SSDMobileNet(self.model_config, policy=self.policy, rngs=rngs)

    def check_data(self) -> None:
        super().check_data()
        classes = max(self.dataset.category_ids) + 1
        if classes > self.config.model.num_classes:
            raise UserError(
                f"The data has categories up to {classes - 1} and the model {self.config.model.num_classes} classes "
                f"with the background; use --config.model.num_classes={classes}."
            )

    def box_loss(self, codes: jax.Array, logits: jax.Array, boxes: jax.Array, labels: jax.Array) -> Loss:
        classes = jnp.asarray(self.dataset.category_ids, labels.dtype)[labels]
        mining_iou = self.config.mining_iou
        return mined_loss(codes, logits, boxes, classes, self.anchors, mining_iou=mining_iou)

    def detect(self, codes: jax.Array, logits: jax.Array) -> Detections:
        wide = jnp.promote_types(logits.dtype, jnp.float32)
        corners = box.decode(codes.astype(wide), jnp.asarray(self.anchors, wide))
        scores = jax.nn.sigmoid(logits.astype(wide)[..., np.array(self.dataset.category_ids[1:])])
        return pick(corners, scores, GreedySelection(**self.config.detection.to_dict()))

    # Training, as TensorFlow's Object Detection API trained the published one.

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        config = self.config.schedule
        return schedules.step_decay_with_warmup(
            self.config.optimizer.base_lr,
            config.warmup_steps,
            config.boundary_steps,
            decay_factor=config.decay_factor,
        )

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule = self.config.optimizer, self.config.schedule
        return {
            "opt_name": optimizer.name,
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_momentum": optimizer.momentum,
            "opt_weight_decay": optimizer.weight_decay,
            "opt_epsilon": optimizer.epsilon,
            "opt_learning_rate_warmup_steps": schedule.warmup_steps,
            "opt_learning_rate_decay_boundary_steps": list(schedule.boundary_steps),
            "opt_learning_rate_decay_factor": schedule.decay_factor,
            "model_bn_span": self.logged_span(),
            "backbone_weights": self.backbone_file.name if self.backbone_file else "random",
        }

    def import_backbone(self, tensors: Mapping[str, Tensor]) -> State:
        return weights.backbone(tensors, self.model_config)

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        return weights.from_published(tensors, self.model_config), dict(weights.CONFIG)

    def train_flops_per_example(self) -> float:
        return ssd_mobilenet.flops_per_image(self.model_config, train=True)
