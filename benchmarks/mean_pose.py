"""The keypoint AP of the mean pose, put into every true box: what needs no look at a figure, but at where it is.

    python -m benchmarks.mean_pose --out=benchmarks/mean_pose_figures.json

The mean place of each keypoint in its box, over all labelled ones of the train images, is put into the true boxes of the eval
images. The ranges of joints (input_pipelines/image/figures.py) were set so that its AP at OKS .5 is between .05 and .20: poses
that differ little would be found by their boxes, and ones that differ without bounds would leave a trained model nothing to
be compared with. pycocotools judges.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import input_pipelines
from benchmarks import records
from input_pipelines.image import figures
from mlperf_jax.metrics.keypoint_precision import KeypointTruth

FLAGS = flags.FlagValues()  # Not the global ones: tests import this module.
flags.DEFINE_string("data_dir", None, "Holds all data sets; prepared there if missing.", flag_values=FLAGS)
flags.DEFINE_string("out", None, "JSON file to write.", flag_values=FLAGS)


def mean_pose(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where keypoints are in their boxes, [17, 2] in parts of these.

    Args:
        boxes: [N, 4] left, top, right, bottom.
        points: [N, 17, 3] in the same unit; those with flag 0 do not count.
    """
    first, sides = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    labelled = points[..., 2:] > 0
    return (labelled * (points[..., :2] - first) / sides).sum(0) / labelled.sum(0)


def judged(truth: KeypointTruth, pose: np.ndarray, image_ids: np.ndarray) -> dict[str, float]:
    """The figures of a pose [17, 2] in all true boxes, each as sure as the other."""
    detections, points = [], []
    for image in image_ids.tolist():
        for (left, top, width, height), category in truth.boxes(image):
            detections.append((image, left, top, width, height, 1.0, category))
            points.append(np.array([left, top]) + pose * [width, height])
    return truth.judge_keypoints(np.array(detections), np.array(points))


def main(argv: list[str]) -> None:
    FLAGS(argv)
    data_dir = Path(FLAGS.data_dir) if FLAGS.data_dir else input_pipelines.default_data_dir()
    print(f"Ready: {input_pipelines.prepare('figures', data_dir)}.")
    source = figures.Figures(data_dir / "figures")
    train = range(source.counts["train"])
    boxes, points = (
        np.concatenate([of(index) for index in train]).astype(float)
        for of in (lambda index: source.objects(index)[0], source.keypoints)
    )
    truth = KeypointTruth(data_dir / "figures" / "eval.json")
    report: dict[str, Any] = {
        "schema_version": 1,
        "command": records.command("mean_pose"),
        "figures": len(boxes),
        **judged(truth, mean_pose(boxes, points), source.image_ids),
    }
    records.show(report)
    records.write(FLAGS.out, report)


if __name__ == "__main__":
    main(sys.argv)
