"""Prepared sets of sentence pairs: packed rows to train on, padded pairs to translate, and their vocabulary.

A folder holds `train_{source,source_segment,target,target_segment}.npy` [R, L], `eval_{source,target}.npy`
[N, L] and `vocabulary.txt`. Tokens are uint16 and segments uint8; each sentence ends with `subwords.END`.
The reference translations are the evaluation targets decoded, which gives back the text that was encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared, synthetic
from input_pipelines.base import InMemoryDataset
from input_pipelines.text import packing, subwords
from input_pipelines.text.packing import Ragged
from mlperf_jax.errors import UserError

VOCABULARY = "vocabulary.txt"
TOKEN, SEGMENT = np.dtype(np.uint16), np.dtype(np.uint8)
_TRAIN = {"source": TOKEN, "source_segment": SEGMENT, "target": TOKEN, "target_segment": SEGMENT}
_EVAL = {"source": TOKEN, "target": TOKEN}

Pairs = tuple[Ragged, Ragged]


class TranslationDataset(InMemoryDataset):
    """An `InMemoryDataset` of packed rows that knows its vocabulary."""

    vocabulary: subwords.Subwords


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


def synthetic_shapes(length: int, vocab_size: int, *, num_train: int, num_eval: int) -> synthetic.Shapes:
    """What `--synthetic_data` makes up in place of a prepared set."""
    spec = {name: ((length,), dtype) for name, dtype in _TRAIN.items()}
    limits = {"source": vocab_size, "target": vocab_size, "source_segment": 3, "target_segment": 3}
    return synthetic.Shapes(spec, limits, num_train=num_train, num_eval=num_eval)


def write(
    folder: Path, vocabulary: subwords.Subwords, train: Pairs, evaluation: Pairs, length: int
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
    sources, targets = train
    fits = np.maximum(sources.lengths, targets.lengths) <= length
    kept = np.flatnonzero(fits)
    rows = packing.pack(sources.lengths[kept], targets.lengths[kept], length)
    rows = [kept[row] for row in rows]
    tokens = 0
    for side, sequences in (("source", sources), ("target", targets)):
        arrays = [
            _created(folder, f"train_{side}{kind}", (len(rows), length), _TRAIN[side + kind])
            for kind in ("", "_segment")
        ]
        packing.fill(rows, sequences, *arrays)
        tokens += int(sequences.lengths[kept].sum())
    for side, sequences in zip(_EVAL, evaluation, strict=True):
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


def open_folder(folder: Path, what: str, options: Mapping[str, Any]) -> TranslationDataset:
    """Opens a prepared set.

    Args:
        folder: where `write` wrote it.
        what: its name, for logs.
        options: `max_length`, if there, must be what it was prepared with.

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
    sizes = {"train": manifest["num_train"], "eval": manifest["num_eval"]}
    arrays = {
        split: {
            name: _opened(folder / f"{split}_{name}.npy", (sizes[split], length), dtype)
            for name, dtype in fields.items()
        }
        for split, fields in (("train", _TRAIN), ("eval", _EVAL))
    }
    description = (
        f"{what}, {manifest['num_pairs']:,} train pairs packed into {sizes['train']:,} rows of {length} tokens "
        f"({100 * manifest['padding']:.1f}% padding) and {sizes['eval']:,} eval pairs"
    )
    dataset = TranslationDataset(
        arrays["train"], arrays["eval"], fake=manifest["fake"], description=description
    )
    dataset.vocabulary = subwords.read(folder / VOCABULARY)
    return dataset


def _opened(path: Path, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); prepare it again (python -m mlperf_jax.prepare)."
        ) from None
    if array.shape != shape or array.dtype != dtype:
        raise UserError(
            f"{path} holds {array.dtype} {array.shape} where {dtype} {shape} belongs; "
            "prepare it again (python -m mlperf_jax.prepare)."
        )
    return array
