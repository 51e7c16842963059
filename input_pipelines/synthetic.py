"""Random examples in a data set's shapes, without any files: for throughput, never for quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from input_pipelines import base
from mlperf_jax.errors import UserError

_Dataset = TypeVar("_Dataset", bound=base.InMemoryDataset)


def open_dataset(
    make: Callable[..., _Dataset],
    name: str,
    spec: base.Spec,
    limits: Mapping[str, int | np.ndarray],
    *,
    num_train: int,
    num_eval: int,
    options: Mapping[str, Any],
    distinct: int = 64,
) -> _Dataset:
    """Makes a data set of random examples.

    Args:
        make: the class, called as `base.InMemoryDataset` is.
        name: of the data set that it stands for.
        spec: shape and dtype of each field of an example.
        limits: field -> whole numbers are drawn from [0, limit); an array has a limit for each place.
        num_train, num_eval: the real set's counts, which options of these names replace.
        distinct: as many examples are made up, and repeated; more than few matter where what is in them
            decides how much work they are.
    """
    random = np.random.default_rng(0)
    pool = {
        field: random.integers(
            limits[field], size=(distinct, *shape), dtype=dtype if dtype.kind in "iu" else np.int64
        ).astype(dtype)
        for field, (shape, dtype) in spec.items()
    }
    num_train, num_eval = counts(options, num_train, num_eval)
    train, evaluation = (
        {field: Repeated(values, count) for field, values in pool.items()} for count in (num_train, num_eval)
    )
    return make(train, evaluation, fake=True, description=describe(name, num_train, num_eval))


def counts(options: Mapping[str, Any], num_train: int, num_eval: int) -> tuple[int, int]:
    """The real set's counts, or those that options of their names put in their place.

    Raises:
        UserError: one of these is no count.
    """
    found = options.get("num_train") or num_train, options.get("num_eval") or num_eval
    for name, count in zip(("num_train", "num_eval"), found, strict=True):
        if not isinstance(count, int) or count < 1:
            raise UserError(f"--config.data.{name}={count!r} is no number of examples; give one above 0.")
    return found


def describe(name: str, num_train: int, num_eval: int) -> str:
    return f"synthetic data shaped as {name}, {num_train:,} train and {num_eval:,} eval examples"


class Repeated:
    """A `base.Field` of any length that repeats a short one."""

    def __init__(self, values: np.ndarray, length: int) -> None:
        self._values, self._length = values, length
        self.shape, self.dtype = (length, *values.shape[1:]), values.dtype

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return self._values[index % len(self._values)]
