"""Random flips and crops for images with boxes, as TensorFlow's Object Detection API trains its SSDs.

Follows tensorflow/models, research/object_detection/core/preprocessor.py (random_horizontal_flip, ssd_random_crop), and
for the crops themselves tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc. An image is flipped,
cropped and resized, in this order; its colours stay.

Boxes are float32 [n, 4]: left, top, right, bottom in parts of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from input_pipelines.image import preprocessing
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
        image, boxes = preprocessing.mirrored(image), flipped(boxes)
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
    drawn, fits = _windows(width, height, np.fromiter(draws, float, 4 * attempts).reshape(attempts, 4))
    counts = fits & (covered(wanted, drawn) >= least).any(1)
    if counts.any():
        edges = tuple(drawn[counts.argmax()].tolist())
    (share,) = covered(boxes, np.array([edges]))
    kept = np.flatnonzero((share > 0) & (share >= least))
    return Crop(edges, seen_from(boxes[kept], np.array(edges)), kept)


def _windows(width: int, height: int, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows of whole pixels, [m, 4] as left, top, right, bottom in parts of the image; and whether each fits, [m].

    Args:
        width, height: of the image.
        draws: [m, 4] in [0, 1): of the aspect, the height, and the place across and down.
    """
    aspects = _ASPECTS[0] + draws[:, 0] * (_ASPECTS[1] - _ASPECTS[0])
    least, most = (share * width * height for share in _AREAS)
    low, high = (np.rint(np.sqrt(area / aspects)) for area in (least, most))
    too_wide = np.rint(high * aspects) > width
    high = np.where(too_wide, np.floor((width + 0.5 - 1e-7) / aspects), high)
    high = np.minimum(high, height)
    rows = np.minimum(low, high)
    rows += np.floor(draws[:, 1] * (high - rows + 1))
    # Rounded sides may make an area that is not allowed; a row more or less mends it.
    areas = rows * np.rint(rows * aspects)
    rows += np.where(areas < least, 1, np.where(areas > most, -1, 0))
    columns = np.rint(rows * aspects)
    left, top = np.floor(draws[:, 2] * (width - columns + 1)), np.floor(draws[:, 3] * (height - rows + 1))
    areas = rows * columns
    fits = (
        (least <= areas)
        & (areas <= most)
        & (columns > 0)
        & (columns <= width)
        & (rows > 0)
        & (rows <= height)
    )
    return np.stack([left, top, left + columns, top + rows], 1) / [width, height, width, height], fits


def covered(boxes: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """The share of each box [n, 4] that lies within each window [m, 4], [m, n]; -1 of a box without area."""
    # In one precision throughout, so that a box that lies inside is covered whole.
    boxes, windows = boxes.astype(np.float64), windows[:, None]
    sides = np.minimum(boxes[:, 2:], windows[..., 2:]) - np.maximum(boxes[:, :2], windows[..., :2])
    shared, whole = np.maximum(sides, 0).prod(2), (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return np.where(whole > 0, shared / np.where(whole > 0, whole, 1), -1)
