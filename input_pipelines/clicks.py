"""What data sets for recommendation have in common: numbers, look-ups in tables, and a yes or no.

An example has `dense` float32 [D], `sparse` int32 [L] and `label` float32 [], 0 or 1. Table t has
`table_sizes[t]` rows and is looked up `multi_hot_sizes[t]` times; its look-ups, numbers of rows from
0, stand together in `sparse`, in the order of the tables, so that L is the sum of `multi_hot_sizes`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from input_pipelines import base, synthetic
from mlperf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a data set.

    Attributes:
        num_dense: D.
        table_sizes: rows of each table.
        multi_hot_sizes: look-ups of each table in an example.
    """

    num_dense: int
    table_sizes: tuple[int, ...]
    multi_hot_sizes: tuple[int, ...]

    @property
    def spec(self) -> base.Spec:
        return {
            "dense": ((self.num_dense,), np.dtype(np.float32)),
            "sparse": ((sum(self.multi_hot_sizes),), np.dtype(np.int32)),
            "label": ((), np.dtype(np.float32)),
        }

    @property
    def rows(self) -> np.ndarray:
        """How many rows the table of each look-up has, [L] int32."""
        return np.repeat(np.array(self.table_sizes, np.int32), self.multi_hot_sizes)

    def synthetic_shapes(self, *, num_train: int, num_eval: int) -> synthetic.Shapes:
        """What `--synthetic_data` makes up in place of a data set of so many examples."""
        limits = {"dense": 10, "sparse": self.rows, "label": 2}
        return synthetic.Shapes(self.spec, limits, num_train, num_eval, attributes=dataclasses.asdict(self))


def cut(table_sizes: tuple[int, ...], options: Mapping[str, Any]) -> tuple[int, ...]:
    """Cuts tables to `options["table_fraction"]` (1 by default) of their rows, rounded up.

    Raises:
        UserError: the fraction is not in (0, 1].
    """
    fraction = options.get("table_fraction", 1.0)
    if not 0 < fraction <= 1:
        raise UserError(
            f"table_fraction cannot be {fraction}; it is the share of each table's rows, at most 1."
        )
    return tuple(math.ceil(size * fraction) for size in table_sizes)


class InMemoryClicks(base.InMemoryDataset):
    """A `base.InMemoryDataset` that has the attributes of its `Columns`."""

    def __init__(
        self,
        columns: Columns,
        train: Mapping[str, np.ndarray],
        evaluation: Mapping[str, np.ndarray],
        *,
        fake: bool,
        description: str,
    ) -> None:
        super().__init__(train, evaluation, fake=fake, description=description)
        self.num_dense, self.table_sizes = columns.num_dense, columns.table_sizes
        self.multi_hot_sizes = columns.multi_hot_sizes
