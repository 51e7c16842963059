"""WordPiece: subwords as BERT cuts them, vocabularies that are the same each time."""

import random

import pytest

from input_pipelines.text import wordpiece
from mlperf_jax.errors import UserError

VOCABULARY = (*wordpiece.SPECIAL, "un", "##aff", "##able", "want", "##ed", ",", "the", "##s", "run", "##ning")


def ids(text):
    return wordpiece.tokenizer(VOCABULARY).encode(text, add_special_tokens=False)


def test_words_are_cut_as_the_paper_has_them():
    found = ids("The unaffable runs, wanted   RUNNINGS thé xyz")
    assert found.tokens == [
        "the", "un", "##aff", "##able", "run", "##s", ",", "want", "##ed", "run", "##ning", "##s", "the", "[UNK]",
    ]  # fmt: skip
    text = "The unaffable runs, wanted"
    offsets = ids(text).offsets
    assert [text[begin:end] for begin, end in offsets[:4]] == ["The", "un", "aff", "able"]


def test_of_a_word_without_end_nothing_is_known():
    assert ids("un" + "s" * 198).tokens != ["[UNK]"]
    assert ids("un" + "s" * 199).tokens == ["[UNK]"]


def test_a_vocabulary_is_the_same_each_time_and_knows_frequent_words():
    draw = random.Random(3)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randrange(1, 4))) for _ in range(400)]
    texts = [" ".join(draw.choices(words, k=50)) for _ in range(40)] + ["é naïve 東京"]
    first = wordpiece.learn(texts, 300)
    assert first[:5] == wordpiece.SPECIAL and len(first) == len(set(first)) == 300
    assert all(wordpiece.learn(iter(texts), 300) == first for _ in range(3))
    unknown = (
        wordpiece.tokenizer(first).encode(" ".join(words), add_special_tokens=False).tokens.count("[UNK]")
    )
    assert unknown == 0


def test_a_vocabulary_is_written_and_read(tmp_path):
    wordpiece.write(tmp_path / "vocab.txt", VOCABULARY)
    assert wordpiece.read(tmp_path / "vocab.txt") == VOCABULARY
    (tmp_path / "twice.txt").write_text("\n".join([*VOCABULARY, "the"]))
    with pytest.raises(UserError, match="names a subword twice"):
        wordpiece.read(tmp_path / "twice.txt")
    (tmp_path / "none.txt").write_text("the\n")
    with pytest.raises(UserError, match=r"lacks \[CLS\]"):
        wordpiece.read(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot be read"):
        wordpiece.read(tmp_path / "missing.txt")
