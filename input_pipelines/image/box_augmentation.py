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

from input_pipelines.image import preprocessing

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
        view, boxes = preprocessing.mirrored(view), flipped(boxes)
    jitter(view, draws, out=out)
    return boxes, labels[crop.kept]


def stream(seed: int, position: int) -> Iterator[float]:
    """Yields random numbers in [0, 1) without end that depend on nothing but seed and stream position."""
    count = _DRAWN_AT_ONCE
    drawn = 0
    while True:  # The first numbers of a long draw are those of a short one.
        yield from preprocessing.uniforms(seed, position, count)[drawn:].tolist()
        drawn, count = count, 2 * count


def without_degenerate(boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes [n, 4] to the image and drops those that then have no area, with their labels [n]."""
    boxes = np.clip(boxes, 0, 1)
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[solid], labels[solid]


def random_crop(boxes: np.ndarray, draws: Iterator[float], *, attempts: int) -> Crop:
    """Chooses a crop whose overlap with every box exceeds a bound, drawn from the reference's seven.

    An attempt draws width, height and place. It counts if the crop is neither flatter nor slimmer
    than 1:2, if every box's intersection over union with it is above the bound, and if some box's
    centre lies inside. Boxes with their centre elsewhere are left out, the others cut at the crop's
    edges. After the attempts another bound is drawn, until the whole image is (one in seven), so
    that an image without boxes always stays whole.

    Args:
        boxes: [n, 4] float32.
        draws: random numbers in [0, 1) without end.
        attempts: with each bound; 1 or 50 in the closed division (`max_samples`).
    """
    while True:
        least = _LEAST_OVERLAPS[int(next(draws) * len(_LEAST_OVERLAPS))]
        if least is None:
            return Crop((0.0, 0.0, 1.0, 1.0), boxes, np.arange(len(boxes)))
        drawn = np.fromiter(draws, float, 4 * attempts).reshape(attempts, 4)
        sides = _SIDES[0] + drawn[:, :2] * (_SIDES[1] - _SIDES[0])
        corners = drawn[:, 2:] * (1 - sides)
        edges = np.concatenate([corners, corners + sides], 1)
        aspects = sides[:, 0] / sides[:, 1]
        inside = _centres_inside(edges, boxes)
        counts = (aspects >= _ASPECTS[0]) & (aspects <= _ASPECTS[1]) & inside.any(1)
        counts &= (overlaps(edges, boxes) > least).all(1)
        if counts.any():
            first = counts.argmax()
            kept = np.flatnonzero(inside[first])
            return Crop(tuple(edges[first].tolist()), seen_from(boxes[kept], edges[first]), kept)


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the intersections over unions of boxes [m, 4] and [n, 4], [m, n]."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = np.maximum(high - low, 0).prod(2)
    return shared / (_areas(boxes)[:, None] + _areas(others) - shared)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _centres_inside(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns whether the centres of `others` [n, 4] lie in each of the boxes [m, 4], [m, n]."""
    centres = (others[:, :2] + others[:, 2:]) / 2
    return ((centres > boxes[:, None, :2]) & (centres < boxes[:, None, 2:])).all(2)


def seen_from(boxes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns boxes [n, 4] in parts of the crop at `edges` [4], cut where they stand out."""
    origin = np.tile(edges[:2], 2)
    extent = np.tile(edges[2:] - edges[:2], 2)
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
    part = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    return np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BILINEAR))


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
    cv2 = preprocessing.import_cv2()
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _looked_up(image, mean + factor * (_LEVELS - mean))


_LEVELS = np.arange(256, dtype=np.float32)


def _looked_up(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return preprocessing.import_cv2().LUT(image, np.clip(levels, 0, 255).astype(np.uint8))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Scales every pixel's distance from its own grey."""
    matrix = factor * np.eye(3, dtype=np.float32) + (1 - factor) * _GREY
    return preprocessing.import_cv2().transform(image, matrix)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turns every pixel's hue by a part of the full circle."""
    cv2 = preprocessing.import_cv2()
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(turn * 255) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
