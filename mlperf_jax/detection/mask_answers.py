"""Detections with masks as bytes: made on the device, and read on the host.

A detection is 28 + w w bytes: seven little-endian float32 (number of the sample; top, left, bottom and right in parts of
the image; score; label), as MLPerf Inference's accuracy log has them of other detectors, then the mask [w, w] over the
box, uint8, row by row: how sure the network is of each cell, in 255ths.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.detection.suppression import Detections

NUMBERS = 28  # bytes before the mask


class Found(NamedTuple):
    """What is detected in one image: rows [n, 6] float32 as `Detections.rows` has them, and masks [n, w, w] uint8."""

    rows: np.ndarray
    masks: np.ndarray


def packed(index: jax.Array, found: Detections, masks: jax.Array) -> jax.Array:
    """Detections of images [B] as [B, K, 28 + w w] uint8; a row of label 0 holds none.

    Args:
        index: [B], the samples' numbers.
        found: corners in parts of the images.
        masks: [B, K, w, w] uint8.
    """
    rows = found.rows().astype(jnp.float32)
    index = jnp.broadcast_to(index[:, None, None].astype(jnp.float32), (*rows.shape[:2], 1))
    numbers = jnp.concatenate([index, rows[..., jnp.array([1, 0, 3, 2, 4, 5])]], axis=-1)
    parts = jax.lax.bitcast_convert_type(numbers, jnp.uint8), masks
    return jnp.concatenate([part.reshape(*rows.shape[:2], -1) for part in parts], axis=-1)


def unpacked(answer: np.ndarray) -> Found:
    """The detections that rows [n, 28 + w w] hold."""
    answer = answer[is_there(answer)]
    window = round((answer.shape[1] - NUMBERS) ** 0.5)
    masks = answer[:, NUMBERS:].reshape(-1, window, window)
    return Found(numbers_of(answer)[:, [2, 1, 4, 3, 5, 6]], masks)


def is_there(answer: np.ndarray) -> np.ndarray:
    """Which of rows [n, 28 + w w] hold a detection, [n] bool."""
    return numbers_of(answer)[:, -1] > 0


def numbers_of(answer: np.ndarray) -> np.ndarray:
    """The seven numbers of rows [n, 28 + w w], [n, 7] float32."""
    return np.ascontiguousarray(answer[:, :NUMBERS]).view("<f4")
