"""Tokens to text: against decoding all at once, plain search for stop strings, and the package `tokenizers`."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipelines.text import byte_pairs
from mlperf_jax.errors import UserError
from mlperf_jax.tokens.openai.detokenizer import Detokenizer, Subwords

TEXTS = [
    "the quick brown fox",
    "naïve café — 100 €",
    "日本語のテキスト",
    "🙂🙃 done",
    "a\nb\n\n\tc",
    "the the the fox",
]


def pieces_of(tokens, spelled, stops=()):
    """What comes out with each token, up to a stop, and at the end."""
    one = Detokenizer(spelled, stops)
    found = []
    for token in tokens:
        found.append(one.add(token))
        if one.stopped:
            return found
    return [*found, one.end()]


def split(content, cuts):
    """Bytes cut into tokens, which are numbers of pieces."""
    cuts = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    return [content[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False)]


def plainly(text, stops):
    """Character by character: up to the first stop string that is complete, the longest of several."""
    for end in range(len(text) + 1):
        if ended := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, ended))]
    return text


CUTS = st.lists(st.integers(0, 1000), max_size=30)


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode), CUTS)
def test_any_split_of_bytes_is_told_as_all_at_once(content, cuts):
    tokens = split(content, cuts)
    found = pieces_of(range(len(tokens)), tokens.__getitem__)
    assert "".join(found) == content.decode("utf-8", "replace")
    # A piece is there as soon as its last byte is: only what may go on is held back.
    for number in range(len(tokens)):
        told = "".join(found[: number + 1])
        assert len(b"".join(tokens[: number + 1])) - len(told.encode()) <= 3 or "\ufffd" in told


@settings(deadline=None)
@given(st.text("ab€", max_size=30), st.lists(st.text("ab€", min_size=1, max_size=4), max_size=4), CUTS)
def test_a_text_ends_before_the_first_stop_string(text, stops, cuts):
    tokens = split(text.encode(), cuts)
    found = pieces_of(range(len(tokens)), tokens.__getitem__, stops)
    expected = plainly(text, stops)
    assert "".join(found) == expected
    for number in range(len(found)):  # nothing is told that has to be taken back
        assert expected.startswith("".join(found[:number]))


def test_only_what_may_begin_a_stop_string_is_held_back():
    tokens = [b"ab", b"a", b"c", b"x"]
    assert pieces_of(range(4), tokens.__getitem__, ["bad", "ac!"]) == ["a", "", "b", "acx", ""]


@functools.cache
def tokenizer_file(folder):
    import tokenizers

    learned = byte_pairs.learn(TEXTS, 300)
    learned.add_special_tokens([tokenizers.AddedToken("<|end|>", normalized=False)])
    learned.add_tokens(["<tool call>", "→"])
    path = folder / "tokenizer.json"
    learned.save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_file(tmp_path_factory.mktemp("tokenizer"))


def test_subwords_are_those_of_the_package(tokenizer):
    package = byte_pairs.read(tokenizer)
    size = package.get_vocab_size()
    ours = Subwords(tokenizer, size + 5)  # as models have whose vocabulary is padded
    for text in TEXTS:
        assert ours.encode(text, special=False) == package.encode(text).ids
        assert "".join(pieces_of(ours.encode(text, special=False), ours.spelled)) == text

    @settings(deadline=None)
    @given(st.lists(st.integers(0, size + 4), max_size=40))
    def decoded(tokens):
        assert "".join(pieces_of(tokens, ours.spelled)) == package.decode(tokens)

    decoded()


def test_a_tokenizer_of_another_kind_or_model_is_refused(tokenizer, tmp_path):
    import tokenizers
    from tokenizers import decoders, models

    with pytest.raises(UserError, match="303 tokens, and the model 100; give the model's own"):
        Subwords(tokenizer, 100)
    words = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(UserError, match="no byte-level decoder"):
        Subwords(tmp_path / "words.json", 100)
    with pytest.raises(UserError, match="cannot be read"):
        Subwords(tmp_path / "none.json", 100)
