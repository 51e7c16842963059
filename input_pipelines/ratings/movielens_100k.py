"""MovieLens-100K (GroupLens; research use): 100,000 ratings, 943 users, 1,682 films, as PyPI's `recbole` carries them.

Each user's last film is ranked among 99 that were not rated, as He et al. (arXiv:1708.05031) do; the rest is as
of MLPerf's MovieLens-20M.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipelines import fetch, prepared
from input_pipelines.ratings import interactions, tables
from mlperf_jax.errors import UserError

RATINGS, USERS, ITEMS, NEGATIVES = 100_000, 943, 1_682, 99

_FILE = fetch.PinnedFile(
    "ml-100k.inter",
    1_979_230,
    "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    compression="none",
)


def sources(data_dir: Path) -> list[fetch.Source]:
    """Returns where the table can come from, in the order in which they are tried."""
    return [
        fetch.folder(data_dir / "manual" / "movielens_100k"),
        fetch.pypi_package("recbole==1.2.1", "recbole/dataset_example/ml-100k"),
    ]


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/movielens_100k unless it is there, and says what it is.

    Raises:
        UserError: the table could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError(
            "MovieLens-100K is small and real, so there is no --fake set of it; leave --fake out."
        )

    def build(folder: Path) -> dict[str, Any]:
        by_hand = f"{_FILE.name} of recbole 1.2.1 into {data_dir / 'manual' / 'movielens_100k'}"
        with prepared.scratch_folder(folder) as scratch:
            files = fetch.fetch("MovieLens-100K", [_FILE], sources(data_dir), scratch, by_hand=by_hand)
        user, item, time = tables.read(files[_FILE.name].decode().splitlines(), "\t", (0, 1, 3))
        counts = interactions.save(folder, interactions.leave_one_out(user, item, time, NEGATIVES))
        return {"name": "movielens_100k", "fake": False} | counts

    prepared.prepare_folder(data_dir / "movielens_100k", build, verify=verify)
    return f"{open_dataset(data_dir, {}).description}, in {data_dir / 'movielens_100k'}"


open_synthetic = functools.partial(
    interactions.open_synthetic,
    "MovieLens-100K",
    ratings=RATINGS,
    users=USERS,
    items=ITEMS,
    negatives=NEGATIVES,
)


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> interactions.InteractionSet:
    """Opens the prepared set; see `interactions`.

    Args:
        data_dir: holds the prepared sets.
        options: `negatives` (4) to a chosen item in training.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    data, fake = interactions.load(data_dir / "movielens_100k")
    return interactions.InteractionSet(
        data, negatives=options.get("negatives", 4), fake=fake, name="MovieLens-100K"
    )
