"""Random flips and crops for images with boxes, as TensorFlow's Object Detection API trains its SSDs.

Follows tensorflow/models, research/object_detection/core/preprocessor.py (random_horizontal_flip, ssd_random_crop), and
for the crops themselves tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc. An image is flipped,
cropped and resized, in this order; its colours stay.

Boxes are float32 [n, 4]: left, top, right, bottom in parts of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from input_pipelines.image.box_augmentation import Crop, flipped, resized, seen_from, stream

_LEAST_COVERED = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
_KEPT_WHOLE = 0.15  # of all images
_AREAS = (0.1, 1.0)  # of a crop, in parts of the image's
_ASPECTS = (0.5, 2.0)


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
    """As `box_augmentation.train_image`, whose arguments these are."""
    draws = stream(seed, position)
    if next(draws) > 0.5:
        image, boxes = image[:, ::-1], flipped(boxes)
    crop = random_crop(boxes, image.shape[1], image.shape[0], draws, attempts=attempts)
    out[...] = resized(image, size, crop.edges)
    return crop.boxes, labels[crop.kept]


def random_crop(boxes: np.ndarray, width: int, height: int, draws: Iterator[float], *, attempts: int) -> Crop:
    """Chooses a crop that covers enough of some box; a part of all images, and where none is found, stay whole.

    How much is enough is drawn from seven shares. Boxes of which the crop holds less than that share are left out, the
    others cut at its edges. An image without boxes is cropped anywhere.

    Args:
        boxes: [n, 4] float32.
        width, height: of the image, in pixels.
        draws: random numbers in [0, 1) without end.
        attempts: to find a crop.
    """
    least = _LEAST_COVERED[int(next(draws) * len(_LEAST_COVERED))]
    edges = (0.0, 0.0, 1.0, 1.0)
    if next(draws) <= _KEPT_WHOLE:
        return Crop(edges, boxes, np.arange(len(boxes)))
    wanted = boxes if len(boxes) else np.array([edges], np.float32)
    for _ in range(attempts):
        drawn = _window(width, height, draws)
        if drawn and (covered(wanted, drawn) >= least).any():
            edges = drawn
            break
    share = covered(boxes, edges)
    kept = np.flatnonzero((share > 0) & (share >= least))
    return Crop(edges, seen_from(boxes[kept], np.array(edges)), kept)


def _window(width: int, height: int, draws: Iterator[float]) -> tuple[float, float, float, float] | None:
    """Draws a window of whole pixels, as left, top, right, bottom in parts of the image; None where none fits."""
    aspect = _ASPECTS[0] + next(draws) * (_ASPECTS[1] - _ASPECTS[0])
    least, most = (share * width * height for share in _AREAS)
    low, high = (round((area / aspect) ** 0.5) for area in (least, most))
    if round(high * aspect) > width:
        high = int((width + 0.5 - 1e-7) / aspect)
    high = min(high, height)
    rows = min(low, high)
    rows += int(next(draws) * (high - rows + 1))
    # Rounded sides may make an area that is not allowed; a row more or less mends it.
    rows += (round(rows * aspect) * rows < least) - (round(rows * aspect) * rows > most)
    columns = round(rows * aspect)
    left, top = (int(next(draws) * (side - part + 1)) for side, part in ((width, columns), (height, rows)))
    if not (least <= columns * rows <= most and 0 < columns <= width and 0 < rows <= height):
        return None
    return left / width, top / height, (left + columns) / width, (top + rows) / height


def covered(boxes: np.ndarray, edges: tuple[float, float, float, float]) -> np.ndarray:
    """The share of each box [n, 4] that lies within the edges, [n]; -1 of one without area."""
    # In one precision throughout, so that a box that lies inside is covered whole.
    boxes, corners = boxes.astype(np.float64), np.array(edges)
    sides = np.minimum(boxes[:, 2:], corners[2:]) - np.maximum(boxes[:, :2], corners[:2])
    shared, whole = np.maximum(sides, 0).prod(1), (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return np.where(whole > 0, shared / np.where(whole > 0, whole, 1), -1)
