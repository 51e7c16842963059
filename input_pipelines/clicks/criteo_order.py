"""The order of MLPerf's DLRM train set: what the reference draws to shuffle it, and when.

The reference (facebookresearch/dlrm, data_utils.py) draws for each example of each day one of as many
buckets as there are days to train on, as large as these days, again if the bucket is full; then it
permutes each bucket. It draws from NumPy's legacy generator, which NumPy keeps as it is (NEP 19), one
number after the other; here many are drawn at once, and the generator is left where it would have been.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

_SEED = 123
_AT_ONCE = 2**22


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where the generator stands before each of these draws.

    Attributes:
        counts: examples of each day, [days]; the last is not for training.
        begins: place in bucket b at which day d's examples begin, [days - 1, buckets].
        keys, positions: states of the generator before each day's buckets are drawn, and then before
            each bucket is permuted, [2 (days - 1), 624] and [2 (days - 1)].
    """

    counts: np.ndarray
    begins: np.ndarray
    keys: np.ndarray
    positions: np.ndarray

    def buckets(self, day: int) -> np.ndarray:
        """The bucket of each example of a day, [count] uint8."""
        room = self.counts[:-1] - self.begins[day]
        return draw_buckets(self._generator(day), int(self.counts[day]), room)

    def permutation(self, bucket: int) -> np.ndarray:
        """Which of a bucket's examples comes first, second and so on, [count] int64."""
        return self._generator(len(self.counts) - 1 + bucket).permutation(int(self.counts[bucket]))

    def _generator(self, draw: int) -> np.random.RandomState:
        random = np.random.RandomState()
        random.set_state(("MT19937", self.keys[draw], int(self.positions[draw]), 0, 0.0))
        return random

    def save(self, file: IO[bytes]) -> None:
        np.savez(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> Plan:
        with np.load(path, allow_pickle=False) as fields:
            return cls(**{name: fields[name] for name in fields.files})


def make_plan(counts: Sequence[int]) -> Plan:
    """Draws what the reference draws, in its order, for days of so many examples."""
    sizes = np.array(counts[:-1])
    random = np.random.RandomState(_SEED)
    used = np.zeros(len(sizes), np.int64)
    begins, states = [], []
    for count in counts[:-1]:
        begins.append(used.copy())
        states.append(random.get_state(legacy=False)["state"])
        used += np.bincount(draw_buckets(random, count, sizes - used), minlength=len(sizes))
    random.randint(0, len(sizes), size=counts[-1])  # The reference draws for the last day too, for nothing.
    for count in counts[:-1]:
        states.append(random.get_state(legacy=False)["state"])
        random.permutation(count)
    keys, positions = ([state[part] for state in states] for part in ("key", "pos"))
    return Plan(np.array(counts), np.array(begins), np.array(keys), np.array(positions))


def draw_buckets(random: np.random.RandomState, count: int, room: np.ndarray) -> np.ndarray:
    """Draws a bucket for each example of a day, again where it is full.

    Args:
        random: is left where the reference would leave it.
        count: of examples, at most as many as there is room for.
        room: how many examples each bucket still takes, [buckets].

    Returns:
        [count] uint8.
    """
    chosen = np.empty(count, np.uint8)
    for start in range(0, count, _AT_ONCE):
        part = chosen[start : start + _AT_ONCE]
        part[:] = random.randint(0, len(room), size=len(part))
    room, start = room.copy(), 0
    while start < count:  # Each time as far as the next bucket becomes full.
        proposed = chosen[start : start + _AT_ONCE].copy()
        full = np.flatnonzero(room[proposed] == 0)
        state = random.get_state()
        proposed[full], draws = _draw_again(random, room, len(full))
        accepted = _accepted(proposed, room)
        chosen[start : start + accepted] = proposed[:accepted]
        room -= np.bincount(proposed[:accepted], minlength=len(room))
        start += accepted
        random.set_state(state)
        random.randint(0, len(room), size=draws[np.searchsorted(full, accepted)])
    return chosen


def _draw_again(random: np.random.RandomState, room: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws until `count` buckets have come that have room.

    Returns:
        The buckets, [count] uint8, and how many draws the first 0, 1, ... count of them took, [count + 1] int64.
    """
    buckets, draws, total = np.empty(0, np.uint8), np.zeros(1, np.int64), 0
    while len(buckets) < count:
        drawn = random.randint(0, len(room), size=2 * count)
        good = np.flatnonzero(room[drawn])
        buckets = np.concatenate([buckets, drawn[good].astype(np.uint8)])
        draws = np.concatenate([draws, good + total + 1])
        total += len(drawn)
    return buckets[:count], draws[: count + 1]


def _accepted(proposed: np.ndarray, room: np.ndarray) -> int:
    """How many of the proposed buckets can be taken until one of them has become full."""
    counts = np.bincount(proposed, minlength=len(room))
    filled = np.flatnonzero((counts >= room) & (room > 0))
    return min((int(np.flatnonzero(proposed == b)[room[b] - 1]) + 1 for b in filled), default=len(proposed))
