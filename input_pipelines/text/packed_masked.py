"""Sequences with masked words, several in a row of a batch; see `input_pipelines.text.packing` and `models.bert`.

What is to be told is the same as of sequences apart: positions count from the row's beginning, and a row has as many
places for words as its sequences need. So the sums of losses and their weights are those of the batch as it was.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from input_pipelines.base import HostBatch, Spec
from input_pipelines.text import packing

PER_ROW = 3
"""Sequences that a row holds at most, as in Krell et al., arXiv:2107.02027: their third makes rows nearly full."""


def spec(sequence: Spec, words: int, per_row: int = PER_ROW) -> Spec:
    """What `packed` gives of rows [L] with places for W words, of sequences as `wikipedia.SPEC` has them."""
    shapes = {name: sequence[name] for name in ("tokens", "segment", "token_type")}
    shapes |= {name: ((words,), sequence[name][1]) for name in ("masked", "word", "word_weight")}
    return shapes | {
        "first": ((per_row,), np.dtype(np.uint16)),
        "is_random": ((per_row,), sequence["is_random"][1]),
        "weight": ((per_row,), np.dtype(np.float32)),
    }


def packed(
    sequences: Mapping[str, np.ndarray], rows: int, words: int, per_row: int = PER_ROW
) -> HostBatch | None:
    """Puts all sequences of a batch into fewer rows.

    Args:
        sequences: fields as `input_pipelines.text.wikipedia.SPEC` has them, of B sequences [B, L] with P words [B, P].
        rows: R, of the packed batch.
        words: W, places for words in a row.
        per_row: S, sequences in a row at most.

    Returns:
        The fields `tokens`, `segment` and `token_type` [R, L], `masked`, `word` and `word_weight` [R, W], and `first`,
        `is_random` and `weight` [R, S], the last being 1 where there is a sequence; None where they do not fit.
    """
    lengths = sequences["segment"].sum(1, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")  # the longest first, which leaves least room
    length = sequences["tokens"].shape[1]
    members = [order[row] for row in packing.pack(lengths[order], lengths[order], length, per_row)]
    asked = sequences["word_weight"] > 0
    if len(members) > rows or any(asked[row].sum() > words for row in members):
        return None
    batch: HostBatch = {
        name: np.zeros((rows, length), sequences[name].dtype) for name in ("tokens", "segment", "token_type")
    }
    batch |= {
        name: np.zeros((rows, words), sequences[name].dtype) for name in ("masked", "word", "word_weight")
    }
    batch |= {"first": np.zeros((rows, per_row), np.uint16), "weight": np.zeros((rows, per_row), np.float32)}
    batch["is_random"] = np.zeros((rows, per_row), sequences["is_random"].dtype)
    for row, row_members in enumerate(members):
        at = told = 0
        for place, member in enumerate(row_members):
            size, count = int(lengths[member]), int(asked[member].sum())
            here, there = slice(at, at + size), slice(told, told + count)
            for name in ("tokens", "token_type"):
                batch[name][row, here] = sequences[name][member, :size]
            batch["segment"][row, here] = place + 1
            batch["masked"][row, there] = sequences["masked"][member, asked[member]] + at
            for name in ("word", "word_weight"):
                batch[name][row, there] = sequences[name][member, asked[member]]
            batch["first"][row, place] = at
            batch["is_random"][row, place] = sequences["is_random"][member, 0]
            batch["weight"][row, place] = 1
            at, told = at + size, told + count
    return batch
