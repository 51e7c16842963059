"""Masks as COCO has them: put into their image, and written as runs of pixels.

Source of every choice: mlcommons/training, retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark/modeling/
roi_heads/mask_head/inference.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from input_pipelines.image import outlines, preprocessing

_HALF = 127.5  # of 255


def run_lengths(mask: np.ndarray, corners: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """The pixels of an image that a detected object covers, as pycocotools writes them.

    The mask gets a border of nothing, is enlarged to its box (bilinear), whose corners are cut to whole pixels, and
    covers what is above one half.

    Args:
        mask: [w, w] uint8, of how much of each cell the network is sure, in 255ths.
        corners: [4] left, top, right, bottom in pixels of the image, the last one beyond the box.
        height, width: of the image.

    Returns:
        "size" and "counts", as `pycocotools.mask.encode` has them, the latter text.
    """
    covered = np.zeros((height, width), np.uint8, order="F")
    paste(covered, mask, np.asarray(corners, np.float32))
    return outlines.run_lengths(covered)


def paste(covered: np.ndarray, mask: np.ndarray, corners: np.ndarray) -> None:
    """Marks what a mask covers in an image [H, W], in place; arguments as `run_lengths` has them."""
    bordered = np.pad(mask, 1).astype(np.float32)
    first, last = corners[:2], corners[2:] - 1
    middle, half = (first + last) / 2, (last - first) / 2 * (len(bordered) / len(mask))
    left, top = (middle - half).astype(np.int32).tolist()  # towards zero, as the reference's cast
    right, bottom = (middle + half).astype(np.int32).tolist()
    sides = max(right - left + 1, 1), max(bottom - top + 1, 1)
    cv2 = preprocessing.import_cv2()
    enlarged = cv2.resize(bordered, sides, interpolation=cv2.INTER_LINEAR) > _HALF
    height, width = covered.shape
    x, y = max(left, 0), max(top, 0)
    part = enlarged[y - top : max(height - top, 0), x - left : max(width - left, 0)]
    covered[y : y + part.shape[0], x : x + part.shape[1]] = part
