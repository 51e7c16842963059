"""Prepared sets of sentence pairs: packed rows to train on, padded pairs to translate, and their vocabulary.

A folder holds `train_{source,source_segment,target,target_segment}.npy` [R, L], `eval_{source,target}.npy`
[N, L] and `vocabulary.txt`. Tokens are uint16 and segments uint8; each sentence ends with `subwords.END`.
The reference translations are the evaluation targets decoded, which gives back the text that was encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from input_pipelines import prepared, progress, synthetic
from input_pipelines.base import Field, InMemoryDataset, Spec
from input_pipelines.text import packing, subwords
from input_pipelines.text.packing import Ragged
from mlperf_jax.errors import UserError

VOCABULARY = "vocabulary.txt"
TOKEN, SEGMENT = np.dtype(np.uint16), np.dtype(np.uint8)
_SIDES = ("source", "target")
_DISTINCT, _MARKS = 64, TOKEN.type(4)  # of made-up examples; tokens below are no words in any vocabulary

Pairs = tuple[Ragged, Ragged]


class Vocabulary(Protocol):
    """What tokens mean."""

    def __len__(self) -> int: ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first end, if there is one."""

    def write(self, path: Path) -> None:
        """Writes a vocabulary file."""


class TranslationDataset(InMemoryDataset):
    """Packed rows, and what their tokens mean.

    Attributes:
        vocabulary: None of random tokens.
        references: the translations that are right, as people wrote them; empty where the evaluation targets
            decoded are these.
    """

    def __init__(
        self,
        vocabulary: Vocabulary | None,
        train: Mapping[str, Field],
        evaluation: Mapping[str, Field],
        *,
        fake: bool,
        description: str,
        references: Sequence[str] = (),
    ) -> None:
        super().__init__(train, evaluation, fake=fake, description=description)
        self.vocabulary, self.references = vocabulary, references


def _train_spec(length: int) -> Spec:
    row = (length,)
    return {
        "source": (row, TOKEN),
        "source_segment": (row, SEGMENT),
        "target": (row, TOKEN),
        "target_segment": (row, SEGMENT),
    }


def _eval_spec(length: int) -> Spec:
    return {side: ((length,), TOKEN) for side in _SIDES}


def encode(vocabulary: subwords.Subwords, pairs: Iterable[tuple[str, str]]) -> Pairs:
    """Encodes sources and targets, each with an end."""
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    for pair in pairs:
        for side, text in zip(sides, pair, strict=True):
            side.append([*vocabulary.encode(text), subwords.END])
    return Ragged.of(sides[0], TOKEN), Ragged.of(sides[1], TOKEN)


def at_most(pairs: Pairs, length: int) -> Pairs:
    """The pairs of which neither side has more than `length` tokens."""
    kept = np.flatnonzero(np.maximum(pairs[0].lengths, pairs[1].lengths) <= length)
    return pairs[0].chosen(kept), pairs[1].chosen(kept)


def open_synthetic(
    name: str, length: int, vocab_size: int, options: Mapping[str, Any], *, num_train: int, num_eval: int
) -> TranslationDataset:
    """What `--synthetic_data` makes up in place of a prepared set: rows of three sentences, full of words."""

    def make(train: Mapping[str, Field], evaluation: Mapping[str, Field], **facts: Any) -> TranslationDataset:
        sets = (
            {name: _sound(name, field) for name, field in fields.items()} for fields in (train, evaluation)
        )
        return TranslationDataset(None, *sets, **facts)

    return synthetic.open_dataset(
        make,
        name,
        _train_spec(length),
        {"source": vocab_size, "target": vocab_size, "source_segment": 1, "target_segment": 1},
        num_train=num_train,
        num_eval=num_eval,
        options=options,
    )


def _sound(name: str, field: Field) -> Field:
    """Random tokens without those that stand for no word; segments as rows have them."""
    values = field[np.arange(min(len(field), _DISTINCT))]
    if name.endswith("_segment"):
        length = values.shape[1]
        values = np.broadcast_to(np.arange(length) * 3 // length + 1, values.shape).astype(SEGMENT)
    else:
        values = np.maximum(values, _MARKS)
    return synthetic.Repeated(values, len(field))


def write(
    folder: Path, vocabulary: Vocabulary, train: Pairs, evaluation: Pairs, length: int
) -> dict[str, Any]:
    """Packs and writes a set; returns facts for its manifest.

    Training pairs of which one side has more than `length` tokens are discarded, as the benchmark's rules
    have it.

    Args:
        folder: empty.
        vocabulary: what the tokens mean.
        train, evaluation: sources and targets, each sentence with its end.
        length: L.

    Raises:
        UserError: an evaluation sentence has more than `length` tokens.
    """
    with progress.step(f"packing {len(train[0]):,} pairs"):
        return _write(folder, vocabulary, train, evaluation, length)


def _write(
    folder: Path, vocabulary: Vocabulary, train: Pairs, evaluation: Pairs, length: int
) -> dict[str, Any]:
    sources, targets = train
    fits = np.maximum(sources.lengths, targets.lengths) <= length
    kept = np.flatnonzero(fits)
    rows = [kept[row] for row in packing.pack(sources.lengths[kept], targets.lengths[kept], length)]
    tokens = 0
    for side, sequences in zip(_SIDES, train, strict=True):
        shape = (len(rows), length)
        packing.fill(
            rows,
            sequences,
            _created(folder, f"train_{side}", shape, TOKEN),
            _created(folder, f"train_{side}_segment", shape, SEGMENT),
        )
        tokens += int(sequences.lengths[kept].sum())
    for side, sequences in zip(_SIDES, evaluation, strict=True):
        if max(sequences.lengths, default=0) > length:
            raise UserError(
                f"An evaluation sentence has {max(sequences.lengths)} tokens; at most {length} can be."
            )
        array = _created(folder, f"eval_{side}", (len(sequences), length), TOKEN)
        for row, (start, stop) in enumerate(zip(sequences.starts, sequences.starts[1:], strict=False)):
            array[row, : stop - start] = sequences.values[start:stop]
    vocabulary.write(folder / VOCABULARY)
    return {
        "num_pairs": len(sources),
        "num_discarded": len(sources) - len(kept),
        "num_train": len(rows),
        "num_eval": len(evaluation[0]),
        "length": length,
        "vocab_size": len(vocabulary),
        "padding": 1 - tokens / (2 * len(rows) * length),
    }


def _created(folder: Path, name: str, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)


def open_folder(
    folder: Path,
    what: str,
    options: Mapping[str, Any],
    *,
    vocabulary: Vocabulary | None = None,
    references: Sequence[str] = (),
) -> TranslationDataset:
    """Opens a prepared set.

    Args:
        folder: where `write` wrote it.
        what: its name, for logs.
        options: `max_length`, if there, must be what it was prepared with.
        vocabulary: where it is not one of `subwords`.
        references: see `TranslationDataset`.

    Raises:
        UserError: it is not prepared, damaged, or prepared with another length.
    """
    manifest = prepared.read_manifest(folder)
    length = manifest["length"]
    if options.get("max_length", length) != length:
        raise UserError(
            f"{folder} was prepared with rows of {length} tokens, so --config.data.max_length cannot be "
            f"{options['max_length']}; leave it at {length}."
        )
    num_train, num_eval = manifest["num_train"], manifest["num_eval"]
    description = (
        f"{what}, {manifest['num_pairs']:,} train pairs packed into {num_train:,} rows of {length} tokens "
        f"({100 * manifest['padding']:.1f}% padding) and {num_eval:,} eval pairs"
    )
    return TranslationDataset(
        vocabulary or subwords.read(folder / VOCABULARY),
        prepared.open_arrays(folder, "train", num_train, _train_spec(length)),
        prepared.open_arrays(folder, "eval", num_eval, _eval_spec(length)),
        fake=manifest["fake"],
        description=description,
        references=references,
    )
