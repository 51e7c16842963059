"""Subwords against a transcription of MLPerf's tokenizer, and the vocabulary file that it reads."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipelines.text import subwords
from mlperf_jax.errors import UserError

TEXT = "Die Katze sitzt auf der Matte. The cat sat on the mat, under_score and back\\slash; 42 times - 3,5 %."


# What the reference does, one step after the other, as its description has it.


def reference_tokens(text):
    """A loop over places where the kind of character changes; a lone space there is dropped."""
    kinds = [unicodedata.category(c)[0] in "LN" for c in text]
    found, start = [], 0
    for place in range(1, len(text)):
        if kinds[place] != kinds[place - 1]:
            if text[start:place] != " " or start == 0:
                found.append(text[start:place])
            start = place
    return [*found, text[start:]] if text else []


def reference_encode(text, entries):
    alphabet = set("\\_u;0123456789").union(*entries)
    ids = {entry: n for n, entry in enumerate(entries)}
    encoded = []
    for token in reference_tokens(text):
        token = token.replace("\\", "\\\\").replace("_", "\\u")
        token = "".join(c if c in alphabet and c != "\n" else rf"\{ord(c)};" for c in token) + "_"
        while token:
            longest = next(token[:n] for n in range(len(token), 0, -1) if token[:n] in ids)
            encoded.append(ids[longest])
            token = token[len(longest) :]
    return encoded


def reference_decode(ids, entries):
    tokens = []
    for token in "".join(entries[id] for id in ids).split("_"):
        if token:
            tokens.append(
                re.sub(
                    r"\\u|\\\\|\\([0-9]+);",
                    lambda m: chr(int(m[1])) if m[1] else {"\\u": "_", "\\\\": "\\"}[m[0]],
                    token,
                )
            )
    kinds = [unicodedata.category(token[0])[0] in "LN" for token in tokens]
    spaces = [" " if n and kinds[n] and kinds[n - 1] else "" for n in range(len(tokens))]
    return "".join(space + token for space, token in zip(spaces, tokens, strict=True))


@pytest.fixture(scope="module")
def learned():
    return subwords.learn([TEXT, TEXT.lower(), "Die Matte der Katze", "cats and mats"], 120)


texts = st.one_of(
    st.text(st.sampled_from("abcdeßéñ  .,;:_\\ux0123456789\n\t-€日𝄞u"), max_size=40),
    st.text(max_size=20),
    st.lists(st.sampled_from(TEXT.split()), max_size=8).map(" ".join),
)


@given(text=texts)
@settings(max_examples=400, deadline=None)
def test_encoding_and_decoding_are_the_references(learned, text):
    ids = learned.encode(text)
    assert ids == reference_encode(text, learned.subwords)
    assert learned.decode(ids) == reference_decode(ids, learned.subwords)


@given(text=texts)
@settings(max_examples=400, deadline=None)
def test_every_text_comes_back(learned, text):
    text = text.strip()  # as lines are read
    assert learned.decode([*learned.encode(text), subwords.END, 5, 6]) == text


def test_examples_by_hand():
    known = subwords.Subwords(
        [*subwords.RESERVED, *"\\_u;0123456789", "a", "b", " ", ",", "ab_", "aba", ", _", "b_"]
    )
    ids = {entry: n for n, entry in enumerate(known.subwords)}

    def parts(text):
        return [known.subwords[id] for id in known.encode(text)]

    assert parts("ab abab, b") == ["ab_", "aba", "b_", ", _", "b_"]
    assert parts("ab_€") == ["ab_", "\\", "u", "\\", "8", "3", "6", "4", ";", "_"]
    assert known.decode([ids["ab_"], ids["ab_"], ids[", _"], ids["b_"]]) == "ab ab, b"
    assert known.decode([ids["ab_"], 10**6, 1, ids["b_"]]) == "ab"
    assert known.decode([]) == "" and known.encode("") == []


def test_learning_keeps_what_is_frequent_and_its_size(learned):
    assert 60 < len(learned) <= 120
    assert learned.subwords[:2] == subwords.RESERVED and len(set(learned.subwords)) == len(learned)
    assert "Matte_" in learned.subwords or "atte_" in learned.subwords
    with pytest.raises(ValueError, match="characters"):
        subwords.learn([TEXT], 20)


def test_a_vocabulary_is_written_and_read(tmp_path, learned):
    learned.write(tmp_path / "vocab")
    assert subwords.read(tmp_path / "vocab").subwords == learned.subwords
    # tensor2tensor ends the reserved words with "_" too.
    lines = (tmp_path / "vocab").read_text("utf-8").splitlines()
    lines[:2] = ["'<pad>_'", "'<EOS>_'"]
    (tmp_path / "other").write_text("\n".join(lines) + "\n", "utf-8")
    assert subwords.read(tmp_path / "other").subwords == learned.subwords


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"abc\n", "not a subword in quotes"),
        (b"'a'\n", "lacks"),
        ("".join(f"'{c}'\n" for c in "\\_u;0123456789aa").encode(), "names a subword twice"),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path, text, said):
    if text is not None:
        (tmp_path / "vocab").write_bytes(text)
    with pytest.raises(UserError, match=said):
        subwords.read(tmp_path / "vocab")
