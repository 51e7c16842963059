"""Sequences to pre-train BERT on: two pieces of text, of which the second may be another text's, and masked words.

As create_pretraining_data.py makes them (google-research/bert), of texts that are no lists of sentences: a text is cut
into pieces of L - 3 subwords, and a piece somewhere in its middle half into A and B; half of the pieces exchange their
B. Of the subwords 15 % are to be told; of these 80 % are masked, 10 % are any other, and 10 % stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipelines import synthetic
from input_pipelines.base import HostBatch, InMemoryDataset, Spec

SHARE = 0.15  # of subwords that are to be told
LEAST = 8  # subwords that a piece needs


def spec(length: int, masked: int) -> Spec:
    """Of a sequence: tokens, which of them are there, sentence A or B; positions of masked words, the words, 1 where
    there is one; and whether B does not follow A."""
    return {
        "tokens": ((length,), np.dtype(np.uint16)),
        "segment": ((length,), np.dtype(np.uint8)),
        "token_type": ((length,), np.dtype(np.uint8)),
        "masked": ((masked,), np.dtype(np.uint16)),
        "word": ((masked,), np.dtype(np.uint16)),
        "word_weight": ((masked,), np.dtype(np.float32)),
        "is_random": ((1,), np.dtype(np.uint8)),
    }


def most_masked(length: int, share: float = SHARE) -> int:
    """Words to be told of a full sequence."""
    return max(1, round((length - 3) * share))


def sequences(
    texts: Sequence[Sequence[int]],
    vocabulary: Sequence[str],
    length: int,
    random: np.random.Generator,
    *,
    share: float = SHARE,
) -> HostBatch:
    """All pieces of texts, masked.

    Args:
        texts: subwords of each.
        vocabulary: begins with `wordpiece.SPECIAL`.
        length: L, of a row.
        random: draws everything.
        share: of subwords that are to be told.

    Returns:
        [N, ...] by `spec(L, most_masked(L, share))`.
    """
    pieces = _pieces(texts, length - 3)
    sizes = np.array([len(piece) for _, piece in pieces])
    begins = (sizes * random.uniform(0.25, 0.75, len(pieces))).astype(int)  # of B
    other, is_random = _exchanged(np.array([text for text, _ in pieces]), random)
    tokens, types = (np.zeros((len(pieces), length), np.int64) for _ in range(2))
    ends = np.zeros(len(pieces), np.int64)
    for n, (_, piece) in enumerate(pieces):
        a, b = piece[: begins[n]], pieces[other[n]][1][begins[other[n]] :]
        b = b[: length - 3 - len(a)]
        ends[n] = len(a) + len(b) + 3
        tokens[n, : ends[n]] = [_CLASS, *a, _SEPARATOR, *b, _SEPARATOR]
        types[n, len(a) + 2 : ends[n]] = 1
    return _masked(tokens, ends, len(vocabulary), random, share) | {
        "token_type": types.astype(np.uint8),
        "is_random": is_random[:, None].astype(np.uint8),
    }


_CLASS, _SEPARATOR, _MASK, _FIRST = 2, 3, 4, 5  # places in `wordpiece.SPECIAL`, and what follows it


def _pieces(texts: Sequence[Sequence[int]], size: int) -> list[tuple[int, Sequence[int]]]:
    """Number of its text, and subwords, of each piece."""
    cut = ((n, text[i : i + size]) for n, text in enumerate(texts) for i in range(0, len(text), size))
    return [(n, piece) for n, piece in cut if len(piece) >= LEAST]


def _exchanged(texts: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The piece whose B each has [N], and where that is another text's [N] bool."""
    own = np.arange(len(texts))
    chosen = random.permutation(len(texts))[: len(texts) // 2]
    other = own.copy()
    other[chosen] = np.roll(chosen, 1)
    other = np.where(texts[other] == texts, own, other)
    return other, other != own


def _masked(
    tokens: np.ndarray, ends: np.ndarray, known: int, random: np.random.Generator, share: float
) -> HostBatch:
    """Chooses what is to be told of rows [N, L] that end at `ends` [N], and hides it."""
    count, length = tokens.shape
    most = most_masked(length, share)
    usable = tokens >= _FIRST
    asked = np.clip(np.round((ends - 3) * share).astype(int), 1, most)
    order = np.argsort(np.where(usable, random.random(tokens.shape), 2), 1)[:, :most]
    told = np.arange(most) < asked[:, None]
    places = np.sort(np.where(told, order, length), 1)
    places = np.where(told, places, 0)
    words = np.where(told, np.take_along_axis(tokens, places, 1), 0)
    draw = random.random(places.shape)
    shown = np.where(
        draw < 0.8, _MASK, np.where(draw < 0.9, words, random.integers(_FIRST, known, places.shape))
    )
    seen = tokens.copy()
    rows = np.broadcast_to(np.arange(count)[:, None], places.shape)
    seen[rows[told], places[told]] = shown[told]
    return {
        "tokens": seen.astype(np.uint16),
        "segment": (np.arange(length) < ends[:, None]).astype(np.uint8),
        "masked": places.astype(np.uint16),
        "word": words.astype(np.uint16),
        "word_weight": told.astype(np.float32),
    }


def open_synthetic(
    name: str,
    train_spec: Spec,
    eval_spec: Spec,
    known: int,
    options: Mapping[str, Any],
    *,
    num_train: int,
    num_eval: int,
) -> InMemoryDataset:
    """What `--synthetic_data` makes up: full rows of random words, a few of them repeated.

    Args:
        name: of the set that it stands for.
        train_spec, eval_spec: of its sequences.
        known: words of the vocabulary.
        options: `num_train` and `num_eval`, which replace the set's own.
        num_train, num_eval: of that set.
    """
    num_train, num_eval = synthetic.counts(options, num_train, num_eval)
    train, evaluation = (
        {
            field: synthetic.Repeated(values.astype(spec[field][1]), count)
            for field, values in _made_up(spec, known).items()
        }
        for spec, count in ((train_spec, num_train), (eval_spec, num_eval))
    )
    description = synthetic.describe(name, num_train, num_eval)
    return InMemoryDataset(train, evaluation, fake=True, description=description)


def _made_up(spec: Spec, known: int) -> HostBatch:
    (length,), (masked,) = spec["tokens"][0], spec["masked"][0]
    random, few = np.random.default_rng(0), 64
    return {
        "tokens": random.integers(_FIRST, known, (few, length)),
        "segment": np.ones((few, length)),
        "token_type": np.tile(np.arange(length) >= length // 2, (few, 1)),
        "masked": np.sort(random.permuted(np.tile(np.arange(1, length), (few, 1)), axis=1)[:, :masked], 1),
        "word": random.integers(_FIRST, known, (few, masked)),
        "word_weight": np.ones((few, masked)),
        "is_random": random.integers(2, size=(few, 1)),
    }
