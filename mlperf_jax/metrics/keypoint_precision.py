"""COCO's average precision of keypoints, by the official package (pycocotools): their similarity in place of IoU.

The similarity of a person's keypoints to the true ones (OKS) is the mean over labelled ones of exp(-d^2 / (2 s^2 k^2)): d
their distance, s^2 the object's area, k how differently people place this keypoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipelines.image import keypoints
from mlperf_jax.metrics.mean_average_precision import GroundTruth, evaluated, indexed

KEYPOINT_FIGURES = ("OKS_AP", "OKS_AP_50", "OKS_AP_75", "OKS_AP_medium", "OKS_AP_large")
"""Averages over OKS .5 to .95, at .5, at .75, and over objects of two sizes, as COCO numbers them."""


class KeypointTruth(GroundTruth):
    """The true keypoints of an evaluation set, beside its boxes and masks; see `GroundTruth`."""

    def require(self, annotation: Mapping[str, Any]) -> None:
        super().require(annotation)
        flat = list(map(float, annotation["keypoints"]))
        if len(flat) != 3 * keypoints.COUNT or type(annotation["num_keypoints"]) is not int:
            raise ValueError("an object without its keypoints")

    def size(self, image_id: int) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        image = self.index.imgs[image_id]
        return image["height"], image["width"]

    def keypoints(self, image_id: int) -> list[np.ndarray]:
        """Of the objects of an image, crowds not among them, [17, 3] each: x and y in pixels, and their flags."""
        found = self.annotations(image_id)
        return [
            np.array(a["keypoints"], float).reshape(keypoints.COUNT, 3)
            for a in found
            if a.get("num_keypoints")
        ]

    def judge_keypoints(
        self, detections: np.ndarray, points: np.ndarray, image_ids: Collection[int] | None = None
    ) -> dict[str, float]:
        """Scores detections by their keypoints.

        Args:
            detections: [N, 7] as `GroundTruth.judge` takes them. At most 20 of an image count, the best.
            points: [N, 17, 2] x and y in pixels of the original.
            image_ids: the images to judge by; None for all of them.

        Returns:
            `KEYPOINT_FIGURES`, each of 1; -1 for a size that no object has.
        """
        found = indexed(self.content | {"annotations": _annotations(detections, points)})
        stats = evaluated(self.index, found, "keypoints", image_ids)
        return dict(zip(KEYPOINT_FIGURES, stats, strict=False))


def _annotations(detections: np.ndarray, points: np.ndarray) -> Sequence[dict[str, Any]]:
    """As `COCO.loadRes` makes them of keypoints: their extent stands for the box."""
    low, sides = points.min(1), points.max(1) - points.min(1)
    placed = np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=-1).reshape(
        len(points), 3 * points.shape[1]
    )
    rows = zip(detections.tolist(), placed.tolist(), low.tolist(), sides.tolist(), strict=True)
    return [
        {
            "id": i,
            "image_id": int(image),
            "category_id": int(category),
            "keypoints": flat,
            "bbox": [*first, *extent],
            "area": extent[0] * extent[1],
            "score": score,
            "iscrowd": 0,
        }
        for i, ((image, _, _, _, _, score, category), flat, first, extent) in enumerate(rows, 1)
    ]
