"""Volumes at another spacing of voxels, as MLPerf's two references make them.

Corners stay in place, and values between are linear in each direction: PyTorch's `interpolate(mode="trilinear",
align_corners=True)`, which training uses, and SciPy's `zoom(order=1)`, which inference uses, differ in nothing but
the size. Labels are the nearest voxel's: training takes floor(i * n / m) for voxel i of m, inference the one
nearest when corners stay in place. Sources: mlcommons/training, retired_benchmarks/unet3d/pytorch/
preprocess_dataset.py; mlcommons/inference, vision/medical_imaging/3d-unet-kits19/preprocess.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shape_for(
    shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float], *, served: bool = False
) -> tuple[int, ...]:
    """Voxels along each axis at the wanted spacing: rounded down for training, to the nearest for inference."""
    sizes = np.array(spacing) / np.array(wanted) * np.array(shape)
    return tuple(max(1, round(size) if served else int(size)) for size in sizes.tolist())


def linear(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """`volume` [X, Y, Z] at another shape, float32."""
    found = volume.astype(np.float32)
    for axis, size in enumerate(shape):
        last = found.shape[axis] - 1
        at = np.arange(size) * (last / max(size - 1, 1))
        below = np.minimum(at.astype(np.int64), last)
        above = np.minimum(below + 1, last)
        share = np.expand_dims((at - below).astype(np.float32), [a for a in range(found.ndim) if a != axis])
        lower = found.take(below, axis)
        found = lower + share * (found.take(above, axis) - lower)
    return found


def nearest(labels: np.ndarray, shape: Sequence[int], *, served: bool = False) -> np.ndarray:
    """`labels` [X, Y, Z] at another shape, in their dtype."""
    for axis, (size, new) in enumerate(zip(labels.shape, shape, strict=True)):
        if served:
            index = np.floor(np.arange(new) * ((size - 1) / max(new - 1, 1)) + 0.5).astype(np.int64)
        else:  # in float32, as PyTorch computes it
            index = np.floor(np.arange(new, dtype=np.float32) * np.float32(size / new)).astype(np.int64)
        labels = labels.take(np.minimum(index, size - 1), axis)
    return labels
