"""Objects' outlines as COCO has them, made into bits on a grid over each object's own box.

The grid is what `mlperf_jax.detection.regions` cuts true masks out of. Polygons are rasterised on it by pycocotools, as
MLPerf's reference rasterises them on a box (mlcommons/training, retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark/
structures/segmentation_mask.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

CELLS = 112  # a side of the grid that prepared sets have


def bits_of_polygons(polygons: Sequence[np.ndarray], corners: np.ndarray, cells: int) -> np.ndarray:
    """An object's mask on a grid over its box, [cells, cells / 8] uint8, of each byte the highest bit first.

    Args:
        polygons: [n, 2] points each, x and y in pixels; what any of them encloses belongs to the object.
        corners: [4] left, top, right, bottom of the box, in pixels.
        cells: a side of the grid; a multiple of 8.
    """
    from pycocotools import mask as pycocotools_mask

    sides = np.maximum(corners[2:] - corners[:2], np.finfo(np.float32).tiny)
    scaled = [((points - corners[:2]) * (cells / sides)).ravel().tolist() for points in polygons]
    runs = pycocotools_mask.merge(pycocotools_mask.frPyObjects(scaled, cells, cells))
    return np.packbits(pycocotools_mask.decode(runs), axis=-1)


def bits_of_pixels(mask: np.ndarray, corners: np.ndarray, cells: int) -> np.ndarray:
    """The same of an object's exact pixels [H, W] bool: a cell has what the pixel under its centre has."""
    at = (np.arange(cells) + 0.5) / cells
    x, y = (
        np.clip(np.floor(corners[axis] + at * (corners[2 + axis] - corners[axis])).astype(int), 0, limit - 1)
        for axis, limit in ((0, mask.shape[1]), (1, mask.shape[0]))
    )
    return np.packbits(mask[np.ix_(y, x)], axis=-1)


def ellipse(corners: np.ndarray) -> np.ndarray:
    """A made-up outline [16, 2] that touches all sides of a box [4] (left, top, right, bottom)."""
    angles = np.arange(16) * np.pi / 8
    middle, half = (corners[:2] + corners[2:]) / 2, (corners[2:] - corners[:2]) / 2
    return np.asarray(middle + half * np.stack([np.cos(angles), np.sin(angles)], 1))


def mirrored(bits: np.ndarray) -> np.ndarray:
    """Masks [..., G, G / 8] as they are in an image whose left and right are swapped."""
    return np.packbits(np.unpackbits(bits, axis=-1)[..., ::-1], axis=-1)


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Exact pixels [H, W] bool as COCO writes them: "size" and "counts", text as `pycocotools.mask.encode` makes it."""
    from pycocotools import mask as pycocotools_mask

    runs = pycocotools_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": runs["size"], "counts": runs["counts"].decode("ascii")}
