"""Random examples in a data set's shapes, without any files: for throughput, never for quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from input_pipelines import base


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What to make up.

    Attributes:
        spec: shape and dtype of each field of an example.
        limits: field -> whole numbers are drawn from [0, limit); an array has a limit for each place.
        num_train, num_eval: the real set's counts.
        distinct: as many examples are made up, and repeated; more than few matter where what is in them
            decides how much work they are.
        in_order: like a set that is not shuffled; the order of billions would not fit in memory.
        attributes: what else the real set tells of itself.
    """

    spec: base.Spec
    limits: Mapping[str, int | np.ndarray]
    num_train: int
    num_eval: int
    distinct: int = 64
    in_order: bool = False
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def open_dataset(name: str, shapes: Shapes, options: Mapping[str, Any]) -> base.InMemoryDataset:
    """Makes a data set of random examples.

    Args:
        name: of the data set that it stands for.
        shapes: what that one looks like.
        options: `num_train` and `num_eval` replace the real counts where they are given.
    """
    num_train = options.get("num_train") or shapes.num_train
    num_eval = options.get("num_eval") or shapes.num_eval
    random = np.random.default_rng(0)
    pool = {
        field: random.integers(
            shapes.limits[field],
            size=(shapes.distinct, *shape),
            dtype=dtype if dtype.kind in "iu" else np.int64,
        ).astype(dtype)
        for field, (shape, dtype) in shapes.spec.items()
    }
    dataset = (_InOrder if shapes.in_order else base.InMemoryDataset)(
        {field: Repeated(values, num_train) for field, values in pool.items()},
        {field: Repeated(values, num_eval) for field, values in pool.items()},
        fake=True,
        description=f"synthetic data shaped as {name}, {num_train:,} train and {num_eval:,} eval examples",
    )
    vars(dataset).update(shapes.attributes)
    return dataset


class _InOrder(base.InMemoryDataset):
    def _examples_at(self, positions: np.ndarray, seed: int) -> np.ndarray:
        return positions % self.num_train


class Repeated:
    """Behaves like a long array, for gathering rows, that repeats a short one."""

    def __init__(self, values: np.ndarray, length: int) -> None:
        self._values, self._length = values, length
        self.shape, self.dtype = (length, *values.shape[1:]), values.dtype

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self._values[index % len(self._values)]
