"""Several pairs of sentences in one row of a batch, so that little of it is padding.

Krell et al., arXiv:2107.02027: attention is kept inside a sentence by segment ids, so a packed row has the
same loss as its sentences apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

MOST_SEGMENTS = 255  # segment ids are one byte


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths in one array.

    Attributes:
        values: all of them, one after the other.
        starts: [N + 1] int64; sequence n is `values[starts[n]:starts[n + 1]]`.
    """

    values: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], dtype: np.dtype) -> Ragged:
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        values = np.fromiter((v for sequence in sequences for v in sequence), dtype, int(lengths.sum()))
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]))

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def chosen(self, indices: np.ndarray) -> Ragged:
        """The sequences [M] that `indices` names, in its order."""
        parts = [self.values[self.starts[n] : self.starts[n + 1]] for n in indices]
        starts = np.concatenate([[0], np.cumsum(self.lengths[indices])])
        return Ragged(np.concatenate([self.values[:0], *parts]), starts)


def pack(sources: np.ndarray, targets: np.ndarray, length: int, most: int = MOST_SEGMENTS) -> list[list[int]]:
    """Distributes pairs over rows of `length` source and as many target tokens, in their order.

    Each goes to the row that it fills best (best fit), so rows are full but for what source and target of a
    row differ in length.

    Args:
        sources, targets: [N] lengths, none longer than `length`.
        length: of a row.
        most: pairs that a row may hold.

    Returns:
        The pairs of each row.
    """
    rows: list[list[int]] = []
    used: list[tuple[int, int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]  # open rows by what surely fits
    open_rooms = 0  # bit r: by_room[r] is not empty
    for pair, (source, target) in enumerate(zip(sources.tolist(), targets.tolist(), strict=True)):
        need = max(source, target)
        fitting = open_rooms >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                open_rooms &= ~(1 << room)
        else:
            row = len(rows)
            rows.append([])
            used.append((0, 0))
        rows[row].append(pair)
        used[row] = (used[row][0] + source, used[row][1] + target)
        room = length - max(used[row])
        if room and len(rows[row]) < most:
            by_room[room].append(row)
            open_rooms |= 1 << room
    return rows


def fill(rows: Iterable[Iterable[int]], sequences: Ragged, tokens: np.ndarray, segments: np.ndarray) -> None:
    """Writes packed rows.

    Args:
        rows: the sequences of each row.
        sequences: their tokens.
        tokens: [R, L] zeros, filled with tokens.
        segments: [R, L] zeros, filled with 1, 2, ... for the sequences of a row.
    """
    for row, members in enumerate(rows):
        at = 0
        for segment, member in enumerate(members, 1):
            start, stop = sequences.starts[member], sequences.starts[member + 1]
            tokens[row, at : at + stop - start] = sequences.values[start:stop]
            segments[row, at : at + stop - start] = segment
            at += stop - start
