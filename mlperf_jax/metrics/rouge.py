"""ROUGE-1, -2 and -L (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004), as MLPerf's language tasks score.

Source: mlcommons/inference, language/llama3.1-8b/evaluation.py: stripped texts through `rouge_score` with stemming, the mean F
of all in percent, to four digits. Sentences on lines of their own change nothing there: ROUGE-L looks at the whole text, and
lines end words as spaces do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mlperf_jax.metrics.porter import stem

FIGURES = ("rouge1", "rouge2", "rougeL")
_STEMMED_FROM = 4  # letters


def score(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F in percent under the names of `FIGURES`, and `gen_len`, the characters of all predictions."""
    found = [
        _of_words(_words(told), _words(true)) for told, true in zip(predictions, references, strict=True)
    ]
    means = np.mean(found, 0) if found else np.zeros(len(FIGURES))
    figures = {name: round(float(100 * mean), 4) for name, mean in zip(FIGURES, means, strict=True)}
    return figures | {"gen_len": float(sum(len(told.strip()) for told in predictions))}


def _words(text: str) -> list[str]:
    """Runs of ASCII letters and digits in lower case, the longer ones as their stems."""
    words = re.findall("[a-z0-9]+", text.lower())
    return [stem(word) if len(word) >= _STEMMED_FROM else word for word in words]


def _of_words(told: list[str], true: list[str]) -> tuple[float, ...]:
    common = (*(_in_both(told, true, n) for n in (1, 2)), _longest_common(told, true))
    lengths = (1, 2, 1)
    return tuple(
        _f(both, max(len(told) - n + 1, 0), max(len(true) - n + 1, 0))
        for both, n in zip(common, lengths, strict=True)
    )


def _f(both: int, told: int, true: int) -> float:
    """The harmonic mean of precision and recall."""
    return 2 * both / (told + true) if both else 0.0


def _in_both(told: list[str], true: list[str], n: int) -> int:
    """Runs of n words, as often as in the one that has fewer of them."""
    first, second = (Counter(zip(*(words[k:] for k in range(n)), strict=False)) for words in (told, true))
    return (first & second).total()


def _longest_common(told: list[str], true: list[str]) -> int:
    """Words of the longest subsequence of both."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(told + true))}
    row = np.zeros(len(true) + 1, np.int64)
    other = np.array([numbers[word] for word in true], np.int64)
    for word in told:
        # What a match adds to the row before; then the largest so far, from the left.
        row[1:] = np.maximum(row[1:], row[:-1] + (other == numbers[word]))
        np.maximum.accumulate(row, out=row)
    return int(row[-1])
