"""Snippets of film reviews with people's ratings, from PyPI's `vaderSentiment` (MIT): does this one speak well of it?

10,605 sentences of rottentomatoes.com, each rated from -4 to 4 by twenty people (Hutto and Gilbert, "VADER", ICWSM
2014). The label is 0 where the mean is above 0 and 1 where it is below, as the reference numbers them; those at 0
are left out. Sentences are permuted by `base.epoch_permutation(seed=0, epoch=0)`, and the first fifth is for
evaluation. The vocabulary comes from the train split alone: words that occur more than once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, fetch, prepared, source_distribution
from input_pipelines.text import labelled_text
from mlperf_jax.errors import UserError

CUTOFF = 1

_ARCHIVE = fetch.PinnedFile(
    "hutto_ICWSM_2014.tar.gz",
    6_404_608,
    "3c42a3c582708e3f895221d50d261f1aa36d4f7e6c20e63acc082c6bb1f6c28b",
)
_TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

Split = tuple[list[list[bytes]], list[int]]
"""Words of each text, and labels."""


def sources(data_dir: Path) -> list[fetch.Source]:
    """Returns where the ratings can come from, in the order in which they are tried."""
    return [
        fetch.folder(data_dir / "manual" / "movie_snippets"),
        source_distribution.pypi_sdist("vaderSentiment==3.3.2", "additional_resources"),
    ]


def read(table: str) -> Split:
    """The rated sentences of lines "number <tab> mean rating <tab> text"."""
    rows = [line.split("\t", 2) for line in table.splitlines() if line.count("\t") >= 2]
    rated = [(float(rating), labelled_text.words(text.encode())) for _, rating, text in rows]
    rated = [(rating, text) for rating, text in rated if rating]
    return [text for _, text in rated], [int(rating < 0) for rating, _ in rated]


def split(texts: Split) -> tuple[Split, Split]:
    """Train and evaluation."""
    order = base.epoch_permutation(0, 0, len(texts[0]))
    parts = np.sort(order[len(order) // 5 :]), np.sort(order[: len(order) // 5])
    train, evaluation = (([texts[0][i] for i in part], [texts[1][i] for i in part]) for part in parts)
    return train, evaluation


def fetch_snippets(data_dir: Path, scratch: Path) -> Split:
    """Fetches the rated sentences.

    Raises:
        UserError: they could not be had from any source.
    """
    manual = data_dir / "manual" / "movie_snippets"
    by_hand = f"{_ARCHIVE.name} of vaderSentiment 3.3.2 into {manual}"
    files = fetch.fetch("film review snippets", [_ARCHIVE], sources(data_dir), scratch, by_hand=by_hand)
    found = fetch.tar_members(files[_ARCHIVE.name], {_TABLE: "table"})
    return read(found["table"].decode("utf-8", "replace"))


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/movie_snippets unless it is there, and says what it is.

    Raises:
        UserError: the ratings could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError(
            "The film review snippets are few and real, so there is no --fake set of them; leave --fake out."
        )

    def build(folder: Path) -> dict[str, Any]:
        with prepared.scratch_folder(folder) as scratch:
            texts = split(fetch_snippets(data_dir, scratch))
        known = labelled_text.vocabulary(texts[0][0], CUTOFF)
        train, evaluation = (
            ([labelled_text.numbered(text, known) for text in part], labels) for part, labels in texts
        )
        return {"name": "movie_snippets", "fake": False} | labelled_text.save(
            folder, train, evaluation, known
        )

    folder = data_dir / "movie_snippets"
    prepared.prepare_folder(folder, build, verify=verify)
    return f"{open_dataset(data_dir, {'widths': (64,)}).description}, in {folder}"


open_synthetic = functools.partial(
    labelled_text.open_synthetic, "movie_snippets", num_train=8_000, num_eval=2_000, vocabulary_size=9_000
)


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> labelled_text.LabelledTexts:
    """Opens the prepared set; see `labelled_text`.

    Args:
        data_dir: holds the prepared sets.
        options: `widths` of batches, in words.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    return labelled_text.load(data_dir / "movie_snippets", "film review snippets", options["widths"])
