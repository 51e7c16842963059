"""The random numbers against the standard library's own Mersenne Twister and plain transcriptions."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen_py.random import Mt19937

SEEDS = st.integers(0, 2**64 - 1)


class Plain:
    """One draw at a time: CPython's engine in the state that std::mt19937 starts in."""

    def __init__(self, seed: int) -> None:
        state = [seed % 2**32]
        for i in range(1, 624):
            state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + i) % 2**32)
        self._engine = random.Random()
        self._engine.setstate((3, (*state, 624), None))

    def word(self) -> int:
        return self._engine.getrandbits(32)

    def below(self, bound: int) -> int:
        while True:
            product = self.word() * bound
            if product % 2**32 >= (2**32 - bound) % bound:
                return product >> 32

    def double(self) -> float:
        low, high = self.word(), self.word()
        return (low + high * 2.0**32) / 2.0**64

    def shuffle(self, items: list) -> list:
        def swap(i: int, j: int) -> None:
            items[i], items[j] = items[j], items[i]

        size = len(items)
        if size < 2:
            return items
        if (2**32 - 1) // size < size:
            for i in range(1, size):
                swap(i, self.below(i + 1))
            return items
        start = 1
        if size % 2 == 0:
            swap(1, self.below(2))
            start = 2
        for i in range(start, size, 2):
            j, k = divmod(self.below((i + 1) * (i + 2)), i + 2)
            swap(i, j)
            swap(i + 1, k)
        return items


def test_the_standard_s_own_check_value():
    """[rand.predef] of the C++ standard: the 10,000th word of a default mt19937."""
    assert Mt19937().words(10_000)[-1] == 4123659995


@given(SEEDS, st.integers(0, 3000))
@settings(max_examples=30, deadline=None)
def test_words_in_any_portions(seed, count):
    ours, plain = Mt19937(seed), Plain(seed)
    expected = [plain.word() for _ in range(count + 5)]
    assert [*ours.words(count // 3), *ours.words(count - count // 3), *ours.words(5)] == expected


@given(SEEDS, st.integers(1, 2**32 - 1), st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_integers_below_one_bound(seed, bound, count):
    ours, plain = Mt19937(seed), Plain(seed)
    assert ours.integers_below(bound, count).tolist() == [plain.below(bound) for _ in range(count)]
    assert ours.words(1)[0] == plain.word()


@given(SEEDS, st.lists(st.integers(1, 2**32 - 1), max_size=200))
@settings(max_examples=100, deadline=None)
def test_integers_below_many_bounds(seed, bounds):
    """Bounds near 2**31 reject every other word."""
    ours, plain = Mt19937(seed), Plain(seed)
    assert ours.integers(np.array(bounds, np.uint64)).tolist() == [plain.below(bound) for bound in bounds]
    assert ours.words(1)[0] == plain.word()


@given(SEEDS, st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_shuffles_of_short_ranges(seed, size):
    ours, plain = Mt19937(seed), Plain(seed)
    assert ours.shuffled(np.arange(size)).tolist() == plain.shuffle(list(range(size)))
    assert ours.words(1)[0] == plain.word()


@pytest.mark.parametrize("size", [65_534, 65_535, 65_536, 65_537, 100_001])
def test_shuffles_where_the_method_changes(size):
    ours, plain = Mt19937(size), Plain(size)
    assert ours.shuffled(np.arange(size)).tolist() == plain.shuffle(list(range(size)))
    assert ours.words(1)[0] == plain.word()


@given(SEEDS, st.floats(0.001, 1e6))
@settings(max_examples=30, deadline=None)
def test_doubles_and_waiting_times(seed, rate):
    ours, plain = Mt19937(seed), Plain(seed)
    assert ours.doubles(20).tolist() == [plain.double() for _ in range(20)]
    gaps = [int(-math.log(1.0 - plain.double()) / rate * 1e9) for _ in range(20)]
    assert ours.exponential_ns(rate, 20).tolist() == gaps
