"""The transducer's loss against the sum over all paths, finite differences, and itself in padding."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.speech.transducer import transducer_loss


def _by_paths(blank, label, frames, symbols):
    """Minus the log of the sum over all orders of `frames` blanks, the last one last, and `symbols` symbols."""
    total = 0.0
    for places in itertools.combinations(range(frames - 1 + symbols), symbols):
        t = u = 0
        path = 0.0
        for step in range(frames - 1 + symbols):
            if step in places:
                path += label[t, u]
                u += 1
            else:
                path += blank[t, u]
                t += 1
        assert (t, u) == (frames - 1, symbols)
        total += math.exp(path + blank[t, u])
    return -math.log(total)


def _drawn(random, batch, frames, symbols):
    logits = random.normal(0, 2, (batch, frames, symbols + 1, 5))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logs[..., 0], logs[:, :, :symbols, 1]


@pytest.mark.parametrize("frames,symbols", [(1, 0), (4, 0), (1, 3), (5, 4), (3, 6)])
def test_the_loss_is_the_sum_over_all_paths(frames, symbols):
    random = np.random.default_rng(frames * 10 + symbols)
    blank, label = _drawn(random, 6, frames, symbols)
    num_frames = random.integers(1, frames + 1, 6)
    num_symbols = random.integers(0, symbols + 1, 6)
    num_frames[0], num_symbols[0], num_frames[1], num_symbols[1] = frames, symbols, 1, 0
    expected = [_by_paths(*row) for row in zip(blank, label, num_frames, num_symbols, strict=True)]
    with jax.enable_x64(True):
        found = jax.jit(transducer_loss)(blank, label, num_frames, num_symbols)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    in_fp32 = transducer_loss(*(jnp.asarray(x, jnp.float32) for x in (blank, label)), num_frames, num_symbols)
    np.testing.assert_allclose(in_fp32, expected, rtol=1e-5)


@pytest.mark.parametrize("frames,symbols", [(1, 0), (3, 0), (1, 2), (4, 3)])
def test_the_gradient_is_that_of_finite_differences(frames, symbols):
    random = np.random.default_rng(frames * 10 + symbols)
    blank, label = _drawn(random, 3, frames, symbols)
    num_frames, num_symbols = (
        np.array([frames, 1, max(frames - 1, 1)]),
        np.array([symbols, 0, min(symbols, 1)]),
    )
    weights = random.normal(size=3)

    @jax.jit
    def total(blank, label):
        return (weights * transducer_loss(blank, label, num_frames, num_symbols)).sum()

    with jax.enable_x64(True):
        found = jax.jit(jax.grad(total, (0, 1)))(blank, label)
        for of, values in zip(found, (blank, label), strict=True):
            differences = np.zeros(values.shape)
            for at in np.ndindex(values.shape):
                ends = []
                for sign in (1, -1):
                    moved = values.copy()
                    moved[at] += sign * 1e-5
                    ends.append(total(*((moved, label) if values is blank else (blank, moved))))
                differences[at] = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(of, differences, atol=1e-8)


def test_padding_changes_neither_loss_nor_gradient():
    random = np.random.default_rng(0)
    blank, label = _drawn(random, 2, 6, 4)
    frames, symbols = np.array([5, 3]), np.array([2, 4])

    def total(blank, label):
        return transducer_loss(blank, label, frames, symbols).sum()

    gradients = jax.jit(jax.grad(total, (0, 1)))
    plain = gradients(blank.astype(np.float32), label.astype(np.float32))
    wide = [np.full((2, 9, width), np.nan, np.float32) for width in (8, 7)]
    for row in range(2):
        t, u = frames[row], symbols[row]
        wide[0][row, :t, : u + 1], wide[1][row, :t, :u] = blank[row, :t, : u + 1], label[row, :t, :u]
    padded = gradients(*map(jnp.asarray, wide))
    for narrow, broad in zip(plain, padded, strict=True):
        np.testing.assert_allclose(broad[:, :6, : narrow.shape[2]], narrow, atol=1e-6)
        assert not np.asarray(broad[:, 6:]).any()


def test_a_long_lattice_is_summed_in_float32():
    """Of even probabilities there are (T - 1 + U over U) paths, each of so many steps and one."""
    frames, symbols = 250, 120
    half = math.log(0.5)
    shapes = (1, frames, symbols + 1), (1, frames, symbols)
    blank, label = (jnp.full(shape, half, jnp.float32) for shape in shapes)
    found = jax.jit(transducer_loss)(blank, label, jnp.array([frames]), jnp.array([symbols]))
    paths = math.lgamma(frames + symbols) - math.lgamma(symbols + 1) - math.lgamma(frames)
    assert found[0] == pytest.approx(-(paths + (frames + symbols) * half), rel=1e-5)


def test_memory_is_that_of_a_few_lattices():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 200, 101), (8, 200, 100))]
    counts = [jax.ShapeDtypeStruct((8,), jnp.int32)] * 2
    gradients = jax.grad(lambda *args: transducer_loss(*args).sum(), (0, 1))
    needed = jax.jit(gradients).lower(*shapes, *counts).compile().memory_analysis()
    assert needed.temp_size_in_bytes < 16 * 8 * 300 * 101 * 4
