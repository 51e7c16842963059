"""The official LoadGen's random numbers, bit for bit, drawn in bulk.

LoadGen draws from `std::mt19937` (32-bit) through the distributions of libstdc++. The
C++ standard fixes the engine but not the distributions, so these functions follow what
libstdc++ 11 and later do: Lemire's multiply-and-reject for integers (D. Lemire, "Fast
Random Integer Generation in an Interval", 2019), two draws for one index pair in
`std::shuffle` of short ranges, and two words, low word first, for a double.
"""

from __future__ import annotations

import math

import numpy as np

_WORD = 1 << 32
_MT_SIZE = 624
_DEFAULT_SEED = 5489  # std::mt19937's own, used where LoadGen never seeds.


class Mt19937:
    """`std::mt19937` seeded with `seed` mod 2**32.

    The engine is NumPy's, put into the state that Knuth's initialisation gives: NumPy
    itself seeds differently.
    """

    def __init__(self, seed: int = _DEFAULT_SEED) -> None:
        key = np.empty(_MT_SIZE, np.uint32)
        word = seed % _WORD
        for i in range(_MT_SIZE):
            key[i] = word
            word = (1812433253 * (word ^ (word >> 30)) + i + 1) % _WORD
        self._engine = np.random.MT19937()
        self._engine.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": _MT_SIZE}}
        self._spare = np.empty(0, np.uint64)  # words drawn but not yet used

    def words(self, count: int) -> np.ndarray:
        """The next `count` 32-bit words, `[count]` uint64."""
        words = self._peek(count)
        self._spare = self._spare[count:]
        return words

    def _peek(self, count: int) -> np.ndarray:
        missing = count - len(self._spare)
        if missing > 0:
            fresh = self._engine.random_raw(missing)
            self._spare = np.concatenate([self._spare, fresh]) if len(self._spare) else fresh
        return self._spare[:count]

    def integers(self, ranges: np.ndarray) -> np.ndarray:
        """One uniform integer below each of `ranges` (`[N]`, 1 to 2**32 - 1), `[N]` int64.

        A rejected word moves all later draws by one, so the words are taken in chunks,
        each redone from its first rejection on; the chunk follows how far the last one got.
        """
        ranges = np.asarray(ranges, np.uint64)
        rejected_below = (np.uint64(_WORD) - ranges) % ranges
        result = np.empty(len(ranges), np.int64)
        position, chunk = 0, 4096
        while position < len(ranges):
            stop = min(position + chunk, len(ranges))
            product = self._peek(stop - position) * ranges[position:stop]
            rejected = (product & np.uint64(_WORD - 1)) < rejected_below[position:stop]
            clean = not rejected.any()
            first = len(rejected) if clean else int(rejected.argmax())
            result[position : position + first] = product[:first] >> np.uint64(32)
            position += first
            self._spare = self._spare[first if clean else first + 1 :]
            chunk = 2 * chunk if clean else max(16, 2 * first)
        return result

    def integers_below(self, bound: int, count: int) -> np.ndarray:
        """`count` uniform integers below `bound`, `[count]` int64.

        All have the same range, so the accepted words in order are the answer.
        """
        threshold = np.uint64((_WORD - bound) % bound)
        parts: list[np.ndarray] = []
        missing = count
        while missing > 0:
            product = self.words(missing) * np.uint64(bound)
            accepted = product[(product & np.uint64(_WORD - 1)) >= threshold] >> np.uint64(32)
            parts.append(accepted.astype(np.int64))
            missing -= len(accepted)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def doubles(self, count: int) -> np.ndarray:
        """`count` uniform doubles in [0, 1), `[count]` float64 (`std::generate_canonical`)."""
        words = self.words(2 * count).astype(np.float64)
        values = (words[0::2] + words[1::2] * float(_WORD)) / float(_WORD) ** 2
        return np.minimum(values, math.nextafter(1.0, 0.0))

    def exponential_ns(self, rate: float, count: int) -> np.ndarray:
        """`count` waiting times of a Poisson process of `rate` per second, whole ns, `[count]` int64.

        The logarithm is the C library's, one by one: NumPy's vector logarithm may differ
        in the last bit, and the nanosecond then too.
        """
        logs = np.fromiter(map(math.log, (1.0 - self.doubles(count)).tolist()), np.float64, count)
        return (-logs / rate * 1e9).astype(np.int64)

    def shuffle_draws(self, size: int) -> np.ndarray:
        """The integers that `std::shuffle` of `size` elements draws, for `shuffled`."""
        return self.integers(_shuffle_ranges(size))

    def shuffled(self, values: np.ndarray) -> np.ndarray:
        """`values` (`[N]`) as `std::shuffle` leaves them, a new array."""
        return _apply_shuffle(values, self.shuffle_draws(len(values)))


def _pairwise(size: int) -> bool:
    """Whether libstdc++ gets two swap positions from one draw: (2**32 - 1) / size >= size."""
    return size > 0 and (_WORD - 1) // size >= size


def _shuffle_ranges(size: int) -> np.ndarray:
    if size < 2:
        return np.empty(0, np.uint64)
    if not _pairwise(size):
        return np.arange(2, size + 1, dtype=np.uint64)
    first = 2 if size % 2 == 0 else 1
    r = np.arange(first + 1, size, 2, dtype=np.uint64)
    pairs = r * (r + np.uint64(1))
    return np.concatenate([np.array([2], np.uint64), pairs]) if size % 2 == 0 else pairs


def _apply_shuffle(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    items = values.tolist()
    size = len(items)
    if size < 2:
        return values.copy()
    drawn = iter(draws.tolist())
    i = 1
    if not _pairwise(size):
        for i, j in enumerate(drawn, start=1):
            items[i], items[j] = items[j], items[i]
    else:
        if size % 2 == 0:
            j = next(drawn)
            items[1], items[j] = items[j], items[1]
            i = 2
        for draw in drawn:
            j, k = divmod(draw, i + 2)
            items[i], items[j] = items[j], items[i]
            items[i + 1], items[k] = items[k], items[i + 1]
            i += 2
    return np.array(items, values.dtype)
