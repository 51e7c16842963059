"""F1 of answers against SQuAD's official script, written down again."""

import collections
import random
import re
import string

import pytest

from mlperf_jax.metrics import answers

PIECES = [
    "the",
    "The",
    "a",
    "an",
    "Duke",
    "duke",
    "of",
    "York",
    "York's",
    "1,234",
    "(",
    ").",
    "--",
    "é",
    "theatre",
]


def normalize_answer(s):
    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def official(prediction, ground_truths):
    scores = []
    for truth in ground_truths:
        found, wanted = normalize_answer(prediction).split(), normalize_answer(truth).split()
        num_same = sum((collections.Counter(found) & collections.Counter(wanted)).values())
        if num_same == 0:
            scores.append(0)
            continue
        precision, recall = 1.0 * num_same / len(found), 1.0 * num_same / len(wanted)
        scores.append((2 * precision * recall) / (precision + recall))
    return max(scores)


def text(draw):
    return draw.choice(["", " "]).join(draw.choices(PIECES, k=draw.randrange(6))) + " ".join(
        draw.choices(PIECES, k=draw.randrange(4))
    )


def test_f1_is_the_official_scripts():
    draw = random.Random(1)
    for _ in range(3000):
        prediction, wanted = text(draw), [text(draw) for _ in range(draw.randrange(1, 4))]
        assert answers.f1(prediction, wanted) == official(prediction, wanted)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("The Duke of York.", 1.0), ("duke", 0.5), ("", 0.0), ("of York and Kent", 4 / 7)],
)
def test_by_hand(answer, expected):
    assert answers.f1(answer, ["Duke of York", "Kingdom"]) == pytest.approx(expected)
