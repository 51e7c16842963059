"""The boxes that an SSD refines, called default boxes in the paper (arXiv:1512.02325, section 2.2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """Where anchors lie and how large they are.

    Attributes:
        image_size: height and width of the image, in pixels.
        steps: pixels from one cell of a map to the next; 0 for the image divided by the map's cells.
        scales: side of the square anchor of each map, in pixels, and one more: a map's second square
            anchor has the geometric mean of its own and the next scale.
        counts: anchors per cell: the two squares, and pairs of aspect ratio 2, 3, ... and its inverse.
    """

    image_size: int
    steps: Sequence[float]
    scales: Sequence[float]
    counts: Sequence[int]


def make_anchors(config: AnchorConfig, feature_sizes: Sequence[int]) -> np.ndarray:
    """All anchors of an image, [A, 4] float64 as (x, y, width, height) of the centre, in [0, 1].

    Maps follow one another; in a map anchors of one shape do, row by row. Source: mlcommons/training,
    retired_benchmarks/ssd-v1/ssd/utils.py, DefaultBoxes: at 300 pixels these are 8,732.

    Args:
        config: see there.
        feature_sizes: cells per side of every map.

    Raises:
        ValueError: the config is not of as many maps, or a count is odd.
    """
    maps = len(feature_sizes)
    if (len(config.steps), len(config.scales), len(config.counts)) != (maps, maps + 1, maps):
        raise ValueError(f"{maps} maps need as many steps and anchor counts, and one scale more")
    if any(count < 2 or count % 2 for count in config.counts):
        raise ValueError(f"a cell cannot have {config.counts} anchors: shapes come in pairs")
    parts = []
    for k, cells in enumerate(feature_sizes):
        step = config.steps[k] / config.image_size or 1 / cells
        centres = (np.arange(cells) + 0.5) * step
        y, x = (grid.ravel() for grid in np.meshgrid(centres, centres, indexing="ij"))
        for width, height in _shapes(config, k):
            parts.append(np.stack([x, y, np.full_like(x, width), np.full_like(x, height)], axis=1))
    return np.concatenate(parts).clip(0, 1)


def _shapes(config: AnchorConfig, k: int) -> list[tuple[float, float]]:
    """Widths and heights of the anchors of map k."""
    side, following = (config.scales[i] / config.image_size for i in (k, k + 1))
    shapes = [(side, side), (math.sqrt(side * following),) * 2]
    for ratio in range(2, 1 + config.counts[k] // 2):
        long, short = side * math.sqrt(ratio), side / math.sqrt(ratio)
        shapes += [(long, short), (short, long)]
    return shapes
