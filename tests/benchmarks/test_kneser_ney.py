"""Kneser-Ney against a slow transcription that counts with dictionaries."""

import collections
import math

import numpy as np
import pytest

from benchmarks import kneser_ney


def slow(train, history, token, vocabulary, order):
    """P(token | history) by the recursion of Chen and Goodman, 1999, equation 25."""

    def counts(size):
        grams = collections.Counter(tuple(train[n : n + size]) for n in range(len(train) - size + 1))
        if size == order:
            return grams
        longer = {tuple(train[n : n + size + 1]) for n in range(len(train) - size)}
        return collections.Counter(gram[1:] for gram in longer)

    below = 1 / vocabulary
    for size in range(1, order + 1):
        found = counts(size)
        context = tuple(history[len(history) - size + 1 :])
        follow = {gram[-1]: count for gram, count in found.items() if gram[:-1] == context}
        once, twice = (sum(count == n for count in found.values()) for n in (1, 2))
        discount = once / max(once + 2 * twice, 1)
        if follow:
            total = sum(follow.values())
            below = (max(follow.get(token, 0) - discount, 0) + discount * len(follow) * below) / total
    return below


@pytest.mark.parametrize("order", [2, 3])
def test_losses_are_those_of_the_recursion(order):
    random = np.random.default_rng(order)
    train, told = (np.minimum(random.geometric(0.3, size), 6) for size in (150, 12))
    found = kneser_ney.losses(train, told, 7, order)
    expected = [
        -math.log(slow(train.tolist(), told[:n].tolist(), int(told[n]), 7, order))
        for n in range(order - 1, len(told))
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # And they are probabilities.
    history = told[: order - 1].tolist()
    assert sum(slow(train.tolist(), history, token, 7, order) for token in range(7)) == pytest.approx(1)
