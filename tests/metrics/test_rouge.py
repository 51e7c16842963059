"""ROUGE: against `rouge_score` where it is installed, brute force, and stems that were looked up there."""

import itertools
import random

import numpy as np
import pytest

from mlperf_jax.metrics import rouge
from mlperf_jax.metrics.porter import stem

# By nltk 3.10.4's PorterStemmer, whose mode is its own extension of the algorithm.
STEMS = {
    "skies": "sky", "dying": "die", "flies": "fli", "dies": "die", "died": "die", "tried": "tri", "agreed": "agre",
    "feed": "feed", "plastered": "plaster", "motoring": "motor", "sing": "sing", "conflated": "conflat",
    "troubling": "troubl", "sized": "size", "hopping": "hop", "falling": "fall", "hissing": "hiss", "filing": "file",
    "happy": "happi", "enjoy": "enjoy", "say": "say", "relational": "relat", "conditional": "condit", "valency": "valenc",
    "digitizer": "digit", "radically": "radic", "operator": "oper", "feudalism": "feudal", "hopefulness": "hope",
    "sensibility": "sensibl", "geology": "geolog", "usefully": "use", "electricity": "electr", "goodness": "good",
    "revival": "reviv", "allowance": "allow", "adjustment": "adjust", "adoption": "adopt", "lion": "lion",
    "probate": "probat", "rate": "rate", "controlling": "control", "roll": "roll", "yyy": "yyy", "oed": "o",
}  # fmt: skip


def drawn_texts(count, seed=0):
    """Sentences over few words, some of which share stems, with marks, digits and letters beyond ASCII."""
    draw = random.Random(seed)
    words = [
        *STEMS,
        *[
            "the",
            "The",
            "a",
            "of",
            "is",
            "in",
            "1968",
            "v2.1",
            "it's",
            "e-mail",
            "café",
            "naïve",
            "running",
            "runs",
            "ran",
            "quickly",
            "U.S.",
            "news",
            "innings",
        ],
    ]

    def text():
        told = " ".join(draw.choice(words[: draw.choice((5, 20, 70))]) for _ in range(draw.randrange(30)))
        return told.replace("is", draw.choice((".\n", "is", ", is")))

    return [text() for _ in range(count)], [text() for _ in range(count)]


def test_figures_are_rouge_scores():
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge_score judges ours")
    told, true = drawn_texts(200)
    judge = scorer.RougeScorer(rouge.FIGURES, use_stemmer=True)
    each = [judge.score(reference, prediction) for prediction, reference in zip(told, true, strict=True)]
    for prediction, reference, expected in zip(told, true, each, strict=True):
        found = rouge.score([prediction], [reference])
        for name in rouge.FIGURES:
            assert found[name] == round(100 * expected[name].fmeasure, 4)
    found = rouge.score(told, true)
    for name in rouge.FIGURES:
        mean = 100 * np.mean([scores[name].fmeasure for scores in each])
        assert found[name] == pytest.approx(mean, abs=6e-5)


def test_stems_are_nltks():
    porter = pytest.importorskip("nltk.stem.porter", reason="nltk judges ours").PorterStemmer()
    parts = "a b e ed ing ies y al ly at iz bl ss s ion ment able ful tional logi alli eed l t z w"
    words = {"".join(some) for n in (1, 2, 3) for some in itertools.product(parts.split(), repeat=n)}
    assert [stem(word) for word in sorted(words)] == [porter.stem(word) for word in sorted(words)]


def test_stems():
    assert {word: stem(word) for word in STEMS} == STEMS


def test_common_subsequences_by_brute_force():
    draw = random.Random(1)
    for _ in range(100):
        one, other = ([draw.choice("abc") for _ in range(draw.randrange(8))] for _ in range(2))
        longest = max(
            n
            for n in range(len(one) + 1)
            for some in itertools.combinations(one, n)
            if some in set(itertools.combinations(other, n))
        )
        assert rouge._longest_common(one, other) == longest


def test_known_figures():
    found = rouge.score(["The cat sat on the mat.", ""], ["the cats were sitting on a mat", "nothing"])
    # The, cat, on and mat of 6 and 7 words, and one pair of 5 and 6; nothing of the other.
    expected = (50 * 2 * 4 / 13, 50 * 2 * 1 / 11, 50 * 2 * 4 / 13)
    assert [found[name] for name in rouge.FIGURES] == [round(figure, 4) for figure in expected]
    assert found["gen_len"] == 23
    assert rouge.score(["Same words here"], ["same word here"])["rouge2"] == 100.0
    assert rouge.score([], [])["rougeL"] == 0.0
