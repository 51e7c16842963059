"""What speech recognisers hear: log-mel features of sound, made on the device, and what is done to them in training.

Source of every choice: mlcommons/training, rnn_speech_recognition/pytorch/common/data (features.py, and
dali/pipeline.py for the change of speed). Each function takes rows of different lengths, padded, and what is in a row's
padding changes nothing of it. Sums are float32, or float64 where the sound is.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.parallel import layout

_FLOOR = 1e-20  # added to energies before their logarithm
_SMALL = 1e-5  # added to deviations
_LOBES = 6  # zero crossings of a resampling filter on each side

# Slaney's mel scale (Auditory Toolbox, 1998): linear below 1 kHz, then 27 filters for a factor of 6.4.
_LINEAR_HZ, _KNEE_HZ, _LOG_STEP = 200 / 3, 1000.0, np.log(6.4) / 27


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """Numbers of log-mel features.

    Attributes:
        sample_rate: Hz.
        window: samples, a multiple of `hop`.
        hop: samples from frame to frame.
        fft_size: samples, those of the window and zeros around it.
        filters: F.
        preemphasis: what is taken off a sample of the one before it.
        dither: deviation of the noise that is added to samples of -1 to 1.
    """

    sample_rate: int = 16_000
    window: int = 320
    hop: int = 160
    fft_size: int = 512
    filters: int = 80
    preemphasis: float = 0.97
    dither: float = 1e-5

    def __post_init__(self) -> None:
        if self.window % self.hop or self.window > self.fft_size:
            raise ValueError(
                f"window {self.window} must be a multiple of hop {self.hop} and at most fft_size {self.fft_size}"
            )


def waveform(samples: jax.Array, dtype: jnp.dtype | type = jnp.float32) -> jax.Array:
    """Samples [B, N] int16 as numbers from -1 to 1."""
    return samples.astype(jnp.promote_types(dtype, jnp.float32)) / 2**15


def real(length: int, lengths: jax.Array) -> jax.Array:
    """Which of so many positions are no padding, [B, length] bool of lengths [B]."""
    return jnp.arange(length) < lengths[:, None]


def log_mel(
    sound: jax.Array, num_samples: jax.Array, config: FeatureConfig, noise: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Logarithms of the energies in mel filters, each filter of an utterance with mean 0 and deviation 1.

    Args:
        sound: [B, N], from -1 to 1.
        num_samples: [B] int, at least 2.
        config: numbers.
        noise: [B, N] or [1, N] standard normal, for dither; None for none.

    Returns:
        [B, 1 + N // hop, F], zeros where there is padding, and frames [B] int32: a sample more than a multiple of the
        hop begins another one.
    """
    if noise is not None:
        sound = sound + config.dither * noise
    sound = jnp.where(real(sound.shape[1], num_samples), sound, 0)
    sound = preemphasized(sound, num_samples, config.preemphasis)
    energies = power_spectrogram(sound, num_samples, config.window, config.hop, config.fft_size)
    filters = mel_filters(config.sample_rate, config.fft_size, config.filters)
    energies = jnp.matmul(energies, filters.T.astype(energies.dtype), precision=jax.lax.Precision.HIGHEST)
    frames = -(-num_samples // config.hop)
    return normalized(jnp.log(energies + _FLOOR), frames), frames


def preemphasized(sound: jax.Array, num_samples: jax.Array, share: float) -> jax.Array:
    """Every sample [B, N] less a share of the one before it; the first as it is."""
    before = jnp.pad(sound, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(real(sound.shape[1], num_samples), sound - share * before, 0)


def power_spectrogram(
    sound: jax.Array, num_samples: jax.Array, window: int, hop: int, fft_size: int
) -> jax.Array:
    """Squared magnitudes of a short-time Fourier transform with Hann's window (symmetric), as `torch.stft` has it.

    Frame t has sample t * hop in its middle. Beyond its ends an utterance goes on mirrored, if it is longer than half of
    `fft_size`, else with zeros after the mirrored part.

    Args:
        sound: [B, N].
        num_samples: [B] int.
        window, hop, fft_size: samples; see `FeatureConfig`.

    Returns:
        [B, 1 + N // hop, fft_size // 2 + 1].
    """
    heard = mirrored(sound, num_samples, window // 2)
    frames = windows(heard, window, hop, 1 + sound.shape[1] // hop)
    frames = frames * np.hanning(window).astype(sound.dtype)
    return layout.on_own_rows(functools.partial(_power, fft_size=fft_size), frames)


def _power(frames: jax.Array, fft_size: int) -> jax.Array:
    spectrum = jnp.fft.rfft(frames, fft_size)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def mirrored(sound: jax.Array, num_samples: jax.Array, edge: int) -> jax.Array:
    """Sound that goes on beyond both ends: turned around, the end's sample not said twice.

    Args:
        sound: [B, N], zeros after a recording's end.
        num_samples: [B] int. Of a recording that is no longer than `edge`, zeros follow its own samples turned around.
        edge: samples to either side.

    Returns:
        [B, edge + N + edge], in which a recording begins at `edge`.
    """
    zeros = jnp.zeros((len(sound), edge), sound.dtype)
    turned = jnp.concatenate([sound, zeros], axis=1)[:, edge:0:-1]
    padded = jnp.concatenate([turned, sound, zeros], axis=1)

    def with_end(row: jax.Array, count: jax.Array) -> jax.Array:
        # The last sample is at edge + count - 1.
        end = jax.lax.dynamic_slice(row, (count - 1,), (edge,))[::-1]
        end = jnp.where(jnp.arange(edge) < count - 1, end, 0)
        return jax.lax.dynamic_update_slice(row, end, (edge + count,))

    return jax.vmap(with_end)(padded, num_samples)


def windows(sound: jax.Array, window: int, hop: int, count: int) -> jax.Array:
    """The first `count` windows of [B, N], each a hop after the one before: [B, T, W], of slices side by side."""
    parts = -(-window // hop)
    lacking = max((count + parts - 1) * hop - sound.shape[1], 0)
    padded = jnp.pad(sound, ((0, 0), (0, lacking)))[:, : (count + parts - 1) * hop]
    hops = padded.reshape(len(sound), -1, hop)
    return jnp.concatenate([hops[:, n : n + count] for n in range(parts)], axis=2)[..., :window]


@functools.lru_cache(maxsize=4)
def mel_filters(sample_rate: int, fft_size: int, filters: int) -> np.ndarray:
    """Triangles of equal area, evenly on Slaney's mel scale from 0 to half of `sample_rate`: [F, fft_size // 2 + 1]."""
    edges = _to_hz(np.linspace(0, _to_mel(np.array(sample_rate / 2)), filters + 2))
    bins = np.linspace(0, sample_rate / 2, fft_size // 2 + 1)
    widths = np.diff(edges)
    slopes = edges[:, None] - bins
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def _to_mel(hz: np.ndarray) -> np.ndarray:
    above = _KNEE_HZ / _LINEAR_HZ + np.log(np.maximum(hz, _KNEE_HZ) / _KNEE_HZ) / _LOG_STEP
    return np.where(hz < _KNEE_HZ, hz / _LINEAR_HZ, above)


def _to_hz(mel: np.ndarray) -> np.ndarray:
    knee = _KNEE_HZ / _LINEAR_HZ
    return np.where(mel < knee, mel * _LINEAR_HZ, _KNEE_HZ * np.exp(_LOG_STEP * (mel - knee)))


def normalized(x: jax.Array, frames: jax.Array) -> jax.Array:
    """Each feature of each utterance [B, T, F] less its mean over frames [B], over its deviation; zeros in padding."""
    here = real(x.shape[1], frames)[..., None]
    count = frames[:, None, None].astype(x.dtype)
    mean = jnp.where(here, x, 0).sum(1, keepdims=True) / jnp.maximum(count, 1)
    apart = jnp.where(here, x - mean, 0)
    variance = jnp.square(apart).sum(1, keepdims=True) / jnp.maximum(count - 1, 1)
    return apart / (jnp.sqrt(variance) + _SMALL)


def spliced(x: jax.Array, frames: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Every `count` frames as one: [B, T, F] and frames [B] to [B, ceil(T / count), count F] and frames [B]."""
    batch, length, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % count), (0, 0)))
    return x.reshape(batch, -1, count * width), -(-frames // count)


@dataclasses.dataclass(frozen=True)
class Masks:
    """Numbers of SpecAugment (Park et al., arXiv:1904.08779; in parts of an utterance: arXiv:1912.05533).

    Attributes:
        freq_masks, max_freq: how many bands of features are hidden, and the widest one.
        time_masks, max_time: how many spans of frames, and the longest in parts of an utterance.
    """

    freq_masks: int = 2
    max_freq: int = 20
    time_masks: int = 10
    max_time: float = 0.03


def masked(x: jax.Array, frames: jax.Array, masks: Masks, key: jax.Array) -> jax.Array:
    """Features [B, T, F] of utterances of frames [B], with zeros where they are hidden at random."""
    # One draw for all: as integers of four ranges they were a quarter of the step's program.
    draws = jax.random.uniform(key, (2, len(x), masks.freq_masks + masks.time_masks), jnp.float32)
    of_freq, of_time = jnp.split(draws, [masks.freq_masks], axis=2)
    longest = jnp.round(frames * masks.max_time)
    bands = _spans(x.shape[2], jnp.full(len(x), masks.max_freq), jnp.full(len(x), x.shape[2]), of_freq)
    times = _spans(x.shape[1], longest, frames, of_time)
    return jnp.where(bands[:, None, :] | times[:, :, None], 0, x)


def _spans(size: int, longest: jax.Array, limit: jax.Array, draws: jax.Array) -> jax.Array:
    """Which of [B, size] are in a span of 0 to `longest` [B] that ends by `limit` [B]; draws [2, B, spans] of [0, 1)."""
    of_width, of_start = draws
    widths = jnp.floor(of_width * (longest[:, None] + 1))
    starts = jnp.floor(of_start * jnp.maximum(limit[:, None] - widths, 1))
    at = jnp.arange(size)
    return ((at >= starts[..., None]) & (at < (starts + widths)[..., None])).any(1)


def sped(
    sound: jax.Array, num_samples: jax.Array, speeds: jax.Array, width: int
) -> tuple[jax.Array, jax.Array]:
    """Sound played faster or slower, and so higher or lower, by a windowed sinc.

    Args:
        sound: [B, N].
        num_samples: [B] int.
        speeds: [B], 1 for as it is.
        width: W, samples of a row that holds the slowest.

    Returns:
        [B, W], and samples [B] int32.
    """
    lengths = jnp.minimum(jnp.ceil(num_samples / speeds).astype(jnp.int32), width)
    places = jnp.arange(width, dtype=sound.dtype) * speeds[:, None].astype(sound.dtype)
    first = jnp.floor(places).astype(jnp.int32)
    share = places - first
    # Of faster sound what would be above half of the rate is cut off.
    cutoff = jnp.minimum(1, 1 / speeds)[:, None].astype(sound.dtype)
    # A sine and a cosine of every place; those of all taps follow from them. A sine a tap would be most of the work.
    angle, fade = jnp.pi * cutoff * share, jnp.pi / _LOBES * share
    (sine, cosine), (sine_fade, cosine_fade) = ((jnp.sin(x), jnp.cos(x)) for x in (angle, fade))
    padded = jnp.where(real(sound.shape[1], num_samples), sound, 0)
    padded = jnp.pad(padded, ((0, 0), (_LOBES, _LOBES)))
    at = jnp.clip(first, -_LOBES, sound.shape[1]) + _LOBES

    def weighed(tap: jax.Array | int, sinc: jax.Array) -> jax.Array:
        half_turn = math.pi / _LOBES * tap
        window = 0.5 + 0.5 * (cosine_fade * jnp.cos(half_turn) + sine_fade * jnp.sin(half_turn))
        near = jnp.take_along_axis(padded, jnp.clip(at + tap, 0, padded.shape[1] - 1), axis=1)
        return cutoff * sinc * window * near

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        tap = number - _LOBES + jnp.where(number < _LOBES - 1, 1, 3)  # all but 0 and 1
        turn = jnp.pi * cutoff * tap
        return total + weighed(tap, (sine * jnp.cos(turn) - cosine * jnp.sin(turn)) / (angle - turn))

    # Close to a zero crossing a difference of two products would be noise.
    total = sum(weighed(tap, jnp.sinc(cutoff * (share - tap))) for tap in (0, 1))
    # A loop, as XLA would else compute all taps again wherever a sample is used.
    total = jax.lax.fori_loop(0, 2 * _LOBES - 2, add, total)
    return jnp.where(real(width, lengths), total, 0), lengths
