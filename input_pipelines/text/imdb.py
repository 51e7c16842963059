"""IMDB's film reviews (Maas et al., 2011), which MLPerf's draft of sentiment analysis is trained on: 25,000 and 25,000.

DATA_DIR/aclImdb (or DATA_DIR itself) holds the folders of Stanford's archive, `{train,test}/{pos,neg}/*.txt`; or
DATA_DIR/imdb_reviews those of TFDS's `imdb_reviews/plain_text`, in TFRecords or ArrayRecords. `prepare` turns them into
DATA_DIR/imdb. The vocabulary holds the words that occur more than 150 times in both splits together: 5,147 with
`<unk>` (read in the output of PaddlePaddle/docs, doc/paddle/tutorial/nlp_case/imdb_bow_classification, where the
last word is number 5,146); a positive review has label 0, as the package numbers them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared, progress
from input_pipelines.text import labelled_text
from mlperf_jax.errors import UserError

NUM_TRAIN = NUM_EVAL = 25_000
CUTOFF, VOCABULARY_SIZE = 150, 5_147
LONGEST = 2_560
"""Words that the widest batch holds; a longer review would be cut."""

FAKE_BYTES = 1000

_LABELS = {"pos": 0, "neg": 1}


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/imdb of the reviews unless it is there, or a made-up set, and says what it is.

    Args:
        data_dir: see the module.
        fake: if not 0, so many train reviews of random words are made up, and an eighth as many for evaluation.
        verify: hash the files of a set that is there already.

    Raises:
        UserError: the reviews are not there, not all of them, or the disk is full.
    """
    folder = _folder(data_dir, fake)
    build = functools.partial(_make_up, fake) if fake else functools.partial(_convert, data_dir)
    prepared.prepare_folder(folder, build, verify=verify)
    return f"{open_dataset(data_dir, {'fake': fake, 'widths': (LONGEST,)}).description}, in {folder}"


def _make_up(count: int, folder: Path) -> dict[str, Any]:
    random = np.random.default_rng(0)
    with progress.step(f"making up {count:,} reviews"):
        train, evaluation = (
            labelled_text.made_up(number, LONGEST, VOCABULARY_SIZE, random)
            for number in (count, max(1, count // 8))
        )
        known = {b"%d" % number: number for number in range(VOCABULARY_SIZE)}
        facts = labelled_text.save(folder, train, evaluation, known)
    return {"name": folder.name, "fake": True} | facts


def _convert(data_dir: Path, folder: Path) -> dict[str, Any]:
    splits = {split: _read(data_dir, split) for split in ("train", "test")}
    for split, (texts, labels) in splits.items():
        if len(texts) != NUM_TRAIN or sum(labels) * 2 != NUM_TRAIN:
            raise UserError(
                f"IMDB's {split} split in {data_dir} has {len(texts):,} reviews, {sum(labels):,} of them negative, where "
                f"{NUM_TRAIN:,} and half of them belong; get aclImdb_v1.tar.gz again."
            )
    with progress.step("counting words"):
        known = labelled_text.vocabulary((text for texts, _ in splits.values() for text in texts), CUTOFF)
        train, evaluation = (
            ([labelled_text.numbered(text, known) for text in texts], labels)
            for texts, labels in splits.values()
        )
        return {"name": "imdb", "fake": False} | labelled_text.save(folder, train, evaluation, known)


def _read(data_dir: Path, split: str) -> tuple[list[list[bytes]], list[int]]:
    """Words of each review of a split, and labels."""
    texts: list[list[bytes]] = []
    labels: list[int] = []
    for root in (data_dir / "aclImdb", data_dir):
        for name, label in _LABELS.items():
            paths = sorted((root / split / name).glob("*.txt"))
            with progress.step(f"reading {root / split / name}", len(paths), "reviews") as advance:
                for path in paths:
                    texts.append(labelled_text.words(path.read_bytes()))
                    labels.append(label)
                    advance(1)
        if texts:
            return texts, labels
    if (data_dir / "imdb_reviews").is_dir():
        return _read_tfds(data_dir, split)
    raise UserError(
        f"IMDB's reviews are not in {data_dir}; unpack aclImdb_v1.tar.gz to {data_dir / 'aclImdb'} (or let TFDS prepare "
        "imdb_reviews there) and prepare it (--prepare, or python -m mlperf_jax.prepare), or use --preset=mini, "
        "--synthetic_data, or a made-up set: `python -m mlperf_jax.prepare --workload=sentiment --fake=N`, then "
        "--config.data.fake=N."
    )


def _read_tfds(data_dir: Path, split: str) -> tuple[list[list[bytes]], list[int]]:
    import tensorflow_datasets as tfds

    try:
        reviews = tfds.data_source("imdb_reviews", split=split, data_dir=data_dir, download=False)
    except Exception as error:  # TFDS has many of its own
        raise UserError(
            f"TFDS cannot open imdb_reviews in {data_dir} ({prepared.one_line(error)}); prepare it with "
            "file_format=array_record."
        ) from None
    texts = [labelled_text.words(bytes(review["text"])) for review in reviews]
    return texts, [1 - int(review["label"]) for review in reviews]  # TFDS has 1 for a positive one


open_synthetic = functools.partial(
    labelled_text.open_synthetic,
    "imdb",
    num_train=NUM_TRAIN,
    num_eval=NUM_EVAL,
    vocabulary_size=VOCABULARY_SIZE,
)


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> labelled_text.LabelledTexts:
    """Opens the prepared set; see `labelled_text`.

    Args:
        data_dir: holds the prepared sets.
        options: `widths` of batches, in words; `fake` (int, 0): the set that `prepare --fake=N` wrote.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    fake = options.get("fake") or 0
    name = "made-up reviews, not MLPerf's data" if fake else "IMDB"
    return labelled_text.load(_folder(data_dir, fake), name, options["widths"])


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"imdb_fake_{fake}" if fake else "imdb")
