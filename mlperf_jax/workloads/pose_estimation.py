"""People in a picture: boxes, masks and 17 keypoints of each; quality is COCO's average precision of keypoints.

All that is of boxes and masks is `instance_segmentation`'s, and so is what stays where. A second RoI align is here what
the mask and the keypoint head share. Where keypoints are is decided on the devices, so that of a map of 56 x 56 for each
two numbers leave them.

**An answer** is so many detections, the best first, each of 164 + w w bytes: those of `mlperf_jax.detection.mask_answers`, then
the keypoints [17, 2], little-endian float32, x and y in parts of the image.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipelines.image import keypoints as coco
from input_pipelines.image.keypoint_detection import KeypointDetection
from mlperf_jax.detection.keypoints import enlarged, find_keypoints, keypoint_loss, keypoint_targets
from mlperf_jax.detection.regions import Regions, mask_loss, mask_targets, of_class, shares_of_255
from mlperf_jax.detection.suppression import Detections
from mlperf_jax.goals import Goal
from mlperf_jax.metrics.keypoint_precision import KeypointTruth
from mlperf_jax.training import schedules
from mlperf_jax.weights import mobilenet_v2 as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import Batch, Evaluation, State
from mlperf_jax.workloads.instance_segmentation import InstanceSegmentation, Kept
from models.maskrcnn2go import MaskRCNN2Go, MaskRCNN2GoConfig, flops_per_image


class PoseEstimation(InstanceSegmentation[MaskRCNN2Go, KeypointDetection]):
    """Mask R-CNN on a mobile trunk, on COCO's keypoints (closed), and a small one of its family on drawn figures (mini)."""

    benchmark = "maskrcnn2go"
    published_backbone = "torchvision's mobilenet_v2-b0353104.pth"
    row_bytes_beyond_mask = 4 * 2 * coco.COUNT

    @functools.cached_property
    def model_config(self) -> MaskRCNN2GoConfig:
        return MaskRCNN2GoConfig(**self.model_numbers())

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return MaskRCNN2Go(self.model_config, policy=self.policy, rngs=rngs)

    @property
    def metric(self) -> str:
        return {"OKS_AP": "keypoint AP", "OKS_AP_50": "keypoint AP at OKS .5"}[self.config.figure]

    @property
    def goals(self) -> tuple[Goal, ...]:
        return (Goal("quality", self.config.target, metric=self.metric),)

    @functools.cached_property
    def ground_truth(self) -> KeypointTruth:
        return KeypointTruth(self.dataset.ground_truth)

    # Training.

    def losses_in_boxes(
        self,
        model: MaskRCNN2Go,
        levels: Sequence[jax.Array],
        positive: Regions,
        boxes: jax.Array,
        batch: Batch,
    ) -> list[jax.Array]:
        held = self.held(levels, positive.corners, self.model_config.mask_window)
        masks, maps = model.masks(held), enlarged(model.keypoints(held))
        targets = mask_targets(batch["masks"], positive, boxes, masks.shape[2])
        points = jnp.concatenate(
            [
                batch["keypoints"][..., :2] * batch["extent"][:, None, None, ::-1],
                batch["keypoints"][..., 2:],
            ],
            axis=-1,
        )
        return [
            mask_loss(masks, targets, positive.labels),
            keypoint_loss(maps, *keypoint_targets(points, positive, maps.shape[2])),
        ]

    def schedule(self) -> optax.Schedule:
        """Learning rate by step: half a cosine, under a linear warm-up."""
        config = self.config.schedule
        return schedules.cosine_with_warmup(
            self.config.optimizer.base_lr, config.warmup_steps, config.steps, config.warmup_factor
        )

    # Evaluation.

    def found_in_boxes(
        self, model: MaskRCNN2Go, levels: Sequence[jax.Array], found: Detections, extent: jax.Array
    ) -> tuple[jax.Array, ...]:
        held = self.held(levels, found.corners, self.model_config.mask_window)
        points = find_keypoints(enlarged(model.keypoints(held)), found.corners)
        points = points / extent[:, None, None, ::-1].astype(points.dtype)
        places = jax.lax.bitcast_convert_type(points.astype(jnp.float32), jnp.uint8)
        masks = shares_of_255(of_class(model.masks(held), found.labels))
        return masks, places.reshape(*places.shape[:2], -1)

    def judged(self, parts: Sequence[Kept], image_ids: Sequence[int] | None = None) -> Evaluation:
        """Also: of keypoints, of which one is the quality."""
        detections = np.concatenate([part.detections for part in parts])
        points = np.concatenate([_points(rows) for part in parts for rows in part.beyond])
        sides = np.array([self.ground_truth.size(int(image)) for image in detections[:, 0]]).reshape(-1, 2)
        found = self.ground_truth.judge_keypoints(detections, points * sides[:, None, ::-1], image_ids)
        return super().judged(parts, image_ids) | found | {"quality": found[self.config.figure]}

    def lines(self, beyond: np.ndarray) -> list[np.ndarray]:
        return list(_points(beyond)[:, np.array(coco.SKELETON)])

    # Weights, and facts for logs.

    def import_backbone(self, tensors: Mapping[str, Tensor]) -> State:
        return weights.trunk(tensors, self.model_config)

    def train_flops_per_example(self) -> float:
        """Of an image of the largest padded shape."""
        numbers = self.config.regions
        positive = int(numbers.count * numbers.share)
        return flops_per_image(
            self.model_config, self.dataset.shapes[-1], numbers.count, positive, train=True
        )

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule, data = self.config.optimizer, self.config.schedule, self.config.data
        return {
            "opt_name": {"torch_sgd": "sgd"}.get(optimizer.name, optimizer.name),
            "opt_base_learning_rate": optimizer.base_lr,
            **({"opt_momentum": optimizer.momentum} if "momentum" in optimizer else {}),
            "opt_weight_decay": optimizer.weight_decay,
            "opt_learning_rate_warmup_steps": schedule.warmup_steps,
            "opt_learning_rate_warmup_factor": schedule.warmup_factor,
            "opt_learning_rate_training_steps": schedule.steps,
            "num_image_candidates": self.config.proposals.train.count,
            "min_image_size": data.shorter,
            "max_image_size": data.longest,
            "model_bn_span": self.logged_span(),
            "backbone_weights": self.backbone_file.name if self.backbone_file else "random",
        }


def _points(rows: np.ndarray) -> np.ndarray:
    """[n, 17, 2] float64 of what follows masks, [n, 136] uint8."""
    return np.ascontiguousarray(rows).view("<f4").reshape(-1, coco.COUNT, 2).astype(np.float64)
