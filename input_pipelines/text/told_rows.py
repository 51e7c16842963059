"""Rows of tokens of which some only are asked for, such as an answer behind its question, kept in a prepared folder.

A row is read as its tokens and a 0 behind them, of which nothing is asked, so that a model looks at all L tokens that were
packed into it and tells L - 1 of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, prepared, synthetic
from input_pipelines.text.token_rows import TokenRows
from mlperf_jax.errors import UserError

Row = tuple[np.ndarray, np.ndarray]
"""Tokens [L] of any integers, and 1 where one is asked for."""

_TOKENS, _TOLD = np.dtype(np.int32), np.dtype(np.uint8)


class Behind:
    """A `base.Field` [N, length + 1]: the first numbers of rows [N, at least `length`], and a 0 behind them."""

    def __init__(self, rows: np.ndarray, length: int, dtype: np.dtype) -> None:
        self._rows, self._length = rows, length
        self.shape, self.dtype = (len(rows), length + 1), dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        found = np.zeros((len(index), self._length + 1), self.dtype)
        found[:, :-1] = self._rows[index, : self._length]
        return found


def pack(documents: Iterable[Row], length: int) -> list[Row]:
    """Rows of the documents one behind the other, without what is left over at the end."""
    tokens, told = (np.concatenate(parts) for parts in zip(*documents, strict=True))
    stop = len(tokens) // length * length
    return list(zip(tokens[:stop].reshape(-1, length), told[:stop].reshape(-1, length), strict=True))


def save(folder: Path, split: str, rows: Iterable[Row]) -> None:
    """Writes the rows of a split, all of one length and of tokens below 65,536."""
    tokens, told = (np.stack(parts) for parts in zip(*rows, strict=True))
    prepared.save_arrays(folder, split, {"tokens": tokens.astype(np.uint16), "told": told.astype(_TOLD)})


def load(
    folder: Path,
    length: int,
    *,
    vocabulary_size: int,
    tokenizer_file: Path | None = None,
    description: str,
    facts: Mapping[str, Any],
) -> TokenRows:
    """Opens what `save` wrote.

    Args:
        folder: prepared.
        length: tokens of a row that are read; not more than there are.
        vocabulary_size, tokenizer_file, description: see `TokenRows`.
        facts: of the manifest: `length`, `num_train`, `num_eval`, `fake`.

    Raises:
        UserError: it is damaged, or its rows are shorter.
    """
    if not 1 < length <= facts["length"]:
        raise UserError(
            f"Rows of {folder} have {facts['length']:,} tokens; give a --config.data.length of 2 to so many."
        )

    def field(split: str, name: str, stored: np.dtype, dtype: np.dtype) -> Behind:
        shape = (facts[f"num_{split}"], facts["length"])
        rows = prepared.open_array(folder / f"{split}_{name}.npy", shape, stored)
        if int(rows.max()) >= (vocabulary_size if name == "tokens" else 2):
            raise UserError(f"{folder} is damaged (it has {name} that cannot be); {prepared.AGAIN}")
        return Behind(rows, length, dtype)

    return _made(
        [field(split, "tokens", np.dtype(np.uint16), _TOKENS) for split in ("train", "eval")],
        [field(split, "told", _TOLD, _TOLD) for split in ("train", "eval")],
        vocabulary_size,
        bool(facts["fake"]),
        description,
        tokenizer_file,
    )


def open_synthetic(
    name: str, options: Mapping[str, Any], *, vocabulary_size: int, num_train: int, num_eval: int
) -> TokenRows:
    """What `--synthetic_data` makes up: random tokens in rows of the options' `length`, half of them asked for."""
    random, shape = np.random.default_rng(0), (64, options["length"] + 1)
    tokens = random.integers(vocabulary_size, size=shape, dtype=_TOKENS)
    told = random.integers(2, size=shape, dtype=_TOLD)
    told[:, 1], told[:, -1] = 1, 0
    counts = synthetic.counts(options, num_train, num_eval)
    return _made(
        [synthetic.Repeated(tokens, count) for count in counts],
        [synthetic.Repeated(told, count) for count in counts],
        vocabulary_size,
        True,
        synthetic.describe(name, *counts),
    )


def _made(
    tokens: Sequence[base.Field],
    told: Sequence[base.Field],
    vocabulary_size: int,
    fake: bool,
    description: str,
    tokenizer_file: Path | None = None,
) -> TokenRows:
    return TokenRows(
        *tokens,
        told=told,
        vocabulary_size=vocabulary_size,
        tokenizer_file=tokenizer_file,
        fake=fake,
        description=description,
    )
