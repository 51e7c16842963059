"""Boxes over the levels of a feature pyramid: where anchors lie, and what of their predictions becomes detections.

Source of every choice: mlcommons/training, retired_benchmarks/retinanet/ssd/model/{anchor_utils,retinanet}.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.suppression import Detections, Selection, filled

RATIOS = (0.5, 1.0, 2.0)
SIZES_PER_OCTAVE = 3
VARIANCES = (1.0, 1.0)
LARGEST = 1000 / 16  # of a box, in sizes of its anchor


def level_anchors(image_size: int, feature_sizes: Sequence[int], sizes: Sequence[int]) -> list[np.ndarray]:
    """The anchors of every level, [A, 4] float32 as (x, y, width, height) of the centre, in pixels.

    Row by row and cell by cell nine follow one another: of each ratio of height to width three sizes, a
    third of an octave apart. Corners are whole pixels around the cell's first pixel, and cells as many whole
    pixels apart as fit into the image: at 800 pixels these are 120,087.

    Args:
        image_size: height and width of the image.
        feature_sizes: cells per side of every level.
        sizes: side of the smallest square anchor of every level.

    Raises:
        ValueError: there are not as many sizes as levels.
    """
    if len(feature_sizes) != len(sizes):
        raise ValueError(f"{len(feature_sizes)} levels need as many anchor sizes, not {len(sizes)}")
    levels = []
    for cells, size in zip(feature_sizes, sizes, strict=True):
        sides = np.array([int(size * 2 ** (n / SIZES_PER_OCTAVE)) for n in range(SIZES_PER_OCTAVE)])
        tall = np.sqrt(np.array(RATIOS, np.float32))
        halves = np.stack([np.outer(1 / tall, sides).ravel(), np.outer(tall, sides).ravel()], 1) / 2
        extents = 2 * halves.astype(np.float32).round()  # [9, 2] width and height
        first = np.arange(cells) * (image_size // cells)
        y, x = np.meshgrid(first, first, indexing="ij")
        centres = np.repeat(np.stack([x.ravel(), y.ravel()], 1), len(extents), axis=0)
        levels.append(np.concatenate([centres, np.tile(extents, (cells * cells, 1))], 1).astype(np.float32))
    return levels


def detect_on_levels(
    codes: Sequence[jax.Array],
    logits: Sequence[jax.Array],
    anchors: Sequence[np.ndarray],
    image_size: int,
    selection: Selection,
) -> Detections:
    """The best of every level, decoded, and of these what is not covered by a better one of its class.

    Args:
        codes: [B, A, 4] of every level.
        logits: [B, A, C] of every level; every class is judged by itself, there is none for the background.
        anchors: [A, 4] of every level, see `level_anchors`.
        image_size: height and width of the image, in pixels.
        selection: `candidates` are looked at of each level, all classes together; boxes that overlap more
            than `iou` cover each other.
    """
    levels = zip(codes, logits, anchors, strict=True)
    parts = [_candidates(*level, selection) for level in levels]
    corners, scores, labels = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    found = pick(jnp.clip(corners, 0, image_size), scores, labels, selection)
    return dataclasses.replace(found, corners=found.corners / image_size)


def _candidates(
    codes: jax.Array, logits: jax.Array, anchors: np.ndarray, selection: Selection
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best of a level: corners [B, k, 4] in pixels, scores [B, k], 0 where there are fewer, labels [B, k]."""
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    # The best pairs of anchor and class are of the anchors whose best class is best: a much shorter list to sort.
    most = min(selection.candidates, logits.shape[1])
    _, rows = jax.lax.top_k(logits.max(-1), most)
    chosen = box.rows_of(logits, rows).astype(wide)  # [B, most, C]
    scores = jax.nn.sigmoid(chosen).reshape(len(chosen), -1)
    scores, pairs = jax.lax.top_k(scores, min(selection.candidates, scores.shape[1]))
    scores = jnp.where(scores > selection.score, scores, 0)
    rows = box.rows_of(rows, pairs // logits.shape[-1])
    found = box.rows_of(codes, rows).astype(wide)
    corners = box.decode(found, jnp.asarray(anchors, wide)[rows], VARIANCES, LARGEST)
    return corners, scores, pairs % logits.shape[-1] + 1


def pick(corners: jax.Array, scores: jax.Array, labels: jax.Array, selection: Selection) -> Detections:
    """Takes the best box, drops those of its class that overlap it more than `selection.iou`, and so on.

    Args:
        corners: [B, K, 4].
        scores: [B, K]; 0 for padding.
        labels: [B, K] int32.
        selection: `detections` are taken of an image, of all classes.
    """
    places = jnp.arange(scores.shape[1])

    def take(left: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        best = left.argmax(1)[:, None]
        score = box.rows_of(left, best)
        label = box.rows_of(labels, best)
        chosen = box.rows_of(corners, best)
        covered = (box.iou(chosen, corners)[:, 0] > selection.iou) & (labels == label)
        return jnp.where(covered | (places == best), 0, left), (chosen[:, 0], score[:, 0], label[:, 0])

    _, found = jax.lax.scan(take, scores, length=selection.detections)
    chosen, best_scores, best_labels = (x.swapaxes(0, 1) for x in found)
    return filled(chosen, best_scores, best_labels.astype(jnp.int32), selection.detections)
