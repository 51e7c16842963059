"""MovieLens-20M (GroupLens; research use), which NCF of MLPerf v0.5 is trained on: 138,493 users, 26,744 films.

DATA_DIR/ml-20m (or DATA_DIR itself) holds GroupLens's `ratings.csv`, 20,000,263 ratings; `prepare` turns it into
DATA_DIR/movielens_20m, each user's last film ranked among 999. Where the reference starts its clock before
it draws these, they lie there: its seed 0 makes them the same in all runs.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared, progress
from input_pipelines.ratings import interactions, tables
from mlperf_jax.errors import UserError

RATINGS, USERS, ITEMS, NEGATIVES = 20_000_263, 138_493, 26_744, 999

FAKE_BYTES = 4 + 4 * NEGATIVES * USERS // RATINGS


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/movielens_20m of `ratings.csv` unless it is there, or a made-up set, and says what it is.

    Args:
        data_dir: see the module.
        fake: if not 0, so many ratings are made up, of as many users as that is a share of the real ones, and
            of all items.
        verify: hash the files of a set that is there already.

    Raises:
        UserError: the table is not there, is damaged or not the whole of it, or the disk is full.
    """
    folder = _folder(data_dir, fake)
    prepared.prepare_folder(
        folder,
        functools.partial(_make_up, fake) if fake else functools.partial(_convert, data_dir),
        verify=verify,
    )
    return f"{open_dataset(data_dir, {'fake': fake}).description}, in {folder}"


def _make_up(ratings: int, folder: Path) -> dict[str, Any]:
    with progress.step(f"making up {ratings:,} ratings"):
        users = max(ratings * USERS // RATINGS, 1)
        if ratings < 2 * users or ratings // users >= ITEMS:
            raise UserError(f"--fake={ratings} is too few ratings; give 200 or more.")
        counts = interactions.save(folder, interactions.made_up(ratings, users, ITEMS, NEGATIVES))
    return {"name": folder.name, "fake": True} | counts


def _convert(data_dir: Path, folder: Path) -> dict[str, Any]:
    path = next(
        (p for p in (data_dir / "ml-20m" / "ratings.csv", data_dir / "ratings.csv") if p.is_file()), None
    )
    if path is None:
        raise UserError(
            f"MovieLens-20M is not in {data_dir}; get ml-20m.zip from GroupLens, unpack it to "
            f"{data_dir / 'ml-20m' / 'ratings.csv'} and prepare it (--prepare, or python -m mlperf_jax.prepare), or use "
            "--preset=mini, --synthetic_data, or a made-up set: `python -m mlperf_jax.prepare --workload=ncf "
            "--fake=N`, then --config.data.fake=N."
        )
    with progress.step(f"reading {path}"):
        try:
            with open(path, encoding="ascii") as lines:
                user, item, time = tables.read(lines, ",", (0, 1, 3))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({prepared.one_line(error)}); get it again.") from None
        if len(user) != RATINGS or len(np.unique(user)) != USERS or len(np.unique(item)) != ITEMS:
            raise UserError(
                f"{path} has {len(user):,} ratings where MovieLens-20M has {RATINGS:,} of {USERS:,} users and "
                f"{ITEMS:,} films; get the whole file."
            )
    with progress.step("holding out the last ratings, drawing what they are ranked among"):
        counts = interactions.save(folder, interactions.leave_one_out(user, item, time, NEGATIVES))
    return {"name": "movielens_20m", "fake": False} | counts


open_synthetic = functools.partial(
    interactions.open_synthetic,
    "MovieLens-20M",
    ratings=RATINGS,
    users=USERS,
    items=ITEMS,
    negatives=NEGATIVES,
)


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> interactions.InteractionSet:
    """Opens the prepared set; see `interactions`.

    Args:
        data_dir: holds the prepared sets.
        options: `negatives` (4) to a chosen item in training; `fake` (int, 0): the set that `prepare --fake=N` wrote.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    fake = options.get("fake") or 0
    data, made_up = interactions.load(_folder(data_dir, fake))
    name = "made-up ratings, not MLPerf's data" if made_up else "MovieLens-20M"
    return interactions.InteractionSet(data, negatives=options.get("negatives", 4), fake=made_up, name=name)


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"movielens_20m_fake_{fake}" if fake else "movielens_20m")
