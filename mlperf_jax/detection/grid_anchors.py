"""Anchors as TensorFlow's Object Detection API makes them for an SSD: scales and shapes in parts of the image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class GridAnchorConfig:
    """How large anchors are; a scale is the root of an anchor's area, in parts of the image's side.

    Attributes:
        min_scale, max_scale: of the first and of the last map; those between lie evenly.
        smallest: scale of the square anchor of the first map.
        aspects: widths over heights at every later map's own scale.
    """

    min_scale: float = 0.2
    max_scale: float = 0.95
    smallest: float = 0.1
    aspects: Sequence[float] = (1.0, 2.0, 0.5, 3.0, 0.3333)

    def shapes(self, maps: int) -> list[list[tuple[float, float]]]:
        """(scale, aspect) of the anchors of every map.

        The first map has three: the smallest square, and 2:1 and 1:2 at its scale. The others have all aspects, and
        a square of the geometric mean of their own and the next scale, which for the last map is 1.
        """
        scales = [*np.linspace(self.min_scale, self.max_scale, maps).tolist(), 1.0]
        found = [[(self.smallest, 1.0), (scales[0], 2.0), (scales[0], 0.5)]]
        for scale, following in zip(scales[1:-1], scales[2:], strict=True):
            found.append([*((scale, aspect) for aspect in self.aspects), (math.sqrt(scale * following), 1.0)])
        return found


def make_grid_anchors(config: GridAnchorConfig, feature_sizes: Sequence[int]) -> np.ndarray:
    """All anchors of an image, [A, 4] float64 as (x, y, width, height) of the centre, in parts of the image.

    Maps follow one another, in a map cells row by row, in a cell its anchors. They may reach out of the image.
    Source: tensorflow/models, research/object_detection/anchor_generators/multiple_grid_anchor_generator.py,
    create_ssd_anchors: at 300 pixels these are 1,917.

    Args:
        config: see there.
        feature_sizes: cells per side of every map.
    """
    parts = []
    for cells, shapes in zip(feature_sizes, config.shapes(len(feature_sizes)), strict=True):
        centres = (np.arange(cells) + 0.5) / cells
        y, x, n = np.meshgrid(centres, centres, np.arange(len(shapes)), indexing="ij")
        scale, aspect = np.array(shapes).T
        width, height = scale * np.sqrt(aspect), scale / np.sqrt(aspect)
        parts.append(np.stack([x, y, width[n.astype(int)], height[n.astype(int)]], -1).reshape(-1, 4))
    return np.concatenate(parts)
