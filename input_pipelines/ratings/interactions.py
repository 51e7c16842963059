"""Which items each user chose: the last one held out, and negatives drawn for training anew in each epoch.

On disk a set is the chosen items of all users, user after user and in order within a user (`train_item`,
`train_start`), one held-out item per user and the negatives that it is ranked among (`eval_positive`,
`eval_negatives`). The last two are fixed when the set is prepared, by the reference's own random numbers.

A training example is a number: 1 + `negatives` of them belong to each chosen item, the first is that item and
the others are drawn. Which example stands where in an epoch, and what is drawn, the device works out
(`mlperf_jax.workloads.negatives`): the host hands it no more than positions.

Source: mlcommons/training at fe17e83 (v0.5), recommendation/pytorch/convert.py and dataset.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipelines import base, prepared, synthetic
from mlperf_jax.errors import UserError

LEAST_RATINGS = 20
"""Users with fewer are left out."""

_INT32 = np.dtype(np.int32)


class Interactions(NamedTuple):
    """Chosen items, and what is held out of them.

    Attributes:
        item: [n] int32, user after user, ascending within a user.
        start: [U + 1] int32, where each user's items begin.
        positive: [U] int32, the item that each user chose last; not among `item`.
        negatives: [U, N] int32, ascending within a user: items that the user did not choose, drawn with
            replacement. The positive is not chosen in this sense, so it may be among them.
        num_items: I.
    """

    item: np.ndarray
    start: np.ndarray
    positive: np.ndarray
    negatives: np.ndarray
    num_items: int

    @property
    def num_users(self) -> int:
        return len(self.positive)


def leave_one_out(user: np.ndarray, item: np.ndarray, time: np.ndarray, negatives: int) -> Interactions:
    """Holds out each user's last rating, and draws the negatives it is ranked among.

    Users and items are numbered by where they come first. Of ratings at one time the last in the table counts
    as the last (the reference's sort leaves that open).

    Args:
        user, item: [n] int64 names; no pair twice.
        time: [n] int64.
        negatives: N.
    """
    _, group, count = np.unique(user, return_inverse=True, return_counts=True)
    kept = count[group] >= LEAST_RATINGS
    user, item = _numbered(user[kept]), _numbered(item[kept])
    num_users, num_items = int(user.max()) + 1, int(item.max()) + 1
    last = np.lexsort((time[kept], user))[np.cumsum(np.bincount(user)) - 1]
    positive = item[last].astype(np.int32)
    train = np.ones(len(user), bool)
    train[last] = False
    order = np.lexsort((item[train], user[train]))
    chosen = item[train][order].astype(np.int32)
    start = np.append(0, np.cumsum(np.bincount(user[train], minlength=num_users))).astype(np.int32)
    drawn = _evaluation_negatives(chosen, start, num_items, negatives)
    return Interactions(chosen, start, positive, drawn, num_items)


def _numbered(names: np.ndarray) -> np.ndarray:
    """Numbers by first place: [7, 3, 7] -> [0, 1, 0]."""
    _, first, group = np.unique(names, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[group]


def _evaluation_negatives(item: np.ndarray, start: np.ndarray, num_items: int, count: int) -> np.ndarray:
    """The reference's, of its seed 0: for each user in turn so many of the items outside the training set."""
    random = np.random.RandomState(0)
    drawn = np.empty((len(start) - 1, count), np.int32)
    for user, (begin, end) in enumerate(zip(start, start[1:], strict=False)):
        free = np.ones(num_items, bool)
        free[item[begin:end]] = False
        drawn[user] = np.sort(random.choice(np.flatnonzero(free), count))
    return drawn


def made_up(num_ratings: int, users: int, items: int, negatives: int) -> Interactions:
    """Ratings of no meaning: each user chose so many items in steps of a stride of the user's own.

    Args:
        num_ratings: of all users, held-out ones included.
        users: so many, each with an equal share of the ratings, at most one more or less.
        items: a prime number or not, more than a user's share.
        negatives: N.
    """
    random = np.random.default_rng(0)
    counts = np.full(users, num_ratings // users)
    counts[: num_ratings % users] += 1
    coprime = np.flatnonzero(np.gcd(np.arange(items), items) == 1)
    first, stride = random.integers(items, size=users), random.choice(coprime, users)
    user = np.repeat(np.arange(users), counts - 1)
    place = np.arange(len(user)) - np.repeat(np.cumsum(counts - 1) - (counts - 1), counts - 1)
    item = (first[user] + stride[user] * (place + 1)) % items
    item = item[np.lexsort((item, user))].astype(np.int32)
    start = np.append(0, np.cumsum(counts - 1)).astype(np.int32)
    drawn = np.sort(random.integers(items, size=(users, negatives), dtype=np.int32), axis=1)
    return Interactions(item, start, first.astype(np.int32), drawn, items)


def save(folder: Path, data: Interactions) -> dict[str, Any]:
    """Writes the arrays into a folder, and returns the counts for its manifest."""
    train = {"item": data.item, "start": data.start}
    prepared.save_arrays(folder, "train", train)
    prepared.save_arrays(folder, "eval", {"positive": data.positive, "negatives": data.negatives})
    counts = {"num_train": len(data.item), "num_eval": data.num_users, "num_items": data.num_items}
    return counts | {"num_negatives": data.negatives.shape[1]}


def load(folder: Path) -> tuple[Interactions, bool]:
    """Maps a prepared set into memory, and says whether it was made up.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    facts = prepared.read_manifest(folder)
    rows, users, items = (facts[name] for name in ("num_train", "num_eval", "num_items"))
    splits = {
        "train": {"item": (rows,), "start": (users + 1,)},
        "eval": {"positive": (users,), "negatives": (users, facts["num_negatives"])},
    }
    arrays = {
        name: prepared.open_array(folder / f"{split}_{name}.npy", shape, _INT32)
        for split, shapes in splits.items()
        for name, shape in shapes.items()
    }
    start = np.asarray(arrays["start"])
    if type(items) is not int or start[0] or start[-1] != rows or (np.diff(start) < 0).any():
        raise UserError(f"{folder} is damaged (its counts do not fit); {prepared.AGAIN}")
    return Interactions(**arrays, num_items=items), facts["fake"]


class InteractionSet(base.Dataset):
    """A data set of interactions.

    Train examples are places in the order of epochs: `epoch` and `offset`, int32 each. Evaluation examples are
    users: `user`, `positive` and `negatives` [N], int32.

    Attributes:
        data: all of it.
        negatives: drawn for each chosen item in each epoch.
    """

    def __init__(self, data: Interactions, *, negatives: int, fake: bool, name: str) -> None:
        self.data, self.negatives = data, negatives
        users, items, rows = data.num_users, data.num_items, len(data.item)
        super().__init__(
            num_train=rows * (1 + negatives),
            num_eval=users,
            train_spec={"epoch": ((), _INT32), "offset": ((), _INT32)},
            eval_spec={
                "user": ((), _INT32),
                "positive": ((), _INT32),
                "negatives": (data.negatives.shape[1:], _INT32),
            },
            fake=fake,
            description=f"{name}, {users:,} users, {items:,} items, {rows:,} train choices",
        )
        if self.num_train >= 2**31:
            raise UserError(
                f"{rows:,} choices with {negatives} negatives each are more than int32 can number."
            )

    def read_train(self, start: int, stop: int, seed: int) -> base.HostBatch:
        epoch, offset = np.divmod(np.arange(start, stop), self.num_train)
        return {"epoch": epoch.astype(np.int32), "offset": offset.astype(np.int32)}

    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> base.HostBatch:
        found = {
            "user": lambda: indices.astype(np.int32),
            "positive": lambda: self.data.positive[indices],
            "negatives": lambda: self.data.negatives[indices],
        }
        return {name: found[name]() for name in fields}


def open_synthetic(
    name: str, options: Mapping[str, Any], *, ratings: int, users: int, items: int, negatives: int
) -> InteractionSet:
    """What `--synthetic_data` makes up, in a second at any size: each user's items lie evenly, all users' negatives are alike."""
    drawn = options.get("negatives", 4)
    num_train, users = synthetic.counts(options, (ratings - users) * (1 + drawn), users)
    rows = max(num_train // (1 + drawn), users)
    if rows >= users * items:
        raise UserError(
            f"{rows:,} choices of {users:,} users are more than {items:,} items allow; ask for fewer."
        )
    counts = np.full(users, rows // users, np.int32)
    counts[: rows % users] += 1
    start = np.append(0, np.cumsum(counts)).astype(np.int32)
    place = np.arange(rows, dtype=np.int32) - np.repeat(start[:-1], counts)
    step = items // counts.max()
    item = place * step + np.repeat(np.arange(users, dtype=np.int32) % step, counts)
    pool = np.sort(np.random.default_rng(0).integers(items, size=negatives, dtype=np.int32))
    data = Interactions(
        item,
        start,
        np.arange(users, dtype=np.int32) % items,
        np.broadcast_to(pool, (users, negatives)),
        items,
    )
    return InteractionSet(data, negatives=drawn, fake=True, name=f"synthetic data shaped as {name}")
