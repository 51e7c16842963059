"""Masked words told by counts of neighbours: the accuracy that BERT's mini is held against.

    python -m benchmarks.neighbours

Of a word the two beside it are looked at, as they stand in the masked row: told is what stood most often between them
in training, else after the left one, else before the right one, else the most frequent of all. A tenth of the words to
be told are not hidden, and a tenth are replaced by others; the last figure is of telling what is shown wherever it is
not the mask.
"""

from __future__ import annotations

import sys

import numpy as np

import input_pipelines
from input_pipelines.base import Dataset, HostBatch
from input_pipelines.text import newsgroups

_MASK, _FIRST = 4, 5  # of subwords, and the first that is no mark
_VOCABULARY = newsgroups.VOCAB_SIZE


def main() -> int:
    data_dir = input_pipelines.default_data_dir()
    print(f"Ready: {input_pipelines.prepare('newsgroups', data_dir)}")
    for name, found in accuracies(input_pipelines.open_dataset("newsgroups", data_dir, {})).items():
        print(f"{name}: accuracy {found:.4f}")
    return 0


def accuracies(dataset: Dataset) -> dict[str, float]:
    """Share of the evaluation set's words that each rule tells."""
    names = list(newsgroups.EVAL_SPEC)
    rows = whole(dataset.read_train(0, dataset.num_train, seed=0))
    left, word, right = (rows[:, n : rows.shape[1] - 2 + n].ravel() for n in range(3))
    inside = word >= _FIRST
    left, word, right = left[inside], word[inside], right[inside]
    most_frequent = int(np.bincount(word).argmax())

    evaluation = dataset.read_eval(np.arange(dataset.num_eval), names)
    asked = evaluation["word_weight"] > 0
    tokens = evaluation["tokens"].astype(np.int64)
    place = evaluation["masked"].astype(np.int64)
    shown, before, after = (np.take_along_axis(tokens, place + by, 1)[asked] for by in (0, -1, 1))
    right_word = evaluation["word"][asked]

    both = likeliest(left * _VOCABULARY + right, word, before * _VOCABULARY + after)
    told = both
    for keys, asks in ((left, before), (right, after)):
        told = np.where(told < 0, likeliest(keys, word, asks), told)
    told = np.where(told < 0, most_frequent, told)
    guesses = {
        "the most frequent subword": np.full_like(told, most_frequent),
        "both neighbours, else one": told,
        "the same, and what is shown": np.where(shown == _MASK, told, shown),
    }
    return {name: float(np.mean(guess == right_word)) for name, guess in guesses.items()}


def whole(batch: HostBatch) -> np.ndarray:
    """Rows [N, L] int64 with the words that were hidden in their places."""
    tokens, told = batch["tokens"].astype(np.int64), batch["word_weight"] > 0
    rows = np.broadcast_to(np.arange(len(tokens))[:, None], told.shape)
    tokens[rows[told], batch["masked"][told]] = batch["word"][told]
    return tokens


def likeliest(keys: np.ndarray, words: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The word that came most often with each key asked for [M]; -1 where none did.

    Args:
        keys, words: [N] int64, pairs that were seen.
        asked: [M] int64.
    """
    pairs, counts = np.unique(keys * _VOCABULARY + words, return_counts=True)
    order = np.lexsort((-pairs, counts))  # the last of a key is its most frequent, of equals the smallest
    pairs = pairs[order]
    order = np.argsort(pairs // _VOCABULARY, kind="stable")
    known = pairs[order] // _VOCABULARY
    last = np.searchsorted(known, asked, "right") - 1
    found = known[np.maximum(last, 0)] == asked
    return np.where(found, pairs[order][np.maximum(last, 0)] % _VOCABULARY, -1)


if __name__ == "__main__":
    sys.exit(main())
