"""Word error rates against the edit distance written out."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.metrics.word_error_rate import mean_word_error_rate, word_error_rate, word_errors

pytest.importorskip("jiwer")


def distance(a, b):
    """Levenshtein's, of two sequences."""

    @functools.cache
    def least(i, j):
        if not i or not j:
            return i + j
        changed = least(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(changed, least(i - 1, j) + 1, least(i, j - 1) + 1)

    return least(len(a), len(b))


TEXTS = st.lists(st.tuples(*[st.lists(st.sampled_from(["a", "B", "b", "it's"]), max_size=7)] * 2), min_size=1)


@given(TEXTS, st.sampled_from([" ", "  ", "\n\t"]))
@settings(max_examples=60, deadline=None)
def test_errors_are_the_edit_distance_of_words(pairs, gap):
    answers, references = ([gap.join(words) for words in side] for side in zip(*pairs, strict=True))
    errors, words = word_errors(answers, references)
    lower = [[[word.lower() for word in side] for side in pair] for pair in pairs]
    assert errors.tolist() == [distance(said, right) for said, right in lower]
    assert words.tolist() == [len(right) for _, right in pairs]


def test_rates_of_all_words_and_of_texts():
    answers = ["the cat sat", "", "nothing was said"]
    references = ["The cat sits on  it", "hello", ""]
    errors = np.array([3, 1, 3])
    assert word_error_rate(answers, references) == pytest.approx(errors.sum() / 6)
    assert mean_word_error_rate(answers, references) == pytest.approx((3 / 5 + 1 + 3) / 3)
    assert word_error_rate([], []) == 0
    with pytest.raises(ValueError, match="2 answers to 1 references"):
        word_error_rate(["a", "b"], ["a"])
