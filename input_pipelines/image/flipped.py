"""Images with boxes as MLPerf's RetinaNet is trained on them: whole, mirrored or not, and stretched to a square.

Source: mlcommons/training, retired_benchmarks/retinanet/ssd/{presets,transforms,model/transform}.py.
"""

from __future__ import annotations

import numpy as np

from input_pipelines.image import box_augmentation, preprocessing


def train_image(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    size: int,
    seed: int,
    position: int,
    attempts: int,
    out: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Writes an image into `out`, one in two mirrored, and returns its boxes [n, 4] and labels [n].

    The arguments are those of `box_augmentation.train_image`; nothing is cropped, so that `attempts` has no meaning.
    """
    view = stretched(image, size)
    if next(box_augmentation.stream(seed, position)) < 0.5:
        view, boxes = preprocessing.mirrored(view), box_augmentation.flipped(boxes)
    out[...] = view
    return boxes, labels


def stretched(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes an image [H, W, 3] uint8 to [size, size, 3], bilinear without antialiasing.

    As `torch.nn.functional.interpolate` does it by default, to which the published weights are used.
    """
    cv2 = preprocessing.import_cv2()
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
