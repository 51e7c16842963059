"""What is drawn: against NumPy's softmax, brute force over tokens sorted by chance, and frequencies."""

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.tokens.sampling import FAILED, Wishes, next_tokens

VOCABULARY = 7
sample = jax.jit(lambda logits, wishes, made: next_tokens(logits, wishes, made, (2, 5)))


def wishes(count, temperature=1.0, top_p=1.0, min_tokens=0):
    return Wishes(
        np.full(count, temperature, np.float32),
        np.full(count, top_p, np.float32),
        np.arange(count, dtype=np.uint32),
        np.full(count, min_tokens, np.int32),
    )


def allowed(logits, temperature, top_p):
    """Chances of the fewest likeliest tokens that have `top_p` together, and of no others."""
    chances = np.exp(logits / temperature - (logits / temperature).max())
    chances /= chances.sum()
    kept, total = np.zeros_like(chances), 0.0
    for token in np.argsort(-chances):
        if total >= top_p:
            break
        kept[token] = chances[token]
        total += chances[token]
    return kept / kept.sum()


def test_frequencies_are_the_softmaxs():
    random, count = np.random.default_rng(0), 20_000
    for temperature, top_p in ((1.0, 1.0), (0.7, 1.0), (2.0, 0.8), (1.0, 0.3)):
        logits = random.normal(size=VOCABULARY).astype(np.float32) * 2
        rows = jnp.broadcast_to(logits, (count, VOCABULARY))
        found = np.asarray(sample(rows, wishes(count, temperature, top_p), np.zeros(count, np.int32)))
        expected = allowed(logits.astype(float), temperature, top_p)
        share = np.bincount(found, minlength=VOCABULARY) / count
        assert (share[expected == 0] == 0).all()
        # Five deviations of a binomial.
        assert (np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / count)).all()


def test_a_token_depends_on_its_own_text_alone():
    random = np.random.default_rng(1)
    logits = random.normal(size=(8, VOCABULARY)).astype(np.float32)
    asked, made = wishes(8, top_p=0.9), random.integers(5, size=8).astype(np.int32)
    found = np.asarray(sample(logits, asked, made))
    order = random.permutation(8)
    moved = sample(logits[order], Wishes(*(part[order] for part in asked)), made[order])
    np.testing.assert_array_equal(moved, found[order])
    # With other neighbours, and where all others take the likeliest.
    alone = asked._replace(temperature=np.float32([1, *[0] * 7]), top_p=np.float32([0.9, *[1] * 7]))
    assert sample(logits, alone, made)[0] == found[0]
    # The next token of the same text is another draw.
    rows = np.repeat(logits[:1], 8, 0)
    same = asked._replace(seed=np.zeros(8, np.uint32))
    assert len(set(np.asarray(sample(rows, same, np.arange(8, dtype=np.int32))).tolist())) > 1


def test_the_likeliest_the_ends_and_what_is_no_number():
    logits = np.float32(
        [[0, 1, 9, 2, 3, 8, 4], [0, 1, 9, 2, 3, 8, 4], [0, 1, np.nan, 2, 3, 8, 4], [np.inf] * 7]
    )
    for temperature in (0.0, 1e-4):
        found = sample(logits, wishes(4, temperature, min_tokens=2), np.int32([2, 1, 2, 2]))
        # Early on, neither of both ends is taken, likely as they are.
        assert np.asarray(found).tolist() == [2, 6, FAILED, FAILED]


def test_without_a_temperature_the_first_of_the_likeliest_is_taken():
    random = np.random.default_rng(3)
    for vocabulary in (1, 7, 256, 300, 1024, 49_152):
        logits = random.integers(4, size=(16, vocabulary)).astype(np.float32)  # many are alike
        logits[3], logits[4, -1] = -np.inf, 9
        logits[3, vocabulary // 2] = -5
        found = jax.jit(lambda x: next_tokens(x, wishes(16, temperature=0.0), np.zeros(16, np.int32), ()))(
            logits
        )
        np.testing.assert_array_equal(found, logits.argmax(-1))
