"""Rows of which some tokens are asked for: GovReport as MLCommons packs it, Debian's descriptions, SmolLM2's subwords."""

import itertools
import os

import numpy as np
import pytest

from benchmarks import gguf_writer
from input_pipelines import fetch, open_dataset, prepare, prepared
from input_pipelines.text import byte_pairs, debian_descriptions, gov_report, smollm2, told_rows
from mlperf_jax.errors import UserError


def group_texts(examples, block_size):
    """Transcribed: mlcommons/training, llama2_70b_lora/scripts/utils.py, of a batch of documents."""
    joined = {key: list(itertools.chain(*lists)) for key, lists in examples.items()}
    total = len(joined["input_ids"]) // block_size * block_size
    return {
        key: [values[i : i + block_size] for i in range(0, total, block_size)]
        for key, values in joined.items()
    }


def documents(seed, count=9):
    """Tokens, and labels as in evaluation: -100 of the prompt and of the end."""
    random = np.random.default_rng(seed)
    ids = [random.integers(1, 99, size=random.integers(4, 30)).tolist() for _ in range(count)]
    labels = [[-100] * (len(one) // 2) + one[len(one) // 2 : -1] + [-100] for one in ids]
    return ids, labels


def test_documents_are_packed_as_the_reference_packs_them():
    ids, labels = documents(0)
    expected = group_texts({"input_ids": ids, "labels": labels}, 16)
    pairs = [(np.array(a), np.array(b) != -100) for a, b in zip(ids, labels, strict=True)]
    rows = told_rows.pack(pairs, 16)
    assert [row.tolist() for row, _ in rows] == expected["input_ids"]
    for (tokens, told), wanted in zip(rows, expected["labels"], strict=True):
        assert np.where(told, tokens, -100).tolist() == wanted


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    """What MLCommons gives out, in rows of 16 tokens."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(gov_report, "LENGTH", 16)

    def write(name, ids, labels):
        path = tmp_path / "given" / name
        path.parent.mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table({"input_ids": ids, "labels": labels}), path)
        return path

    ids, labels = documents(1)
    packed = group_texts({"input_ids": ids, "labels": labels}, 16)
    train = packed["input_ids"]
    write("train-00000-of-00002.parquet", train[:3], train[:3])
    write("train-00001-of-00002.parquet", train[3:], train[3:])
    write("validation-00000-of-00001.parquet", packed["input_ids"], packed["labels"])
    return write, packed


def test_what_mlcommons_gives_out_is_read(parquet, tmp_path):
    packed, root, folder = parquet[1], tmp_path / "given", tmp_path / "gov_report"
    count = len(packed["input_ids"])
    prepared.prepare_folder(folder, lambda empty: gov_report.convert(root, empty, (count, count)))
    dataset = gov_report.open_dataset(tmp_path, {"length": 16})
    assert (dataset.num_train, dataset.num_eval, dataset.fake) == (count, count, False)
    assert dataset.train_spec == {"tokens": ((17,), np.int32), "told": ((17,), np.uint8)}
    found = dataset.read_eval(np.arange(count), ["tokens", "told"])
    assert found["tokens"][:, :16].tolist() == packed["input_ids"] and not found["tokens"][:, 16].any()
    labels = np.where(found["told"] > 0, found["tokens"], -100)
    assert labels[:, :16].tolist() == packed["labels"] and (labels[:, 16] == -100).all()
    train = dataset.read_train(0, count, seed=1)
    assert sorted(train["tokens"][:, :16].tolist()) == sorted(packed["input_ids"])
    assert (train["told"] == [*[1] * 16, 0]).all()  # of train rows every token that there is
    shorter = gov_report.open_dataset(tmp_path, {"length": 5}).read_eval(np.arange(2), ["tokens"])["tokens"]
    assert shorter.tolist() == [[*row[:5], 0] for row in packed["input_ids"][:2]]
    with pytest.raises(UserError, match="have 16 tokens; give a --config.data.length of 2"):
        gov_report.open_dataset(tmp_path, {"length": 17})


def test_rows_that_cannot_be_are_refused(parquet, tmp_path):
    write, packed = parquet
    root, ids = tmp_path / "given", packed["input_ids"]
    counts = len(ids), len(ids)
    with pytest.raises(UserError, match=r"rows where 3,901 belong; get them again"):
        gov_report.convert(root, tmp_path)
    for name, tokens, labels, words in (
        ("short", [row[:-1] for row in ids], [row[:-1] for row in ids], "no 16 tokens of Llama 2"),
        ("ragged", [ids[0], ids[1][:3]], [ids[0], ids[1][:3]], "cannot be read as packed rows"),
        ("foreign", [[32_000] * 16], [[-100] * 16], "no 16 tokens of Llama 2"),
        ("other", ids, [[one + 1 for one in row] for row in ids], "its labels are not its tokens"),
    ):
        path = write("validation-00000-of-00001.parquet", tokens, labels)
        with pytest.raises(UserError, match=words):
            gov_report.convert(root, tmp_path, counts)
        assert name and path.exists()
    for content in (b"", b"PAR1" + bytes(20) + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="validation.* cannot be read as packed rows"):
            gov_report.convert(root, tmp_path, counts)
    with pytest.raises(
        UserError, match=r"GovReport is not in .*--workload=llama2_70b_lora --preset=closed --fake"
    ):
        prepare("gov_report", tmp_path / "none")


def test_made_up_reports(tmp_path):
    assert "made-up tokens, not MLPerf's data" in prepare("gov_report", tmp_path, fake=3)
    dataset = open_dataset("gov_report", tmp_path, {"fake": 3, "length": 128})
    assert dataset.fake and (dataset.num_train, dataset.num_eval) == (3, 1)
    told = dataset.read_eval(np.arange(1), ["told"])["told"]
    assert 0.3 < told[:, :-1].mean() < 0.7


# Debian's descriptions.

WORDS = " ".join(f"word{n}" for n in range(30))
PACKAGES = """Package: foo
Source: foo-src (1.2)
Description: does foo
Description-md5: 1

Package: foo-doc
Source: foo-src
Description-md5: 2

Package: bar
Version: 3

Package: tiny
Version: 3
"""
DESCRIPTIONS = f"""Package: foo
Description-md5: 1
Description-en: does foo
 {WORDS}
 and more
 .
   * a point

Package: foo-doc
Description-md5: 2
Description-en: foo, explained
 {WORDS}
 of documentation

Package: bar
Description-md5: 3
Description-en: foo, explained again
 {WORDS}
 of documentation

Package: tiny
Description-en: says nothing
 few words
"""
LISTS = {"x_binary_Packages": PACKAGES.encode(), "x_i18n_Translation-en": DESCRIPTIONS.encode()}


def test_descriptions_are_read_once_each_with_their_source():
    found = debian_descriptions.packages(LISTS)
    assert [(one.source, one.name, one.summary) for one in found] == [
        ("bar", "bar", "foo, explained again"),
        ("foo-src", "foo", "does foo"),
    ]
    assert found[1].description == f"{WORDS} and more\n* a point"


def made_up(count):
    return [
        debian_descriptions.Package(f"s{n % 997}", f"p{n}", f"about {n} {WORDS}", f"sums {n} up")
        for n in range(count)
    ]


def test_source_packages_are_held_out_whole():
    train, evaluation = debian_descriptions.split(made_up(5000))
    sources = [one.source for one in evaluation]
    assert not {one.source for one in train} & set(sources) and len(set(sources)) == len(sources)
    assert 10 < len(sources) <= debian_descriptions.NUM_EVAL and len(train) > 4500
    # More packages elsewhere change nothing of what is evaluated.
    fewer = debian_descriptions.split(one for one in made_up(5000) if one.source in sources)[1]
    assert fewer == evaluation


def test_the_summary_is_asked_for_and_not_the_prompt(tmp_path, monkeypatch):
    tokenizer = byte_pairs.learn([WORDS, debian_descriptions.prompt("about")], 400)
    tokenizer.add_special_tokens([smollm2.END])
    end = tokenizer.token_to_id(smollm2.END)
    package = made_up(3)[2]
    prompt = f"### Summarize the following text:\n {package.description}\n ### Summary:\n"
    for evaluated in (False, True):
        tokens, told = debian_descriptions.row(tokenizer, package, evaluated=evaluated)
        assert len(tokens) == len(told) == 128
        first, asked = int(told.argmax()), int(told.sum())
        assert tokenizer.decode(tokens[:first].tolist()) == prompt
        assert tokenizer.decode(tokens[first : first + asked].tolist()) == " sums 2 up"
        # Its end is asked for in training alone, as in the reference.
        assert (tokens[first + asked - 1] == end) != evaluated
        assert told[first : first + asked].all() and (tokens[first + asked :] == end).all()
    long = package._replace(description=WORDS * 9)
    assert debian_descriptions.row(tokenizer, long, evaluated=False) is None

    monkeypatch.setattr(smollm2, "prepare", lambda data_dir, verify: None)
    monkeypatch.setattr(byte_pairs, "read", lambda path: tokenizer)
    monkeypatch.setattr(debian_descriptions, "packages", lambda lists: [*made_up(400), long])
    manual = tmp_path / "manual" / "debian-lists"
    manual.mkdir(parents=True)
    for name, content in LISTS.items():
        (manual / name).write_bytes(content)
    told = prepare("debian_descriptions", tmp_path)
    dataset = open_dataset("debian_descriptions", tmp_path, {"length": 128})
    assert f"{dataset.num_train} to train on and {dataset.num_eval} to evaluate" in told
    assert dataset.num_train + dataset.num_eval == 400
    assert dataset.read_train(0, 2, seed=0)["tokens"].shape == (2, 129)
    with pytest.raises(UserError, match="leave --fake out"):
        prepare("debian_descriptions", tmp_path, fake=1)


def test_debians_lists_come_from_apt_get(tmp_path, monkeypatch):
    client = tmp_path / "apt-get"
    client.write_text(
        '#!/bin/sh\ncase "$*" in *Acquire::Languages=en*update*) '
        "for f in a_Packages a_Translation-en a_InRelease; do echo $f > apt/lists/$f; done;; *) exit 1;; esac\n"
    )
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = fetch.debian_lists().read(("*_Packages", "*_Translation-en"), scratch)
    assert found == {name: f"{name}\n".encode() for name in ("a_Packages", "a_Translation-en")}


# SmolLM2's subwords.


def test_subwords_are_those_that_the_file_says(tmp_path):
    tokens = ["<|im_end|>", "a", "b", "\u0120", "1", "2", "ab", "\u0120ab", "12"]
    facts = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, *[1] * 8],
        "tokenizer.ggml.merges": ["a b", "\u0120 ab", "1 2"],
    }
    path = tmp_path / "x.gguf"
    gguf_writer.write(path, facts, {})
    tokenizer = byte_pairs.of(*smollm2.subwords(path))
    # Digits stay alone, whatever pairs there are.
    assert tokenizer.encode("ab ab12<|im_end|>").tokens == ["ab", "\u0120ab", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(tokenizer.encode("b 2a").ids) == "b 2a"
    gguf_writer.write(path, facts | {"tokenizer.ggml.pre": "llama-bpe"}, {})
    with pytest.raises(UserError, match="cannot be read as a tokenizer .its subwords are of another kind"):
        smollm2.subwords(path)
    gguf_writer.write(path, {}, {})
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        smollm2.subwords(path)
