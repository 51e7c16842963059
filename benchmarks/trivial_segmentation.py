"""What needs no network on Colin27's right half: thresholds of intensity, and the left half's labels mirrored.

    python -m benchmarks.trivial_segmentation --data_dir=DATA    writes benchmarks/trivial_segmentation_colin27.json

Thresholds are the best that there are: of each group by itself, the two values between which its voxels are said to lie,
chosen on the very half that is judged. The mirrored labels lie about the middle, or where they are best within 3 voxels
along each axis, chosen on that half too.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

import input_pipelines
from benchmarks import records
from input_pipelines import prepared
from input_pipelines.volumes import colin27, segmentation
from mlperf_jax.segmentation.dice import dice

PATH = Path(__file__).parent / "trivial_segmentation_colin27.json"
_VALUES, _SHIFT = 256, 3


def best_interval(image: np.ndarray, inside: np.ndarray) -> float:
    """The best Dice of the voxels whose values lie between any two of 256 quantiles."""
    edges = np.quantile(image, np.linspace(0, 1, _VALUES + 1))
    bins = np.clip(np.searchsorted(edges, image, side="right") - 1, 0, _VALUES - 1)
    all_, true = (np.bincount(bins[mask], minlength=_VALUES) for mask in (np.ones_like(inside), inside))
    found, both = (np.concatenate([[0], np.cumsum(counts)]) for counts in (all_, true))
    # [start, stop] of an interval of bins
    sizes, hits = found[None] - found[:, None], both[None] - both[:, None]
    return float(np.where(sizes > 0, dice(hits, inside.sum(), sizes), 0).max())


def overlaps(true: np.ndarray, found: np.ndarray) -> list[float]:
    """Dice of every group."""
    labels = range(1, len(colin27.CLASS_NAMES) + 1)
    return [
        float(dice(((true == k) & (found == k)).sum(), (true == k).sum(), (found == k).sum())) for k in labels
    ]


def moved(labels: np.ndarray, shift: tuple[int, ...]) -> np.ndarray:
    """Labels moved by whole voxels; background comes in from beside."""
    padded = np.pad(labels, _SHIFT)
    return padded[tuple(slice(_SHIFT - s, _SHIFT - s + n) for s, n in zip(shift, labels.shape, strict=True))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, default=input_pipelines.default_data_dir())
    folder = parser.parse_args().data_dir / "colin27"
    (left,), (right,) = (
        segmentation.load(folder, prepared.read_manifest(folder)[split]) for split in ("train", "eval")
    )
    # Both halves are read from the side inwards.
    image, true, mirrored = (np.asarray(values) for values in (right.image, right.label, left.label))
    thresholds = [best_interval(image, true == k) for k in range(1, len(colin27.CLASS_NAMES) + 1)]
    shifts = itertools.product(range(-_SHIFT, _SHIFT + 1), repeat=3)
    best = max(shifts, key=lambda shift: np.mean(overlaps(true, moved(mirrored, shift))))
    found = {
        "thresholds": thresholds,
        "mirrored": overlaps(true, mirrored),
        "mirrored, moved": overlaps(true, moved(mirrored, best)),
    }
    record = {
        "schema_version": 1,
        "command": "python -m benchmarks.trivial_segmentation",
        "groups": list(colin27.CLASS_NAMES),
        "dice": {name: [round(value, 4) for value in values] for name, values in found.items()},
        "mean_dice": {name: round(float(np.mean(values)), 4) for name, values in found.items()},
        "moved_by": list(best),
    }
    records.write(PATH, record)
    print(record["mean_dice"])


if __name__ == "__main__":
    main()
