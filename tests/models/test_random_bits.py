"""Random bits by element: spread evenly, unlike one another, the same wherever they are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import random_bits


def bits(seed, count):
    """[count, 32] of the first numbers."""
    words = np.asarray(
        random_bits.words(random_bits.seed_of(jax.random.key(seed)), jnp.arange(count, dtype=jnp.uint32))
    )
    return np.unpackbits(words[:, None].view(np.uint8), axis=1)


def test_words_by_plain_integers():
    seed = np.asarray(random_bits.seed_of(jax.random.key(7))).tolist()
    for number in (0, 1, 12345, 2**32 - 1):
        x = number ^ seed[0]
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32 ^ seed[1]
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        assert int(random_bits.words(jnp.array(seed, jnp.uint32), jnp.uint32(number))) == x ^ x >> 16


@pytest.mark.parametrize("seed", [0, 1])
def test_bits_are_even_and_independent(seed):
    """Of a million words: every bit, every pair of bits, neighbours and rows apart, within five deviations."""
    count = 2**20
    of = bits(seed, count).astype(np.float32) * 2 - 1
    five = 5 / np.sqrt(count)
    assert np.abs(of.mean(0)).max() < five
    pairs = of.T @ of / count
    assert np.abs(pairs - np.eye(32)).max() < five
    for apart in (1, 2, 64, 256, 1024, 65536):
        pairs = of[apart:].T @ of[:-apart] / count
        assert np.abs(pairs).max() < five * 1.1


def test_one_seed_says_nothing_of_another():
    """Keys that were split, as those of layers are, and keys that differ in one bit."""
    keys = [*jax.random.split(jax.random.key(0), 6), *map(jax.random.key, range(4))]
    seeds = [random_bits.seed_of(key) for key in keys]
    numbers = jnp.arange(2**18, dtype=jnp.uint32)
    kept = np.stack([np.asarray(random_bits.kept(seed, numbers, 0.5)) for seed in seeds]) * 2.0 - 1
    alike = kept @ kept.T / len(numbers)
    assert np.abs(alike - np.eye(len(seeds))).max() < 5.5 / np.sqrt(len(numbers))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rows_and_columns_fall_at_the_rate(rate):
    keep = np.asarray(
        random_bits.kept(random_bits.seed_of(jax.random.key(3)), random_bits.numbers((1024, 1024)), rate)
    )
    for axis in (0, 1):
        share, deviation = 1 - keep.mean(axis), np.sqrt(rate * (1 - rate) / 1024)
        assert np.abs(share - rate).max() < 5 * deviation
        assert 0.85 < share.std() / deviation < 1.15  # as spread as chance would have it, no more and no less


def test_numbers_count_in_row_major_order():
    np.testing.assert_array_equal(random_bits.numbers((3, 4, 5)).reshape(-1), np.arange(60, dtype=np.uint32))


def test_the_gradient_drops_what_was_dropped():
    x, g = np.random.default_rng(0).normal(size=(2, 64, 32)).astype(np.float32)
    key = jax.random.key(1)
    for function in (random_bits.dropout, random_bits.dropped_relu):
        y, back = jax.vjp(lambda x, f=function: f(x, 0.4, key), x)
        kept = np.asarray(y) != 0
        assert 0.2 < kept.mean() < 0.7
        np.testing.assert_allclose(back(g)[0], np.where(kept, g / 0.6, 0), rtol=1e-6)
        np.testing.assert_allclose(y, np.where(kept, x / 0.6, 0), rtol=1e-6)


def test_without_a_key_a_relu_is_a_relu():
    x, g = np.random.default_rng(0).normal(size=(2, 64, 32)).astype(np.float32)
    for ours, expected in zip(
        jax.vjp(lambda x: random_bits.dropped_relu(x, 0.4, None), x), jax.vjp(jax.nn.relu, x), strict=True
    ):
        if callable(ours):
            ours, expected = ours(g)[0], expected(g)[0]
        np.testing.assert_array_equal(ours, expected)


def test_dropout_keeps_no_array_for_the_backward_pass():
    """But those that are there anyway: its own result, for a ReLU."""
    x = jax.ShapeDtypeStruct((128, 128), jnp.float32)

    def kept(function):
        _, back = jax.eval_shape(lambda x: jax.vjp(lambda x: function(x, 0.1, jax.random.key(0)), x), x)
        return sum(leaf.size for leaf in jax.tree.leaves(back))

    assert kept(random_bits.dropout) < 10
    assert kept(random_bits.dropped_relu) == 128 * 128


def test_bits_are_the_same_over_devices():
    from mlperf_jax.parallel import layout as layouts
    from mlperf_jax.parallel import mesh

    x = jnp.ones((8, 64, 32))

    def on(layout):
        @jax.jit
        def function(x):
            return random_bits.dropout(layouts.constrain(x, "batch", None, "mlp"), 0.3, jax.random.key(4))

        with layouts.use(layout):
            return np.asarray(function(x))

    tp = mesh.make_layout(mesh.find_strategy("tp"), {"data": 4, "model": 2})
    np.testing.assert_array_equal(on(tp), on(None))
