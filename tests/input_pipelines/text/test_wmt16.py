"""WMT16 as GNMT's reference prepares it: subwords and words undone, files to packed rows, what is refused."""

import numpy as np
import pytest

import input_pipelines
from input_pipelines.text import bpe, wmt16
from mlperf_jax.errors import UserError

SENTENCES = (
    ("Ein Bei@@ spiel , oder zwei ?", "Ein Beispiel, oder zwei?"),
    ("&quot; Ja &quot; , sagte er ( leise ) .", '"Ja", sagte er (leise).'),
    ("&quot; A &quot; und &quot; B &quot;", '"A" und "B"'),
    ("100 % &amp; 5 $ oder $ 5", "100% & 5 $oder $5"),
    ("Text &#91; 1 &#93; &#124; &lt; b &gt;", "Text [1] | < b >"),
    ("Hin @-@ und Her", "Hin-und Her"),
    ("das war &apos; gut &apos; !", "das war 'gut'!"),
)


@pytest.mark.parametrize("cut, text", SENTENCES)
def test_words_are_joined_as_moses_joins_them(cut, text):
    """What sacremoses' detokeniser gives for German of the joined subwords."""
    vocabulary = bpe.Vocabulary([*bpe.RESERVED, *dict.fromkeys(" ".join(c for c, _ in SENTENCES).split())])
    ids = vocabulary.encode(cut)
    assert bpe.UNKNOWN not in ids
    assert vocabulary.decode([bpe.START, *ids, bpe.END, *ids]) == text


def write(where, pairs, vocabulary=("a", "b", "c@@", "d", "&quot;")):
    """The reference's files of pairs: to train on, and the same to translate."""
    where.mkdir(parents=True)
    for name in ("train.tok.clean.bpe.32000", "newstest2014.tok.bpe.32000"):
        for side, language in enumerate(("en", "de")):
            (where / f"{name}.{language}").write_text("".join(pair[side] + "\n" for pair in pairs))
    (where / "vocab.bpe.32000").write_text("".join(word + "\n" for word in vocabulary))
    (where / "newstest2014.de").write_text("".join(f"right {n}\n" for n in range(len(pairs))))


def test_files_become_packed_rows_and_references(tmp_path):
    long = " ".join(["a"] * 74)
    pairs = [("a b", "c@@ d"), ("x a", "b"), (long, "a"), ("a", " ".join(["b"] * 73))]
    write(tmp_path / "wmt16_de_en", pairs)
    said = input_pipelines.prepare("wmt16", tmp_path)
    assert "4 train pairs packed into 1 rows of 150 tokens" in said and "4 eval pairs" in said
    data = input_pipelines.open_dataset("wmt16", tmp_path, {"max_length": 150, "max_sentence": 75})
    assert len(data.vocabulary) == 9 and data.references == ["right 0", "right 1", "right 2", "right 3"]
    row = data.read_train(0, 1, 0)
    found = {
        (
            tuple(row["source"][0][row["source_segment"][0] == n]),
            tuple(row["target"][0][row["target_segment"][0] == n]),
        )
        for n in range(1, int(row["source_segment"].max()) + 1)
    }
    # Start 2, end 3, unknown 1; of the third pair the source has 76 tokens, one too many.
    assert found == {((2, 4, 5, 3), (6, 7, 3)), ((2, 1, 4, 3), (5, 3)), ((2, 4, 3), (5,) * 73 + (3,))}
    evaluated = data.read_eval(np.arange(4), ("source",))["source"]
    np.testing.assert_array_equal(evaluated[0, :5], [2, 4, 5, 3, 0])
    assert (evaluated[2] > 0).sum() == 76


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(UserError, match="newstest2014.tok.bpe.32000.en"):
        input_pipelines.open_dataset("wmt16", tmp_path, {})
    where = tmp_path / "wmt16_de_en"
    write(where, [("a", "b"), ("b", "a")])
    (where / "train.tok.clean.bpe.32000.de").write_text("b\n")
    with pytest.raises(UserError, match="has 2 lines and .de 1"):
        input_pipelines.prepare("wmt16", tmp_path)
    (where / "train.tok.clean.bpe.32000.de").write_bytes(b"b\n\xff\n")
    with pytest.raises(UserError, match="not text in UTF-8"):
        input_pipelines.prepare("wmt16", tmp_path)
    (where / "train.tok.clean.bpe.32000.de").write_text("b\na\n")
    (where / "newstest2014.de").write_text("one\n")
    with pytest.raises(UserError, match="newstest2014.de has 1 lines"):
        input_pipelines.prepare("wmt16", tmp_path)
    (where / "vocab.bpe.32000").write_text("a\na\n")
    with pytest.raises(UserError, match="names a subword twice"):
        input_pipelines.prepare("wmt16", tmp_path)
    (where / "vocab.bpe.32000").unlink()
    with pytest.raises(UserError, match="vocab.bpe.32000 is missing"):
        input_pipelines.prepare("wmt16", tmp_path)


def test_the_made_up_set_has_the_real_ones_words(tmp_path):
    assert "Fake WMT16" in input_pipelines.prepare("wmt16", tmp_path, fake=40)
    data = input_pipelines.open_dataset("wmt16", tmp_path, {"fake": 40})
    assert (
        data.fake and len(data.vocabulary) == wmt16.VOCAB_SIZE and data.num_eval == len(data.references) == 5
    )
    with pytest.raises(UserError, match="max_sentence"):
        input_pipelines.open_dataset("wmt16", tmp_path, {"fake": 40, "max_sentence": 50})
