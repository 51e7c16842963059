"""Texts with labels: words, vocabulary and widths; film snippets and IMDB from their files."""

import gzip
import io
import tarfile

import numpy as np
import pytest

import input_pipelines
from input_pipelines import fetch, source_distribution
from input_pipelines.text import imdb, labelled_text, movie_snippets
from mlperf_jax.errors import UserError


def test_words_are_cut_as_the_reference_does():
    text = b"It's NOT  <br /><br />that bad... (really)\n"
    assert labelled_text.words(text) == [b"its", b"not", b"br", b"br", b"that", b"bad", b"really"]


def test_the_vocabulary_follows_counts_then_names_and_ends_with_the_unknown():
    texts = [[b"b", b"a", b"c"], [b"a", b"b", b"d"], [b"c", b"e", b"a"]]
    known = labelled_text.vocabulary(texts, 1)
    assert list(known.items()) == [(b"a", 0), (b"b", 1), (b"c", 2), (b"<unk>", 3)]
    assert labelled_text.numbered([b"d", b"a"], known) == [3, 0]
    assert labelled_text.numbered([], known) == [3]


def made(lengths, widths=(4, 8)):
    start = np.append(0, np.cumsum(lengths)).astype(np.int32)
    words = np.arange(1, start[-1] + 1, dtype=np.int32)
    texts = labelled_text.Texts(words, start, np.arange(len(lengths), dtype=np.int32) % 2)
    return labelled_text.LabelledTexts(
        texts, texts, vocabulary_size=int(start[-1]) + 1, widths=widths, fake=True, name="numbers"
    )


def test_batches_are_as_wide_as_their_longest_text_in_all_processes():
    dataset = made([1, 2, 3, 4, 6, 2, 11, 3])
    halves = []
    for rows in (slice(0, 2), slice(2, 4)):
        batches = dataset.train_batches(seed=3, batch_size=4, start_step=0, rows=rows)
        halves.append([next(batches) for _ in range(2)])
        batches.close()
    for first, second in zip(*halves, strict=True):
        assert first["words"].shape == second["words"].shape
    seen = np.concatenate([part["words"][:, 0] for half in halves for part in half])
    assert sorted(seen) == sorted(dataset.train.words[dataset.train.start[:-1]])
    read = dataset.read_eval(np.array([6, 0]), ("words", "length"))
    assert read["words"].shape == (2, 8) and read["length"].tolist() == [8, 1]  # what is longer is cut


def test_evaluation_batches_follow_the_lengths_and_hold_each_text_once():
    dataset = made([1, 2, 3, 4, 6, 2, 7], widths=(2, 4, 8))
    batches = list(dataset.eval_batches(batch_size=3, rows=slice(0, 3)))
    assert [batch["words"].shape for batch in batches] == [(3, 2), (3, 8), (3, 8)]
    assert [batch["mask"].tolist() for batch in batches][-1] == [1.0, 0.0, 0.0]
    lengths = np.concatenate([batch["length"][batch["mask"] > 0] for batch in batches])
    assert lengths.tolist() == sorted([1, 2, 3, 4, 6, 2, 7])


def test_snippets_are_labelled_by_the_mean_of_their_ratings():
    table = "1\t2.2\tA  fine film.\n2\t-0.6\tToo tepid\n3\t0.0\tA film.\nno line\n4\t-3\tBad\ttabs"
    texts, labels = movie_snippets.read(table)
    assert texts == [[b"a", b"fine", b"film"], [b"too", b"tepid"], [b"bad", b"tabs"]]
    assert labels == [0, 1, 1]
    many = ([[b"%d" % i] for i in range(50)], list(range(50)))
    train, evaluation = movie_snippets.split(many)
    assert len(evaluation[0]) == 10 and sorted(train[1] + evaluation[1]) == list(range(50))
    assert [int(text[0]) for text in train[0]] == train[1]


def sdist(*members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for path, content in members:
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_a_source_distribution_is_read_from_the_index(tmp_path, monkeypatch):
    page = tmp_path / "some-thing"
    page.mkdir()
    archive = sdist(("Some_Thing-1.0/data/a.txt", b"found"))
    (page / "Some_Thing-1.0.tar.gz").write_bytes(archive)
    (page / "index.html").write_text('<a href="Some_Thing-1.0.tar.gz#sha256=0">Some_Thing-1.0.tar.gz</a>')
    real = source_distribution._download
    monkeypatch.setattr(source_distribution, "_index_url", lambda: tmp_path.as_uri())
    monkeypatch.setattr(
        source_distribution, "_download", lambda url: real(url + "index.html" if url.endswith("/") else url)
    )
    source = source_distribution.pypi_sdist("Some_Thing==1.0", "data")
    assert source.read(["a.txt"], tmp_path) == {"a.txt": b"found"}
    with pytest.raises(fetch.SourceError, match=r"no file .*b\.txt"):
        source.read(["b.txt"], tmp_path)
    with pytest.raises(fetch.SourceError, match=r"has no Some_Thing-2\.0"):
        source_distribution.pypi_sdist("Some_Thing==2.0", "data").read(["a.txt"], tmp_path)
    with pytest.raises(fetch.SourceError, match="download"):
        source_distribution.pypi_sdist("other==2.0", "data").read(["a.txt"], tmp_path)
    (page / "Some_Thing-1.0.tar.gz").write_bytes(archive[:-20])
    with pytest.raises(fetch.SourceError, match="damaged"):
        source.read(["a.txt"], tmp_path)


def test_pip_says_which_index(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple/")
    assert source_distribution._index_url() == "https://mirror.example/simple"


def test_snippets_from_their_archive(tmp_path, monkeypatch):
    lines = "".join(f"{i}\t{1 if i % 2 else -1}\tword{i % 3} film\n" for i in range(40))
    tar = gzip.decompress(sdist((movie_snippets._TABLE, lines.encode())))
    manual = tmp_path / "manual" / "movie_snippets"
    manual.mkdir(parents=True)
    (manual / "hutto_ICWSM_2014.tar.gz").write_bytes(gzip.compress(tar))
    import hashlib

    pinned = fetch.PinnedFile("hutto_ICWSM_2014.tar.gz", len(tar), hashlib.sha256(tar).hexdigest())
    monkeypatch.setattr(movie_snippets, "_ARCHIVE", pinned)
    assert "32 train and 8 eval texts, 5 words" in input_pipelines.prepare("movie_snippets", tmp_path)
    dataset = input_pipelines.open_dataset("movie_snippets", tmp_path, {"widths": (4,)})
    assert not dataset.fake and dataset.train.length.tolist() == [2] * 32
    with pytest.raises(UserError, match="leave --fake out"):
        movie_snippets.prepare(tmp_path, fake=3)


def test_imdb_from_its_folders(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="aclImdb_v1"):
        input_pipelines.prepare("imdb", tmp_path)
    monkeypatch.setattr(imdb, "NUM_TRAIN", 4)
    monkeypatch.setattr(imdb, "CUTOFF", 2)
    for split in ("train", "test"):
        for name, text in (("pos", "Good, good film"), ("neg", "Bad film")):
            folder = tmp_path / "aclImdb" / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                (folder / f"{i}.txt").write_text(f"{text} {split}{i}")
    assert "4 train and 4 eval texts, 4 words" in input_pipelines.prepare("imdb", tmp_path)
    dataset = input_pipelines.open_dataset("imdb", tmp_path, {"widths": (8,)})
    known = (tmp_path / "imdb" / "vocabulary.txt").read_text().split()
    assert known == ["film", "good", "bad", "<unk>"]
    assert dataset.train.label.tolist() == [0, 0, 1, 1]  # the package's: a positive review is 0
    assert dataset.train.rows(np.array([0]), 5)[0].tolist() == [1, 1, 0, 3, 0]
    (tmp_path / "aclImdb" / "test" / "pos" / "0.txt").unlink()
    with pytest.raises(UserError, match="test split .* has 3 reviews"):
        imdb._convert(tmp_path, tmp_path / "again")


def test_made_up_and_synthetic_reviews(tmp_path):
    input_pipelines.prepare("imdb", tmp_path, fake=40)
    options = {"fake": 40, "widths": (64, 2560)}
    dataset = input_pipelines.open_dataset("imdb", tmp_path, options)
    assert dataset.fake and (dataset.num_train, dataset.num_eval, dataset.vocabulary_size) == (40, 5, 5_147)
    folder = tmp_path / "imdb_fake_40"
    words = np.load(folder / "train_words.npy")
    np.save(folder / "train_words.npy", words + 5_147)
    with pytest.raises(UserError, match="counts do not fit"):
        input_pipelines.open_dataset("imdb", tmp_path, options)
    sizes = {"synthetic": True, "widths": (16, 64), "num_train": 30, "num_eval": 10}
    dataset = input_pipelines.open_dataset("movie_snippets", tmp_path, sizes)
    assert (dataset.num_train, dataset.num_eval) == (30, 10) and dataset.train.length.max() <= 64
