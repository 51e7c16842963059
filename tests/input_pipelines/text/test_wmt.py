"""WMT17 from its original files, at a size for tests, and the made-up set in its place."""

import numpy as np
import pytest

from input_pipelines import open_dataset, prepare
from input_pipelines.text import subwords, wmt
from mlperf_jax.errors import UserError

ENGLISH = ["A house.", "", "Two small houses stand there", "odd\u2028line end", "word " * 300]
GERMAN = ["Ein Haus.", "leer", "Zwei kleine Häuser stehen da", "Ende\x85mittendrin", "Wort"]


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """The files of the benchmark with five pairs in each, and a small vocabulary."""
    where = tmp_path / "wmt17"
    where.mkdir()
    for name in ("news-commentary-v12.de-en", "commoncrawl.de-en", "europarl-v7.de-en"):
        (where / f"{name}.en").write_text("".join(f"{line}\n" for line in ENGLISH), "utf-8", newline="\n")
        (where / f"{name}.de").write_text("".join(f"{line}\n" for line in GERMAN), "utf-8", newline="\n")
    for language, lines in (("en", ENGLISH[:3:2]), ("de", GERMAN[:3:2])):
        (where / f"newstest2014.{language}").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    vocabulary = subwords.learn(ENGLISH[:4] + GERMAN, 120)
    vocabulary.write(where / wmt.VOCABULARY)
    for name, value in (("NUM_PAIRS", 15), ("NUM_EVAL", 2), ("VOCAB_SIZE", len(vocabulary)), ("_LINES", 2)):
        monkeypatch.setattr(wmt, name, value)
    return tmp_path


def test_the_original_files_are_encoded_counted_and_packed(data_dir):
    said = prepare("wmt", data_dir)
    assert "WMT17 en-de, 15 train pairs packed into" in said and "2 eval pairs" in said
    dataset = open_dataset("wmt", data_dir, {"max_length": 256})
    assert not dataset.fake and dataset.num_eval == 2
    decode = dataset.vocabulary.decode
    targets = dataset.read_eval(np.arange(2), ("target",))["target"]
    assert [decode(row.tolist()) for row in targets] == GERMAN[:3:2]
    found = []
    (batch,) = [
        next(
            dataset.train_batches(
                seed=0, batch_size=dataset.num_train, start_step=0, rows=slice(0, dataset.num_train)
            )
        )
    ]
    for row in range(dataset.num_train):
        for segment in range(1, batch["source_segment"][row].max() + 1):
            pair = [
                batch[side][row][batch[f"{side}_segment"][row] == segment] for side in ("source", "target")
            ]
            assert all(side[-1] == subwords.END for side in pair)
            found.append(tuple(decode(side.tolist()) for side in pair))
    # Pairs of more than 256 tokens are discarded; an empty side is a pair too.
    assert sorted(found) == sorted(list(zip(ENGLISH[:4], GERMAN[:4], strict=True)) * 3)


def test_counts_are_checked(data_dir, monkeypatch):
    monkeypatch.setattr(wmt, "NUM_PAIRS", 16)
    with pytest.raises(UserError, match=r"europarl-v7.de-en.en have 15 lines where 16 belong"):
        prepare("wmt", data_dir)
    monkeypatch.setattr(wmt, "VOCAB_SIZE", 33_708)
    with pytest.raises(UserError, match=r"subwords where 33,708 belong"):
        prepare("wmt", data_dir)
    assert not (data_dir / "wmt17_packed").exists()


def test_what_is_no_text_is_named(data_dir):
    path = data_dir / "wmt17" / "commoncrawl.de-en.de"
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xe4"))
    with pytest.raises(UserError, match=f"{path} is not text in UTF-8 .*; get it again"):
        prepare("wmt", data_dir)
    assert not (data_dir / "wmt17_packed").exists()


def test_missing_files_are_named(data_dir, tmp_path_factory):
    (data_dir / "wmt17" / "commoncrawl.de-en.de").unlink()
    with pytest.raises(UserError, match="commoncrawl.de-en.de is missing"):
        prepare("wmt", data_dir)
    with pytest.raises(UserError, match="WMT17 en-de is not prepared in .*--preset=mini, --synthetic_data"):
        open_dataset("wmt", tmp_path_factory.mktemp("empty"), {})


def test_the_counts_are_the_benchmarks():
    # Lines of news commentary v12, Common Crawl and Europarl v7, as their publishers count them.
    assert wmt.NUM_PAIRS == 270_769 + 2_399_123 + 1_920_209
    assert (wmt.NUM_EVAL, wmt.VOCAB_SIZE, wmt.MAX_LENGTH) == (3003, 33708, 256)


def test_the_made_up_set_has_the_same_shapes(tmp_path):
    assert "Fake WMT17 en-de (random words, not MLPerf's data), 40 train pairs" in prepare(
        "wmt", tmp_path, fake=40
    )
    dataset = open_dataset("wmt", tmp_path, {"fake": 40})
    assert dataset.fake and len(dataset.vocabulary) == 33708 and dataset.num_eval == 5
    assert dataset.train_spec["source"] == ((256,), np.dtype(np.uint16))
    words = dataset.read_eval(np.arange(5), ("source",))["source"]
    text = dataset.vocabulary.decode(words[0].tolist())
    assert [*dataset.vocabulary.encode(text), 1] == words[0][words[0] > 0].tolist()


def test_rows_of_another_length_are_refused(tmp_path):
    prepare("wmt", tmp_path, fake=8)
    with pytest.raises(
        UserError, match="prepared with rows of 256 tokens, so --config.data.max_length cannot be 64"
    ):
        open_dataset("wmt", tmp_path, {"fake": 8, "max_length": 64})
    (tmp_path / "wmt17_fake_8" / "eval_target.npy").unlink()
    with pytest.raises(UserError, match="eval_target.npy is missing"):
        open_dataset("wmt", tmp_path, {"fake": 8})
