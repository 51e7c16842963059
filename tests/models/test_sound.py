"""Features of sound against PyTorch's own transform and a transcription in NumPy; padding changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import sound
from models.sound import FeatureConfig, Masks

CONFIG = FeatureConfig()
LENGTHS = (16_000, 7_777, 400, 9_600)


def _utterances(loudness=1000):
    random = np.random.default_rng(0)
    rows = np.zeros((len(LENGTHS), 17_000), np.int16)
    for row, length in zip(rows, LENGTHS, strict=True):
        time = np.arange(length) / 16_000
        tone = loudness * np.sin(2 * np.pi * random.uniform(100, 3000) * time * (1 + time))
        row[:length] = tone + random.normal(0, 300, length)
    return rows, np.array(LENGTHS, np.int32)


def _filters_by_loops():
    """Slaney's filters as the Auditory Toolbox builds them, one number at a time."""
    low, step = 133.33333 / 2, 200 / 3
    assert low == pytest.approx(step, abs=1e-5)

    def mel(hz):
        return hz / step if hz < 1000 else 15 + np.log(hz / 1000) / (np.log(6.4) / 27)

    def hz(mel):
        return mel * step if mel < 15 else 1000 * np.exp((mel - 15) * np.log(6.4) / 27)

    edges = [hz(mel(8000) * n / 81) for n in range(82)]
    filters = np.zeros((80, 257))
    for f in range(80):
        left, middle, right = edges[f : f + 3]
        for b in range(257):
            at = b * 16_000 / 512
            if left < at <= middle:
                filters[f, b] = (at - left) / (middle - left)
            elif middle < at < right:
                filters[f, b] = (right - at) / (right - middle)
        filters[f] *= 2 / (right - left)
    return filters


def _reference(samples, noise=0.0):
    """One utterance [S] as the reference computes it, in float64: [T, 80]."""
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    x = samples.astype(np.float64) / 2**15 + 1e-5 * noise
    x = np.concatenate([x[:1], x[1:] - 0.97 * x[:-1]])
    window = torch.hann_window(320, periodic=False, dtype=torch.float64)
    spectrum = torch.stft(torch.from_numpy(x), 512, 160, 320, window, center=True, return_complex=True)
    energies = _filters_by_loops() @ (spectrum.abs() ** 2).numpy()
    logs = np.log(energies + 1e-20)[:, : int(np.ceil(len(samples) / 160))]
    return ((logs - logs.mean(1, keepdims=True)) / (logs.std(1, ddof=1, keepdims=True) + 1e-5)).T


def test_mel_filters_are_slaneys():
    np.testing.assert_allclose(sound.mel_filters(16_000, 512, 80), _filters_by_loops(), atol=1e-12)


@pytest.mark.parametrize("dithered", [False, True])
def test_features_are_the_references_whatever_the_padding(dithered):
    rows, lengths = _utterances()
    noise = np.random.default_rng(1).normal(size=rows.shape) if dithered else None
    given = None if noise is None else jnp.asarray(noise, jnp.float32)
    compute = jax.jit(functools.partial(sound.log_mel, config=CONFIG))
    found, frames = compute(sound.waveform(rows), lengths, noise=given)
    assert found.shape == (4, 1 + 17_000 // 160, 80) and found.dtype == jnp.float32
    for n, length in enumerate(LENGTHS):
        expected = _reference(rows[n, :length], 0 if noise is None else noise[n, :length])
        assert frames[n] == len(expected)
        np.testing.assert_allclose(found[n, : frames[n]], expected, rtol=1e-4, atol=1e-4)
        assert not np.asarray(found[n, frames[n] :]).any()


def test_features_under_a_loud_tone_are_exact_in_float64():
    """What such a tone leaves in far filters is rounding in float32, PyTorch's as ours: it is compared in float64."""
    rows, lengths = _utterances(loudness=20_000)
    with jax.enable_x64(True):
        found, frames = sound.log_mel(sound.waveform(rows, jnp.float64), lengths, CONFIG)
    assert found.dtype == jnp.float64
    for n, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[n, : frames[n]], _reference(rows[n, :length]), atol=1e-8)


def test_what_lies_in_padding_does_not_matter():
    rows, lengths = _utterances()
    noisy = rows.copy()
    for row, length in zip(noisy, LENGTHS, strict=True):
        row[length:] = 1234
    compute = jax.jit(functools.partial(sound.log_mel, config=CONFIG))
    a, b = (compute(sound.waveform(samples), lengths)[0] for samples in (rows, noisy))
    assert np.array_equal(a, b)


def test_frames_are_spliced_in_threes():
    x = np.arange(2 * 7 * 2, dtype=np.float32).reshape(2, 7, 2)
    found, frames = sound.spliced(jnp.asarray(x), jnp.array([7, 3]), 3)
    assert found.shape == (2, 3, 6) and frames.tolist() == [3, 1]
    np.testing.assert_array_equal(found[0, 1], x[0, 3:6].reshape(-1))
    np.testing.assert_array_equal(found[0, 2], np.concatenate([x[0, 6], np.zeros(4)]))


def test_masks_hide_bands_and_spans_within_their_limits():
    frames, masks = jnp.array([100, 40]), Masks()
    x = jnp.ones((2, 120, 80))
    draw = jax.jit(lambda key: sound.masked(x, frames, masks, key) == 0)
    hidden = np.stack([draw(jax.random.key(seed)) for seed in range(300)])
    bands, spans = hidden.all(2), hidden.all(3)  # [S, B, F], [S, B, T]
    np.testing.assert_array_equal(hidden, bands[:, :, None] | spans[..., None])
    assert bands.sum(-1).max() <= 40 and bands.sum(-1).max() >= 30
    # Two bands of 0 to 20 of 80, which seldom overlap.
    assert bands.sum(-1).mean() == pytest.approx(20 - 20 / 80 * 5, abs=1.5)
    for n, longest in enumerate((3, 1)):
        assert not spans[:, n, int(frames[n]) :].any()
        assert spans[:, n].sum(-1).max() <= 10 * longest
    assert spans[:, 0].sum(-1).mean() == pytest.approx(15, abs=2.5)
    # Every feature is hidden at some time but the last, as in the reference.
    assert bands[..., :-1].any((0, 1)).all() and not bands[..., -1].any()


def test_speed_is_changed_as_the_sum_over_a_windowed_sinc_says():
    random = np.random.default_rng(0)
    x, lengths = random.normal(size=(3, 50)), np.array([50, 31, 44])
    speeds = np.array([0.85, 1.0, 1.15])
    change = jax.jit(functools.partial(sound.sped, width=60))
    found, counts = change(jnp.asarray(x, jnp.float32), lengths, jnp.asarray(speeds, jnp.float32))
    assert counts.tolist() == [59, 31, 39]
    for n, (length, speed) in enumerate(zip(lengths, speeds, strict=True)):
        cutoff = min(1, 1 / speed)
        for t in range(counts[n]):
            total = 0.0
            for at in range(length):
                apart = t * speed - at
                if abs(apart) < 6:
                    total += x[n, at] * cutoff * np.sinc(cutoff * apart) * np.cos(np.pi / 12 * apart) ** 2
            assert found[n, t] == pytest.approx(total, abs=1e-4)
        assert not np.asarray(found[n, counts[n] :]).any()
    np.testing.assert_allclose(found[1, :31], x[1, :31], atol=1e-5)


def test_speed_is_changed_as_its_peer_in_pytorch_changes_it():
    torch = pytest.importorskip("torch")
    from benchmarks.peers import rnnt

    random = np.random.default_rng(1)
    x, lengths = random.normal(size=(3, 400)).astype(np.float32), np.array([400, 311, 344])
    x *= np.arange(400) < lengths[:, None]
    for speed in (0.9, 1.1):
        expected, counts = rnnt.sped(torch.tensor(x), torch.tensor(lengths), speed, speed)
        found, frames = sound.sped(
            jnp.asarray(x), lengths, jnp.full(3, speed, jnp.float32), expected.shape[1]
        )
        assert frames.tolist() == counts.tolist()
        for row, other, count in zip(found, expected, counts.tolist(), strict=True):
            np.testing.assert_allclose(row[:count], other[:count], atol=2e-3)


def test_a_faster_tone_is_higher():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)[None]
    speed = jnp.array([1.1])
    found, (count,) = sound.sped(jnp.asarray(tone, jnp.float32), jnp.array([16_000]), speed, 16_000)
    expected = np.sin(2 * np.pi * 1100 * np.arange(int(count)) / 16_000)
    np.testing.assert_allclose(found[0, 100 : count - 100], expected[100:-100], atol=5e-3)


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of hop"):
        FeatureConfig(window=300)
