"""The mean average precision of the best answer that never looks at an image: the same boxes for all.

    python -m benchmarks.constant_boxes --dataset=composites --out=benchmarks/constant_boxes_composites.json

For every class boxes are chosen one by one out of a grid of places and shapes, each time the one that
finds objects in most images that the ones before it missed (at an intersection over union of .5), until
there are as many as count in COCO's evaluation. They are chosen on the evaluation set itself, which no
honest answer could do, and scored in that order; pycocotools judges. A trained detector has to
be several times better than this.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import input_pipelines
from benchmarks import records
from input_pipelines.image.detection import DetectionDataset

FLAGS = flags.FlagValues()  # Not the global ones: tests import this module.
flags.DEFINE_string(
    "dataset", "composites", "A detection set, by its name in input_pipelines.", flag_values=FLAGS
)
flags.DEFINE_string("data_dir", None, "Holds all data sets; prepared there if missing.", flag_values=FLAGS)
flags.DEFINE_string("out", None, "JSON file to write.", flag_values=FLAGS)

MAX_BOXES = 100  # of a class in an image that COCO's evaluation looks at
_SHARE = 0.5  # intersection over union from which a box finds an object
_STEPS = np.arange(1, 20) / 20  # centres, in parts of the image
_SIDES = np.arange(2, 21) / 20


def grid() -> np.ndarray:
    """Returns the boxes to choose from, [K, 4] float64: left, top, right, bottom in parts of the image."""
    boxes = []
    for x, y, width, height in itertools.product(_STEPS, _STEPS, _SIDES[::2], _SIDES[::2]):
        boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    return np.unique(np.clip(boxes, 0, 1).round(6), axis=0)


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the intersections over unions of boxes [K, 4] and [N, 4], [K, N]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(2)
    areas = [(some[:, 2:] - some[:, :2]).prod(1) for some in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def choose(candidates: np.ndarray, objects: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns at most MAX_BOXES of the candidates [K, 4], greedily by images in which they find something new.

    Args:
        candidates: [K, 4].
        objects: [N, 4], all objects of a class.
        images: [N] int, the image in which each lies.
    """
    finds = overlaps(candidates, objects) >= _SHARE
    _, image_index = np.unique(images, return_inverse=True)
    membership = np.eye(image_index.max() + 1, dtype=np.float32)[image_index]
    chosen: list[int] = []
    while finds.any() and len(chosen) < MAX_BOXES:
        gains = (finds.astype(np.float32) @ membership > 0).sum(1)
        chosen.append(int(gains.argmax()))
        finds = finds & ~finds[chosen[-1]]
    return candidates[chosen]


def constant_answer(truth: Any) -> list[dict[str, Any]]:
    """Returns the detections, as COCO's results have them, that a pycocotools COCO is best met with."""
    candidates, detections = grid(), []
    for category in truth.getCatIds():
        annotations = truth.loadAnns(truth.getAnnIds(catIds=[category], iscrowd=False))
        if not annotations:
            continue
        images = np.array([a["image_id"] for a in annotations])
        sizes = np.array([[truth.imgs[i]["width"], truth.imgs[i]["height"]] for i in images], float)
        corners = np.array([a["bbox"] for a in annotations], float).reshape(-1, 2, 2).cumsum(1)
        objects = (corners / sizes[:, None]).reshape(-1, 4)
        for rank, (left, top, right, bottom) in enumerate(choose(candidates, objects, images)):
            for image in truth.imgs.values():
                width, height = image["width"], image["height"]
                box = [left * width, top * height, (right - left) * width, (bottom - top) * height]
                detections.append(
                    {
                        "image_id": image["id"],
                        "category_id": category,
                        "bbox": box,
                        "score": 1 - rank / MAX_BOXES,
                    }
                )
    return detections


def measure(ground_truth: Path | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the two mean average precisions of the constant answer to a set."""
    from pycocotools import coco, cocoeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(ground_truth)) if isinstance(ground_truth, Path) else coco.COCO()
        if isinstance(ground_truth, Mapping):
            truth.dataset = dict(ground_truth)
            truth.createIndex()
        detections = constant_answer(truth)
        judge = cocoeval.COCOeval(truth, truth.loadRes(detections), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {"map_50": float(judge.stats[1]), "map": float(judge.stats[0]), "detections": len(detections)}


def main(argv: list[str]) -> None:
    FLAGS(argv)
    data_dir = Path(FLAGS.data_dir) if FLAGS.data_dir else input_pipelines.default_data_dir()
    print(f"Ready: {input_pipelines.prepare(FLAGS.dataset, data_dir)}.")
    options = {"image_size": 300, "max_boxes": 200, "crop_attempts": 1}
    dataset = input_pipelines.open_dataset(FLAGS.dataset, data_dir, options)
    if not isinstance(dataset, DetectionDataset):
        sys.exit(f"{FLAGS.dataset} has no boxes.")
    report = {
        "schema_version": 1,
        "command": records.command("constant_boxes"),
        "data": dataset.description,
        "boxes_of_a_class": MAX_BOXES,
        **measure(dataset.ground_truth),
    }
    records.show(report)
    records.write(FLAGS.out, report)


if __name__ == "__main__":
    main(sys.argv)
