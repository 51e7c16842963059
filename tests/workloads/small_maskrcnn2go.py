"""The real Mask R-CNN2Go workload with one block, on images of plain ellipses; `--workload=tests.workloads.small_maskrcnn2go:SmallPoses`."""

import functools

import numpy as np
from ml_collections import ConfigDict

from configs.maskrcnn2go import get_config
from input_pipelines.image import keypoints
from input_pipelines.image.keypoint_detection import KeypointDetection, with_keypoints
from mlperf_jax.workloads.pose_estimation import PoseEstimation
from tests.workloads.small_maskrcnn import BOXES, SMALL_REGIONS, Ellipses


class People(Ellipses):
    """The ellipses as people: keypoints lie on a smaller ellipse, and are hidden where another one is before them."""

    def _points(self, masks):
        """[n, 17, 3] in pixels."""
        angles = 2 * np.pi * np.arange(keypoints.COUNT)[:, None] / keypoints.COUNT
        around = 0.4 * np.concatenate([np.cos(angles), np.sin(angles)], 1)
        points = np.zeros((len(masks), keypoints.COUNT, 3))
        for row, mask, box in zip(points, masks, self._boxes(masks), strict=True):
            row[:, :2] = (box[:2] + box[2:]) / 2 + around * (box[2:] - box[:2])
            x, y = row[:, :2].astype(int).T
            row[:, 2] = 1 + mask[y, x]
        return points

    def masked_objects(self, index):
        boxes, labels, masks = super().masked_objects(index)
        return boxes, np.ones_like(labels), masks

    def keypoints(self, index):
        image, _, masks = self._drawn["train"][index]
        return (self._points(masks) / (*image.shape[1::-1], 1)).astype(np.float32)

    def truth(self):
        content = super().truth()
        content["categories"] = [{"id": 1, "name": "person"}]
        content["annotations"] = [a | {"category_id": 1} for a in content["annotations"]]
        return with_keypoints(
            content, (points for _, _, masks in self._drawn["eval"] for points in self._points(masks))
        )


NUMBERS = {
    **SMALL_REGIONS,
    "model.stem": 4,
    "model.stages": ((2, 8, 1, 2),),
    "model.channels": 4,
    "model.convs": 1,
    "anchor_sizes": (8, 14),
    "detection.detections": 6,
    "ema_decay": 0.0,
}
"""Of a config, either preset's: a model of one block on images of 32 pixels."""


class SmallPoses(PoseEstimation):
    """Its optimizer is SGD, as the closed preset's."""

    @staticmethod
    def get_config(preset):
        config = ConfigDict(get_config("mini").to_dict())
        config.optimizer = get_config("closed").optimizer
        config.update_from_flattened_dict(NUMBERS)
        config.update_from_flattened_dict(
            {
                "data.max_boxes": BOXES,
                "optimizer.base_lr": 0.02,
                "schedule.warmup_steps": 4,
                "schedule.steps": 40,
                "data.num_train": 80,
                "data.num_eval": 12,
                "batch_size": 16,
                "max_epochs": 3,
                "target": 2.0,
            }
        )
        return config

    @functools.cached_property
    def dataset(self):
        numbers = self.config.data
        source = People(numbers.num_train, numbers.num_eval, numbers.longest)
        return KeypointDetection(
            source,
            category_ids=(1,),
            ground_truth=source.truth(),
            options=numbers.to_dict(),
            fake=True,
            description="ellipses",
        )
