"""Rows of tokens to tell the next of: out of streams, Megatron's files and Linux's documentation."""

import hashlib
import struct

import numpy as np
import pytest

from input_pipelines import fetch, open_dataset, prepare, prepared
from input_pipelines.text import byte_pairs, c4, linux_doc, megatron_file, token_rows
from mlperf_jax.errors import UserError


def test_every_token_but_a_streams_first_is_asked_for_once():
    streams = [np.arange(10, 33, dtype=np.uint16), np.arange(3), np.arange(100, 109), np.zeros(0, int)]
    rows = token_rows.Rows(streams, 4)
    assert rows.shape == (7, 5) and len(rows) == 7
    found = rows[np.arange(7)]
    assert found.dtype == np.int32
    assert found[:, 1:].ravel().tolist() == [*range(11, 31), *range(101, 109)]
    np.testing.assert_array_equal(found[1:5, 0], found[:4, -1])
    np.testing.assert_array_equal(rows[np.array([6, 0])], found[[6, 0]])
    assert len(token_rows.Rows(streams, 4, 2)) == 2 and len(token_rows.Rows(streams, 4, 50)) == 7
    assert len(token_rows.Rows([np.arange(4)], 4)) == 0


def test_epochs_hold_every_row_once():
    rows = token_rows.Rows([np.arange(41)], 4)
    dataset = token_rows.TokenRows(rows, rows, vocabulary_size=41, fake=True, description="")
    assert dataset.train_spec["tokens"] == ((5,), np.int32)
    for epoch in range(2):
        read = dataset.read_train(10 * epoch, 10 * epoch + 10, seed=3)["tokens"]
        assert sorted(read[:, 0]) == list(range(0, 40, 4))


# Megatron's files.


def test_an_index_is_as_megatron_writes_it(tmp_path):
    """Byte by byte, by its own layout."""
    documents = [[5, 6, 7], [8], [9, 10]]
    assert megatron_file.write(tmp_path / "x.bin", documents) == 6
    assert (tmp_path / "x.bin").read_bytes() == struct.pack("<6i", 5, 6, 7, 8, 9, 10)
    expected = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, 3, 4) + struct.pack("<3i", 3, 1, 2)
    expected += struct.pack("<3q", 0, 12, 16) + struct.pack("<4q", 0, 1, 2, 3)
    assert (tmp_path / "x.idx").read_bytes() == expected
    read = megatron_file.read(tmp_path / "x.bin")
    assert read.tokens.tolist() == [5, 6, 7, 8, 9, 10] and read.num_documents == 3


def test_damaged_indexes_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    megatron_file.write(path, [[1, 2], [3]])
    index = path.with_suffix(".idx")
    good = index.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        bad = bytearray(good)
        kind = random.integers(3)
        if kind == 0:
            bad = bad[: random.integers(len(bad))]
        elif kind == 1:
            bad += bytes(random.integers(1, 9))
        else:
            at = int(random.integers(len(bad) - 8 * 3))  # which documents there are is not read
            bad[at] ^= 1 << int(random.integers(8))
        index.write_bytes(bytes(bad))
        with pytest.raises(UserError, match=r"x\.idx cannot be read .* get x\.bin and it again"):
            megatron_file.read(path)
    index.write_bytes(good)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="one after the other"):
        megatron_file.read(path)
    index.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        megatron_file.read(path)


def test_c4_is_what_lies_there(tmp_path, monkeypatch):
    monkeypatch.setattr(c4, "_EVAL_DOCUMENTS", 3)
    with pytest.raises(UserError, match="C4 is not in"):
        prepare("c4", tmp_path)
    (tmp_path / "c4").mkdir()
    for part, first in ((6, 0), (7, 100)):
        megatron_file.write(
            tmp_path / "c4" / f"c4-train.en_{part}_text_document.bin",
            [np.arange(first, first + 9), np.arange(8)],
        )
    evaluation = tmp_path / "c4" / c4._EVAL
    megatron_file.write(evaluation, [[1, 2], [3, 4, 5]])
    with pytest.raises(UserError, match="has 2 texts where 3 belong"):
        prepare("c4", tmp_path)
    megatron_file.write(evaluation, [[1, 2], [3, 4, 5], [6]])
    assert "C4, 4 texts to train on" in prepare("c4", tmp_path)
    dataset = open_dataset("c4", tmp_path, {"length": 4})
    assert (dataset.num_train, dataset.num_eval, dataset.fake) == (8, 1, False)
    np.testing.assert_array_equal(dataset.read_eval(np.array([0]), ["tokens"])["tokens"], [[1, 2, 3, 4, 5]])
    with evaluation.open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="is not the file that was looked at"):
        open_dataset("c4", tmp_path, {"length": 4})


def test_c4_may_be_made_up(tmp_path):
    assert "made-up tokens, not MLPerf's data" in prepare("c4", tmp_path, fake=9)
    dataset = open_dataset("c4", tmp_path, {"length": c4.LENGTH, "fake": 9})
    assert (dataset.num_train, dataset.num_eval, dataset.fake) == (9, 1, True)
    tokens = dataset.read_train(0, 9, seed=0)["tokens"]
    assert tokens.shape == (9, 8193) and tokens.min() >= 0 and 128_000 < tokens.max() < c4.VOCAB_SIZE
    synthetic = open_dataset("c4", tmp_path, {"length": 16, "synthetic": True, "num_train": 5})
    assert (synthetic.num_train, synthetic.num_eval) == (5, 1024)


# Linux's documentation.


def page(n):
    return f"Page {n}\n======\n\nThe kernel has {n} locks; see Documentation/locking/{n}.rst — or not.\n" * 5


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """A documentation of 300 files in the folder for those who fetch it themselves."""
    root = tmp_path / "manual" / "linux-doc"
    for n in range(300):
        path = root / f"{'translations/de' if n % 10 == 9 else f'part{n % 7}'}/{n}.rst.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(n if n != 200 else 100))
    monkeypatch.setattr(linux_doc, "_TREE", fetch.MovingTree(("*.rst.txt",), 300))
    monkeypatch.setattr(linux_doc, "VOCAB_SIZE", 300)
    return tmp_path


def test_files_are_held_out_by_their_path_and_taken_once(manual):
    assert "Linux 6.1's documentation" in prepare("linux_doc", manual)
    facts = prepared.read_manifest(manual / "linux_doc")
    files = {f"part{n % 7}/{n}.rst.txt": page(n) for n in range(300) if n % 10 != 9 and n != 200}
    held_out = {
        path for path in files if int(hashlib.sha256(path.encode()).hexdigest(), 16) % 40 == 0
    }  # fmt: skip
    assert facts["eval_texts"] == len(held_out) > 0 and facts["train_texts"] == len(files) - len(held_out)
    dataset = open_dataset("linux_doc", manual, {"length": 16})
    assert dataset.vocabulary_size == 300 and not dataset.fake
    # What is told are the files' bytes, one after the other.
    tokenizer = byte_pairs.read(linux_doc.tokenizer_path(manual))
    rows = dataset.read_eval(np.arange(dataset.num_eval), ["tokens"])["tokens"]
    told = tokenizer.decode([int(rows[0, 0]), *rows[:, 1:].ravel().tolist()]).rstrip("\ufffd")
    wanted = "".join(files[path] for path in sorted(held_out))
    assert wanted.startswith(told) and len(told) > 0.9 * len(wanted)
    assert dataset.bytes_per_token * facts["eval_tokens"] == pytest.approx(len(wanted.encode()))


def test_subwords_are_the_same_for_the_same_texts():
    texts = [page(n) for n in range(50)]
    first, second = (byte_pairs.learn(texts, 350).to_str() for _ in range(2))
    assert first == second


def test_too_few_files_and_no_files_are_refused(manual, monkeypatch):
    monkeypatch.setattr(
        fetch, "_apt_download", lambda *_: (_ for _ in ()).throw(fetch.SourceError("no network"))
    )
    next((manual / "manual/linux-doc/part0").iterdir()).unlink()
    with pytest.raises(UserError, match=r"it has 299 files .* where 300 belong.*Put the \*\.rst\.txt"):
        prepare("linux_doc", manual)
    with pytest.raises(UserError, match="leave --fake out"):
        prepare("linux_doc", manual, fake=3)
