"""BLEU against a transcription of the benchmark's own script."""

import math
import re
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.metrics.bleu import bleu


def characters(prefix):
    return "".join(
        re.escape(chr(n)) for n in range(sys.maxunicode) if unicodedata.category(chr(n)).startswith(prefix)
    )


PUNCTUATION, SYMBOLS = characters("P"), characters("S")


def tokens(text):
    """mteval-v14: punctuation apart unless digits stand on both sides of it, symbols always."""
    text = re.sub(rf"([^\d])([{PUNCTUATION}])", r"\1 \2 ", text)
    text = re.sub(rf"([{PUNCTUATION}])([^\d])", r" \1 \2", text)
    return re.sub(f"([{SYMBOLS}])", r" \1 ", text).split()


def transcribed(translations, references):
    """The geometric mean of n-gram precisions, with zeros smoothed by halves, and the brevity penalty."""
    matches, possible, lengths = [0] * 4, [0] * 4, [0, 0]
    for pair in zip(translations, references, strict=True):
        sides = [tokens(text.lower()) for text in pair]
        lengths = [n + len(side) for n, side in zip(lengths, sides, strict=True)]
        for n in range(1, 5):
            grams = [Counter(tuple(side[i : i + n]) for i in range(len(side) - n + 1)) for side in sides]
            matches[n - 1] += sum((grams[0] & grams[1]).values())
            possible[n - 1] += sum(grams[0].values())
    logs, smooth = 0.0, 1.0
    for matched, all_ in zip(matches, possible, strict=True):
        if not matched:
            smooth *= 2
        logs += math.log((matched or 1 / smooth) / all_)
    penalty = math.exp(1 - lengths[1] / lengths[0]) if lengths[0] < lengths[1] else 1.0
    return math.exp(logs / 4) * penalty


WORDS = [
    "Der",
    "Hund,",
    "läuft",
    "3.5",
    "km;",
    "“schnell”",
    "–",
    "über",
    "die",
    "Straße?",
    "1,000",
    "€",
    "(und)",
    "zurück!",
    "Ça",
    "va:",
    "ja.",
    "x=1",
    "C++",
    "a/b",
    "don't",
]


@given(
    st.lists(
        st.tuples(*[st.lists(st.sampled_from(WORDS), min_size=4, max_size=12).map(" ".join)] * 2),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=150, deadline=None)
def test_it_is_the_benchmarks_own_figure(pairs):
    # One common sentence: without any word in common sacreBLEU says 0, and the benchmark's script smooths even that.
    translations, references = zip(("Ein kurzer gemeinsamer Satz.",) * 2, *pairs, strict=True)
    assert bleu(translations, references) == pytest.approx(transcribed(translations, references), abs=1e-7)


def test_known_figures():
    text = ["The quick brown fox jumps over the lazy dog."]
    assert bleu(text, text) == pytest.approx(1)
    assert bleu([text[0].upper()], text) == pytest.approx(1)  # uncased
    # By hand, of ten words, the full stop among them: one word, two pairs, three triples, three quadruples are wrong.
    precisions = [9 / 10, 7 / 9, 5 / 8, 4 / 7]
    assert bleu(["The quick red fox jumps over the lazy dog."], text) == pytest.approx(
        float(np.prod(precisions)) ** 0.25
    )


def test_the_empty_translation_of_an_untrained_model():
    assert bleu([""], ["Ein Satz, der lang genug ist."]) == 0
