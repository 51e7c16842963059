"""COCO's mean average precision of boxes and masks, by the official package (pycocotools), which is what MLPerf asks for."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError

FIGURES = ("mAP", "mAP_50", "mAP_75", "mAP_small", "mAP_medium", "mAP_large")
"""Averages over IoU .5 to .95, at .5, at .75, and over objects of three sizes, as COCO numbers them."""


@functools.cache
def _package() -> tuple[ModuleType, ModuleType]:
    """pycocotools' two modules, which print what they do: here they do it beside training, and silently."""
    from pycocotools import coco, cocoeval

    def silent(*_: object, **__: object) -> None:
        pass

    coco.print = cocoeval.print = silent
    return coco, cocoeval


class GroundTruth:
    """The true boxes of an evaluation set, and its masks where it has outlines.

    Args:
        source: a COCO file of instances, or its content.

    Attributes:
        index: the package's, `pycocotools.coco.COCO`.

    Raises:
        UserError: the file is damaged.
    """

    index: Any

    def __init__(self, source: Path | Mapping[str, Any]) -> None:
        if not isinstance(source, str | Path):
            self.index = indexed(source)
            return
        try:
            content = json.loads(Path(source).read_bytes())
            for annotation in content["annotations"]:
                self.require(annotation)
            self.index = indexed(content)
        except (ArithmeticError, LookupError, OSError, TypeError, ValueError, RecursionError) as error:
            reason = " ".join(str(error)[:200].split())
            raise UserError(f"{source} is no COCO file of true boxes ({reason}); prepare it again.") from None

    def require(self, annotation: Mapping[str, Any]) -> None:
        """Raises where an object lacks its numbers, or has some that no float holds: that would end the judging much later."""
        _, _, _, _ = map(float, annotation["bbox"])

    def boxes(self, image_id: int) -> list[tuple[list[float], int]]:
        """The objects of an image, crowds not among them: (left, top, width, height) in pixels, category."""
        return [(a["bbox"], a["category_id"]) for a in self.annotations(image_id)]

    def annotations(self, image_id: int) -> list[dict[str, Any]]:
        """The objects of an image as the file has them, crowds not among them."""
        return [a for a in self.index.imgToAnns.get(image_id, []) if not a.get("iscrowd", 0)]

    @property
    def content(self) -> dict[str, Any]:
        """What the file holds."""
        return dict(self.index.dataset)

    def name(self, category_id: int) -> str:
        """What a category is called."""
        return str(self.index.cats.get(category_id, {}).get("name", category_id))

    def judge(
        self,
        detections: np.ndarray,
        image_ids: Collection[int] | None = None,
        masks: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, float]:
        """Scores detections, by their boxes or by their masks.

        Args:
            detections: [N, 7] image id, left, top, width, height in pixels of the original, score,
                category id. At most 100 of an image count, the best.
            image_ids: the images to judge by; None for all of them.
            masks: the pixels of each, as `mlperf_jax.metrics.masks` writes them; with them masks are judged.

        Returns:
            `FIGURES`, each of 1; -1 for a size that no object has.
        """
        found = indexed(self.content | {"annotations": _annotations(detections, masks)})
        stats = evaluated(self.index, found, "bbox" if masks is None else "segm", image_ids)
        return dict(zip(FIGURES, stats, strict=False))


def evaluated(true: Any, found: Any, kind: str, image_ids: Collection[int] | None) -> list[float]:
    """What `COCOeval.summarize` prints of a kind ("bbox", "segm", "keypoints"), by some images or all."""
    _, cocoeval = _package()
    judge = cocoeval.COCOeval(true, found, kind)
    if image_ids is not None:
        judge.params.imgIds = sorted(image_ids)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return list(map(float, judge.stats))


def indexed(content: Mapping[str, Any]) -> Any:
    """The package's own index (`pycocotools.coco.COCO`) of what a COCO file holds."""
    coco, _ = _package()
    index = coco.COCO()
    index.dataset = dict(content)
    index.createIndex()
    return index


def _annotations(detections: np.ndarray, masks: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """As `COCO.loadRes` makes them of boxes, or of masks."""
    boxes = [
        {
            "id": i,
            "image_id": int(image),
            "category_id": int(category),
            "bbox": [left, top, width, height],
            "area": width * height,
            "score": score,
            "iscrowd": 0,
        }
        for i, (image, left, top, width, height, score, category) in enumerate(detections.tolist(), 1)
    ]
    if masks is None:
        return boxes
    from pycocotools import mask as pycocotools_mask

    return [
        box | {"segmentation": dict(mask), "area": float(pycocotools_mask.area(dict(mask)))}
        for box, mask in zip(boxes, masks, strict=True)
    ]
