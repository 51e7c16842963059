"""The 17 keypoints that COCO has of a person (Lin et al., arXiv:1405.0312, and cocodataset.org's keypoint task).

Of an object they are [17, 3]: x, y, and whether it is labelled: 0 not, 1 hidden, 2 visible.
"""

from __future__ import annotations

import numpy as np

NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
COUNT = len(NAMES)
HIDDEN, VISIBLE = 1, 2

_SWAPS = {"left": "right", "right": "left"}
MIRRORED = tuple(NAMES.index("_".join(_SWAPS.get(part, part) for part in name.split("_"))) for name in NAMES)
"""Which keypoint each becomes where left and right are swapped."""

_LINES = (
    "left_ankle left_knee",
    "left_knee left_hip",
    "right_ankle right_knee",
    "right_knee right_hip",
    "left_hip right_hip",
    "left_shoulder left_hip",
    "right_shoulder right_hip",
    "left_shoulder right_shoulder",
    "left_shoulder left_elbow",
    "right_shoulder right_elbow",
    "left_elbow left_wrist",
    "right_elbow right_wrist",
    "left_eye right_eye",
    "nose left_eye",
    "nose right_eye",
    "left_eye left_ear",
    "right_eye right_ear",
    "left_ear left_shoulder",
    "right_ear right_shoulder",
)
SKELETON = tuple((NAMES.index(first), NAMES.index(last)) for first, last in map(str.split, _LINES))
"""Pairs between which people draw a line, as COCO's annotations have them."""


def mirrored(points: np.ndarray) -> np.ndarray:
    """Keypoints [..., 17, 3], x and y in parts of the image, as they are where its left and right are swapped.

    What is not labelled stays 0.
    """
    swapped = points[..., MIRRORED, :].copy()
    swapped[..., 0] = np.where(swapped[..., 2] > 0, 1 - swapped[..., 0], 0)
    return swapped
