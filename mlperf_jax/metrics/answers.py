"""How alike an answer and what was wanted are: SQuAD's F1, of the words they share.

Words are compared in lower case, without punctuation and articles. Source: SQuAD's evaluate-v1.1.py, which MLPerf uses.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """What is compared of a text.

    >>> words("The Duke, of York's")
    ['duke', 'of', 'yorks']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1(answer: str, wanted: Sequence[str]) -> float:
    """Of an answer and the best of those wanted: harmonic mean of the shares of words of one that the other has, 0 to 1."""
    return max(_f1(words(answer), words(right)) for right in wanted)


def _f1(answer: list[str], wanted: list[str]) -> float:
    shared = sum((collections.Counter(answer) & collections.Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(answer), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)
