"""Recordings of people: what they are called is what is said in them."""

import numpy as np

from benchmarks import real_recordings


def test_numbers_are_read_out():
    named = {"0": "zero", "9": "nine", "13": "thirteen", "20": "twenty", "90": "ninety"}
    assert {name: real_recordings.spoken_number(name) for name in named} == named
    assert real_recordings.spoken_number("h-13") is None and real_recordings.spoken_number("star") is None


def test_strings_of_digits_are_their_recordings_one_after_the_other():
    digits = {str(n): np.full(n + 1, n, np.int16) for n in range(10)}
    strings = real_recordings.joined(digits, count=7, length=3)
    assert len(strings) == 7
    words = [real_recordings.spoken_number(str(n)) for n in range(10)]
    for text, sound in strings:
        said = [words.index(word) for word in text.split()]
        assert sound.tolist() == [n for digit in said for n in [digit] * (digit + 1)]


def test_the_page_has_every_figure():
    figures = {
        "letters": {"recordings": 26, "word_error_rate": 0.9, "examples": [{"said": "a", "heard": ""}]}
    }
    page = real_recordings.page({"workloads": {"rnnt": {"command": "python -m x", "figures": figures}}})
    assert "| letters | 26 | 0.900 | a: - |" in page and "python -m x" in page
