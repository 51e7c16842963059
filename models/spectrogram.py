"""DeepSpeech2's features: log magnitudes of windows of 20 ms, each recording normalised by itself; on the device.

The windows' transforms are one product with cosines and sines: of 320 samples that is little work, and it is split over
devices as any product of a batch is.

Source: mlcommons/training, speech_recognition/data/data_loader.py, and the librosa of its time: windows are centred,
the recording's ends are mirrored, and the window function is symmetric.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from models import sound

_LEAST_DEVIATION = 1e-5  # of a recording without sound, which has no rows to be told apart


def num_frames(num_samples: npt.ArrayLike, hop: int) -> jax.Array:
    """Windows of recordings of so many samples; 0 of one without any."""
    num_samples = jnp.asarray(num_samples)
    return jnp.where(num_samples > 0, num_samples // hop + 1, 0)


def spectrogram(
    samples: jax.Array,
    num_samples: jax.Array,
    *,
    window: int,
    hop: int,
    scale: float,
    tempo: jax.Array | None = None,
    slowest: float = 1.0,
    pitch: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Normalised log magnitudes.

    Of a recording x of n samples the magnitude of bin k in window t is |sum over i of w[i] x[t hop + i - window / 2]
    exp(-2 pi j i k / window)|, with w Hamming's and x mirrored at its ends. Its log(1 + scale * magnitude) is normalised to
    mean 0 and (unbiased) variance 1 over all windows and bins of the recording.

    Args:
        samples: [B, N] int16, or float32 in that range.
        num_samples: [B] int, at least window / 2 + 1 where not 0.
        window: W, samples of a window; even.
        hop: samples from one window to the next.
        scale: what samples are multiplied by.
        tempo: [B] how many times as fast recordings are to be, at the same pitch; None for as they are.
        slowest: the least `tempo` that there may be.
        pitch: [B] how many times as high all frequencies are to be, at the same tempo: of voices, as if by a larger or
            smaller head (Jaitly and Hinton, 2013, "Vocal Tract Length Perturbation"); None for as they are.

    Returns:
        [B, T, W // 2 + 1] float32 (of samples in float64 that), zeros after a recording's end, with T = N // hop + 1,
        or what the slowest tempo makes of it; and [B] int32, how many of T are real.
    """
    dtype = jnp.promote_types(samples.dtype, jnp.float32)
    frames = num_frames(num_samples, hop).astype(jnp.int32)
    mirrored = sound.mirrored(samples.astype(dtype), num_samples, window // 2)
    count = samples.shape[1] // hop + 1
    windows = sound.windows(mirrored, window, hop, count)
    product = jnp.einsum("bti,ik->btk", windows, _transform(window).astype(dtype), precision="highest")
    parts = jnp.square(product).reshape(*product.shape[:2], 2, -1)
    found = jnp.sqrt(parts.sum(2))
    if pitch is not None:
        found = _higher(found, pitch.astype(dtype))
    if tempo is not None:
        found, frames = stretched(found, frames, tempo.astype(dtype), int((count - 1) / slowest) + 1)
    real = (jnp.arange(found.shape[1]) < frames[:, None])[..., None]
    return _normalised(jnp.log1p(scale * found), real), frames


def stretched(
    magnitudes: jax.Array, frames: jax.Array, tempo: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """Recordings at another tempo, by windows that are further apart or closer; between two they lie on a line.

    Args:
        magnitudes: [B, T, F].
        frames: [B] int32, how many of T are real.
        tempo: [B] how many times as fast.
        count: T', windows at most.

    Returns:
        [B, T', F], and [B] int32, how many of T' are real.
    """
    places = jnp.arange(count) * tempo[:, None]
    first = jnp.minimum(places.astype(jnp.int32), jnp.maximum(frames - 1, 0)[:, None])
    second = jnp.minimum(first + 1, jnp.maximum(frames - 1, 0)[:, None])
    share = (places - first)[..., None]
    a, b = (jnp.take_along_axis(magnitudes, x[..., None], axis=1) for x in (first, second))
    longer = ((frames - 1) / tempo).astype(jnp.int32) + 1
    return a + share * (b - a), jnp.where(frames > 0, jnp.minimum(longer, count), 0)


def _higher(magnitudes: jax.Array, pitch: jax.Array) -> jax.Array:
    """Spectra [B, T, F] drawn out along their frequencies; between two bins they lie on a line, above the last they go on."""
    last = magnitudes.shape[2] - 1
    places = jnp.minimum(jnp.arange(last + 1) / pitch[:, None], last)
    # A product with few numbers a column, as frequencies of a recording move all alike.
    weights = jnp.maximum(1 - jnp.abs(jnp.arange(last + 1)[:, None] - places[:, None]), 0)
    return jnp.einsum("btf,bfg->btg", magnitudes, weights, precision="highest")


def _transform(window: int) -> np.ndarray:
    """Hamming's window times cosines and sines of all frequencies, [W, 2 (W // 2 + 1)] float64."""
    places = np.arange(window)
    angles = 2 * np.pi * np.outer(places, np.arange(window // 2 + 1)) / window
    both = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    return np.hamming(window)[:, None] * both


def _normalised(x: jax.Array, real: jax.Array) -> jax.Array:
    """[B, T, F] with mean 0 and variance 1 over what is real [B, T, 1], and zeros elsewhere."""
    count = jnp.maximum(real.sum((1, 2)) * x.shape[2], 2)[:, None, None]
    mean = jnp.where(real, x, 0).sum((1, 2), keepdims=True) / count
    centred = jnp.where(real, x - mean, 0)
    deviation = jnp.sqrt(jnp.square(centred).sum((1, 2), keepdims=True) / (count - 1))
    return centred / jnp.maximum(deviation, _LEAST_DEVIATION)
