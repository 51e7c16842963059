"""Random crops, flips and colours for images with boxes, as MLPerf's SSD trains.

Follows the reference of MLPerf Training's SSD (mlcommons/training, retired_benchmarks/ssd-v1/ssd/utils.py:
SSDCropping, RandomHorizontalFlip and SSDTransformer), after Liu et al., "SSD: Single Shot MultiBox
Detector", arXiv:1512.02325, section 2.2, and Howard, arXiv:1312.5402, for the colours. An image is
cropped, flipped, resized with antialiasing, and its colours jittered, in this order.

Boxes are float32 [n, 4]: left, top, right, bottom in parts of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from input_pipelines import images

_LEAST_OVERLAPS = (None, 0.1, 0.3, 0.5, 0.7, 0.9, -np.inf)  # None leaves the image whole
_SIDES = (0.3, 1.0)  # of a crop, in parts of the image's
_ASPECTS = (0.5, 2.0)
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.125, 0.5, 0.5, 0.05
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, as Pillow has it
_DRAWN_AT_ONCE = 64


class Crop(NamedTuple):
    """A part of an image and what is left in it.

    Attributes:
        edges: left, top, right, bottom in parts of the image.
        boxes: [k, 4] float32 in parts of the crop.
        kept: [k] int64, which of the boxes these are.
    """

    edges: tuple[float, float, float, float]
    boxes: np.ndarray
    kept: np.ndarray


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
    """Writes a random view of an image into `out`, and returns the boxes [k, 4] and labels [k] in it.

    Args:
        image: [H, W, 3] uint8.
        boxes, labels: [n, 4] float32, [n] int32; there may be none.
        size: S.
        seed, position: of the example in the global stream; they fix the randomness.
        attempts: see `random_crop`.
        out: [S, S, 3] uint8.
    """
    draws = stream(seed, position)
    crop = random_crop(boxes, draws, attempts=attempts)
    view, boxes = resized(image, size, crop.edges), crop.boxes
    if next(draws) < 0.5:
        view, boxes = np.ascontiguousarray(view[:, ::-1]), flipped(boxes)
    jitter(view, draws, out=out)
    return boxes, labels[crop.kept]


def stream(seed: int, position: int) -> Iterator[float]:
    """Yields random numbers in [0, 1) without end that depend on nothing but seed and stream position."""
    count = _DRAWN_AT_ONCE
    drawn = 0
    while True:  # The first numbers of a long draw are those of a short one.
        yield from images.uniforms(seed, position, count)[drawn:].tolist()
        drawn, count = count, 2 * count


def without_degenerate(boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes [n, 4] to the image and drops those that then have no area, with their labels [n]."""
    boxes = np.clip(boxes, 0, 1)
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[solid], labels[solid]


def random_crop(boxes: np.ndarray, draws: Iterator[float], *, attempts: int) -> Crop:
    """Chooses a crop whose overlap with every box exceeds a bound, drawn from the reference's seven.

    An attempt draws width and height, which count if they are neither flatter nor slimmer than 1:2,
    then the place, which counts if every box's intersection over union with the crop is above the
    bound and some box's centre lies inside. Boxes with their centre elsewhere are left out, the
    others cut at the crop's edges. After the attempts another bound is drawn, until the whole image
    is (one in seven), so that an image without boxes always stays whole.

    Args:
        boxes: [n, 4] float32.
        draws: random numbers in [0, 1) without end.
        attempts: with each bound; 1 or 50 in the closed division (`max_samples`).
    """
    while True:
        least = _LEAST_OVERLAPS[int(next(draws) * len(_LEAST_OVERLAPS))]
        if least is None:
            return Crop((0.0, 0.0, 1.0, 1.0), boxes, np.arange(len(boxes)))
        for _ in range(attempts):
            width, height = (_between(*_SIDES, next(draws)) for _ in range(2))
            if not _ASPECTS[0] <= width / height <= _ASPECTS[1]:
                continue
            left, top = next(draws) * (1 - width), next(draws) * (1 - height)
            edges = (left, top, left + width, top + height)
            if not (overlaps(boxes, edges) > least).all():
                continue
            kept = np.flatnonzero(_centres_inside(boxes, edges))
            if kept.size:
                return Crop(edges, _seen_from(boxes[kept], edges), kept)


def _between(low: float, high: float, draw: float) -> float:
    return low + draw * (high - low)


def overlaps(boxes: np.ndarray, edges: tuple[float, float, float, float]) -> np.ndarray:
    """Returns the intersection over union of boxes [n, 4] with one box, [n]."""
    other = np.array(edges, boxes.dtype)
    shared = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
    shared = np.maximum(shared, 0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (areas + (other[2:] - other[:2]).prod() - shared)


def _centres_inside(boxes: np.ndarray, edges: tuple[float, float, float, float]) -> np.ndarray:
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > edges[:2]) & (centres < edges[2:])).all(1)


def _seen_from(boxes: np.ndarray, edges: tuple[float, float, float, float]) -> np.ndarray:
    left, top, right, bottom = edges
    origin = np.array([left, top, left, top])
    extent = np.array([right - left, bottom - top] * 2)
    return np.clip((boxes - origin) / extent, 0, 1).astype(np.float32)


def flipped(boxes: np.ndarray) -> np.ndarray:
    """Mirrors boxes [n, 4] left to right."""
    return np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)


def resized(
    image: np.ndarray, size: int, edges: tuple[float, float, float, float] = (0, 0, 1, 1)
) -> np.ndarray:
    """Resizes a part of an image [H, W, 3] uint8, bilinear with antialiasing, to [size, size, 3]."""
    from PIL import Image

    height, width = image.shape[:2]
    left, right = (int(x * width) for x in edges[::2])
    top, bottom = (int(y * height) for y in edges[1::2])
    box = (left, top, max(right, left + 1), max(bottom, top + 1))
    return np.asarray(Image.fromarray(image).crop(box).resize((size, size), Image.Resampling.BILINEAR))


def jitter(image: np.ndarray, draws: Iterator[float], *, out: np.ndarray) -> None:
    """Changes brightness, contrast, saturation and hue of an image [H, W, 3] uint8, in random order.

    Factors are uniform in 1 +- .125, 1 +- .5 and 1 +- .5, the hue's shift in +- .05 of a turn, each
    applied with eight-bit results as torchvision's `ColorJitter` does on Pillow's images.
    """
    steps = [
        (brightness, 1 + _BRIGHTNESS * (2 * next(draws) - 1)),
        (contrast, 1 + _CONTRAST * (2 * next(draws) - 1)),
        (saturation, 1 + _SATURATION * (2 * next(draws) - 1)),
        (hue, _HUE * (2 * next(draws) - 1)),
    ]
    order = np.argsort([next(draws) for _ in steps], kind="stable")
    for index in order.tolist():
        change, amount = steps[index]
        image = change(image, amount)
    out[...] = image


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales every value of an image [H, W, 3] uint8."""
    return _looked_up(image, _LEVELS * factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales every value's distance from the mean grey."""
    cv2 = images.import_cv2()
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _looked_up(image, mean + factor * (_LEVELS - mean))


_LEVELS = np.arange(256, dtype=np.float32)


def _looked_up(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return images.import_cv2().LUT(image, np.clip(levels, 0, 255).astype(np.uint8))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales every pixel's distance from its own grey."""
    matrix = factor * np.eye(3, dtype=np.float32) + (1 - factor) * _GREY
    return images.import_cv2().transform(image, matrix)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turns every pixel's hue by a part of the full circle."""
    cv2 = images.import_cv2()
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(turn * 255) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
