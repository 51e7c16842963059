"""Rows of tokens to tell the next of, cut out of long streams in which texts follow each other.

A row of L + 1 tokens asks for the last L of them; the next row begins with the token that it ends with, so that every
token but a stream's first is asked for once. Texts are packed back to back: neither is a row filled up, nor does
anything say where a text begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, synthetic
from input_pipelines.text import byte_pairs

_INT32 = np.dtype(np.int32)


class Rows:
    """A `base.Field` [N, length + 1] int32 of streams of tokens, each an array [T] of any integers."""

    dtype = _INT32

    def __init__(self, streams: Sequence[np.ndarray], length: int, count: int | None = None) -> None:
        """Opens the rows.

        Args:
            streams: a row lies in one of them.
            length: L.
            count: of the first rows, where not all are wanted.
        """
        self._streams, self._length = list(streams), length
        self._ends = np.cumsum([max(len(stream) - 1, 0) // length for stream in streams])
        all_rows = int(self._ends[-1]) if len(self._ends) else 0
        self._count = all_rows if count is None else min(count, all_rows)
        self.shape = (self._count, length + 1)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        rows = np.empty((len(index), self._length + 1), _INT32)
        for row, number in zip(rows, index, strict=True):
            at = int(np.searchsorted(self._ends, number, "right"))
            first = int(number) - (int(self._ends[at - 1]) if at else 0)
            row[:] = self._streams[at][first * self._length : (first + 1) * self._length + 1]
        return rows


class TokenRows(base.InMemoryDataset):
    """A data set of `tokens` [B, L + 1] int32, and of `told` [B, L + 1] uint8 where some of them only are asked for.

    Attributes:
        vocabulary_size: V; tokens are below it.
        bytes_per_token: of the evaluation texts; 0 where it is not known.
        tokenizer_file: what `byte_pairs.read` reads; None where it is not known.
        text_of: gives the text of tokens by it; None without.
    """

    def __init__(
        self,
        train: base.Field,
        evaluation: base.Field,
        *,
        told: Sequence[base.Field] = (),
        vocabulary_size: int,
        bytes_per_token: float = 0.0,
        tokenizer_file: Path | None = None,
        fake: bool,
        description: str,
    ) -> None:
        fields = [{"tokens": train}, {"tokens": evaluation}]
        for split, asked in zip(fields, told, strict=False):
            split["told"] = asked
        super().__init__(*fields, fake=fake, description=description)
        self.vocabulary_size, self.bytes_per_token = vocabulary_size, bytes_per_token
        self.tokenizer_file = tokenizer_file
        self.text_of = byte_pairs.decoder(tokenizer_file) if tokenizer_file else None


def open_synthetic(
    name: str, options: Mapping[str, Any], *, vocabulary_size: int, num_train: int, num_eval: int
) -> TokenRows:
    """What `--synthetic_data` makes up: random tokens in rows of the options' `length`."""
    random = np.random.default_rng(0)
    some = random.integers(vocabulary_size, size=(64, options["length"] + 1), dtype=np.int32)
    num_train, num_eval = synthetic.counts(options, num_train, num_eval)
    return TokenRows(
        synthetic.Repeated(some, num_train),
        synthetic.Repeated(some, num_eval),
        vocabulary_size=vocabulary_size,
        fake=True,
        description=synthetic.describe(name, num_train, num_eval),
    )
