"""Texts with a label each: words as numbers, in batches as wide as a width that holds the longest of them.

Words are cut as in the reference's data package (PaddlePaddle, python/paddle/dataset/imdb.py): punctuation removed,
lower case, split at white space; its vocabulary holds the words that occur more often than a cutoff, the most
frequent first, and `<unk>` last. The package pads nothing: a text keeps its length. Here shapes are fixed, so
rows are filled up with 0, and `length` says what of a row is text.
"""

from __future__ import annotations

import collections
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, prepared, synthetic
from mlperf_jax.errors import UserError

UNKNOWN = b"<unk>"
_INT32 = np.dtype(np.int32)
_DELETED = string.punctuation.encode()


def words(text: bytes) -> list[bytes]:
    """The words of a text.

    >>> words(b"It's not <br />bad.")
    [b'its', b'not', b'br', b'bad']
    """
    return text.translate(None, _DELETED).lower().split()


def vocabulary(texts: Iterable[Sequence[bytes]], cutoff: int) -> dict[bytes, int]:
    """Word -> number, of those that occur more than `cutoff` times, by falling count and then by name."""
    counts = collections.Counter(word for text in texts for word in text)
    kept = sorted((-count, word) for word, count in counts.items() if count > cutoff)
    return {word: number for number, (_, word) in enumerate([*kept, (0, UNKNOWN)])}


def numbered(text: Sequence[bytes], known: Mapping[bytes, int]) -> list[int]:
    """The numbers of a text's words; of an empty text one unknown word."""
    return [known.get(word, known[UNKNOWN]) for word in text] or [known[UNKNOWN]]


Encoded = tuple[list[list[int]], list[int]]
"""Texts as numbers, and their labels."""


def save(folder: Path, train: Encoded, evaluation: Encoded, known: Mapping[bytes, int]) -> dict[str, Any]:
    """Writes the arrays of a set into a folder, and returns the facts for its manifest."""
    facts: dict[str, Any] = {"vocabulary_size": len(known)}
    for split, (texts, labels) in (("train", train), ("eval", evaluation)):
        fields = {
            "words": np.concatenate([np.array(text, np.int32) for text in texts]),
            "start": np.cumsum([0, *map(len, texts)]).astype(np.int32),
            "label": np.array(labels, np.int32),
        }
        prepared.save_arrays(folder, split, fields)
        facts |= {f"num_{split}": len(texts), f"{split}_words": len(fields["words"])}
    (folder / "vocabulary.txt").write_bytes(b"".join(word + b"\n" for word in known))
    return facts


def load(folder: Path, name: str, widths: Sequence[int]) -> LabelledTexts:
    """Opens a prepared set.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    facts = prepared.read_manifest(folder)
    size = facts["vocabulary_size"]
    splits = {}
    for split in ("train", "eval"):
        count, num_words = facts[f"num_{split}"], facts[f"{split}_words"]
        shapes = {"words": (num_words,), "start": (count + 1,), "label": (count,)}
        arrays = {
            field: prepared.open_array(folder / f"{split}_{field}.npy", shape, _INT32)
            for field, shape in shapes.items()
        }
        start = np.asarray(arrays["start"])
        whole = type(size) is int and start[0] == 0 and start[-1] == num_words and (np.diff(start) > 0).all()
        if not whole or num_words and not 0 <= arrays["words"].min() <= arrays["words"].max() < size:
            raise UserError(f"{folder} is damaged (its counts do not fit); {prepared.AGAIN}")
        splits[split] = Texts(**arrays)
    return LabelledTexts(
        splits["train"], splits["eval"], vocabulary_size=size, widths=widths, fake=facts["fake"], name=name
    )


class Texts:
    """Texts in one array.

    Attributes:
        words: [W] int32, text after text.
        start: [N + 1] int32.
        label: [N] int32.
        length: [N] int32, at least 1.
    """

    def __init__(self, words: np.ndarray, start: np.ndarray, label: np.ndarray) -> None:
        self.words, self.start, self.label = words, start, label
        self.length = np.diff(start)

    def __len__(self) -> int:
        return len(self.label)

    def rows(self, indices: np.ndarray, width: int) -> np.ndarray:
        """Texts [B] as [B, width], what is longer cut off, filled up with 0."""
        rows = np.zeros((len(indices), width), np.int32)
        for row, index in zip(rows, indices, strict=True):
            text = self.words[self.start[index] : self.start[index + 1]][:width]
            row[: len(text)] = text
        return rows


class LabelledTexts(base.Dataset):
    """A data set of texts: `words` [B, W], `length` and `label`, int32 each.

    Train batches are made of the global stream, whatever the lengths, and are as wide as the longest needs.
    Evaluation batches follow the lengths, so that few are wide.

    Attributes:
        vocabulary_size: V.
        widths: that batches have, ascending; texts longer than the last are cut.
        train, evaluation: the texts.
    """

    def __init__(
        self,
        train: Texts,
        evaluation: Texts,
        *,
        vocabulary_size: int,
        widths: Sequence[int],
        fake: bool,
        name: str,
    ) -> None:
        self.train, self.evaluation = train, evaluation
        self.vocabulary_size, self.widths = vocabulary_size, tuple(widths)
        self._order = np.argsort(evaluation.length, kind="stable")
        spec = {"words": ((self.widths[-1],), _INT32), "length": ((), _INT32), "label": ((), _INT32)}
        super().__init__(
            num_train=len(train),
            num_eval=len(evaluation),
            train_spec=spec,
            eval_spec=spec,
            fake=fake,
            description=f"{name}, {len(train):,} train and {len(evaluation):,} eval texts, {vocabulary_size:,} words",
        )

    def width(self, length: int) -> int:
        """The least of the widths that holds a text of so many words, or the last."""
        return next((width for width in self.widths if width >= length), self.widths[-1])

    def read_train(self, start: int, stop: int, seed: int) -> base.HostBatch:
        return self._fields(self.train, self._at(start, stop, seed), self.widths[-1])

    def _train_batch(self, step: int, *, seed: int, batch_size: int, rows: slice) -> base.HostBatch:
        examples = self._at(step * batch_size, (step + 1) * batch_size, seed)
        return self._fields(self.train, examples[rows], self.width(self.train.length[examples].max()))

    def _at(self, start: int, stop: int, seed: int) -> np.ndarray:
        return base.examples_at(np.arange(start, stop), seed=seed, num_examples=self.num_train)

    def _eval_batch(self, index: int, *, batch_size: int, rows: slice) -> base.HostBatch:
        examples = self._order[index * batch_size : (index + 1) * batch_size]
        width = self.width(self.evaluation.length[examples].max())
        return base.with_mask(self._fields(self.evaluation, examples[rows], width), rows.stop - rows.start)

    def _fields(self, texts: Texts, examples: np.ndarray, width: int) -> base.HostBatch:
        return {
            "words": texts.rows(examples, width),
            "length": np.minimum(texts.length[examples], width).astype(np.int32),
            "label": np.asarray(texts.label[examples]),
        }

    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> base.HostBatch:
        width = self.width(self.evaluation.length[indices].max(initial=1))
        read = self._fields(self.evaluation, indices, width)
        return {name: read[name] for name in fields}


def made_up(count: int, longest: int, vocabulary_size: int, random: np.random.Generator) -> Encoded:
    """Texts of random words, half of them of either label, most of them short."""
    lengths = np.clip(random.lognormal(np.log(longest / 8), 0.7, count).astype(int), 1, longest)
    texts = [random.integers(vocabulary_size, size=length).tolist() for length in lengths]
    return texts, (np.arange(count) % 2).tolist()


def open_synthetic(
    name: str, options: Mapping[str, Any], *, num_train: int, num_eval: int, vocabulary_size: int
) -> LabelledTexts:
    """What `--synthetic_data` makes up: texts of random words, a few of them repeated."""
    widths, random = options["widths"], np.random.default_rng(0)
    num_train, num_eval = synthetic.counts(options, num_train, num_eval)

    def texts(count: int) -> Texts:
        few, _ = made_up(256, widths[-1], vocabulary_size, random)
        picked = [few[i % 256] for i in range(count)]
        start = np.cumsum([0, *map(len, picked)]).astype(np.int32)
        return Texts(np.concatenate(picked).astype(np.int32), start, np.arange(count, dtype=np.int32) % 2)

    return LabelledTexts(
        texts(num_train),
        texts(num_eval),
        vocabulary_size=vocabulary_size,
        widths=widths,
        fake=True,
        name=f"synthetic data shaped as {name}",
    )
