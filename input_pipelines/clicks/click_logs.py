"""What data sets for recommendation have in common: numbers, look-ups in tables, and a yes or no.

An example has `dense` float32 [D], `sparse` int32 [L] and `label` float32 [], 0 or 1. Table t has
`table_sizes[t]` rows and is looked up `multi_hot_sizes[t]` times; its look-ups, numbers of rows from
0, stand together in `sparse`, in the order of the tables, so that L is the sum of `multi_hot_sizes`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from input_pipelines import base, progress, synthetic
from mlperf_jax.errors import UserError

_VERIFIED_AT_ONCE = 2**18


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

    def cut(self, options: Mapping[str, Any]) -> Columns:
        """Tables of the share `table_fraction` (1 by default) of their rows, rounded up.

        Raises:
            UserError: the share is not in (0, 1].
        """
        fraction = options.get("table_fraction", 1.0)
        if not 0 < fraction <= 1:
            raise UserError(
                f"table_fraction cannot be {fraction}; it is the share of each table's rows, at most 1."
            )
        return dataclasses.replace(
            self, table_sizes=tuple(math.ceil(size * fraction) for size in self.table_sizes)
        )

    def made_up(self, random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Makes up examples: label [N, 1], numbers [N, D] and rows [N, L], all int64.

        As in logs of clicks, numbers are counts of a long tail, few rows are looked up often, and one
        example in about thirty is a click; the first number tells something of it.
        """
        numbers = np.floor(np.exp(random.normal(1.0, 1.5, size=(count, self.num_dense)))).astype(np.int64)
        rows = (self.rows * random.random((count, len(self.rows))) ** 4).astype(np.int64)
        chance = 1 / (1 + np.exp(4.5 - np.log1p(numbers[:, :1])))
        return (random.random((count, 1)) < chance).astype(np.int64), numbers, rows


class ClickDataset(base.Dataset):
    """A `base.Dataset` of clicks.

    Attributes:
        columns: of the examples.
    """

    columns: Columns


class InMemoryClicks(base.InMemoryDataset, ClickDataset):
    """Clicks in memory; but for `columns` as `base.InMemoryDataset`."""

    def __init__(
        self,
        columns: Columns,
        train: Mapping[str, base.Field],
        evaluation: Mapping[str, base.Field],
        *,
        fake: bool,
        description: str,
    ) -> None:
        super().__init__(train, evaluation, fake=fake, description=description)
        self.columns = columns


class _SyntheticClicks(InMemoryClicks):
    """Clicks in the order of their numbers: another order of billions would not fit in memory."""

    def _examples_at(self, positions: np.ndarray, seed: int) -> np.ndarray:
        return positions % self.num_train


def open_synthetic(
    name: str, columns: Columns, options: Mapping[str, Any], *, num_train: int, num_eval: int
) -> InMemoryClicks:
    """What `--synthetic_data` makes up in place of a data set of so many examples."""
    return synthetic.open_dataset(
        functools.partial(_SyntheticClicks, columns),
        name,
        columns.spec,
        {"dense": 10, "sparse": columns.rows, "label": 2},
        num_train=num_train,
        num_eval=num_eval,
        options=options,
        distinct=1 << 16,  # of rows that are looked up again a device fetches one copy
    )


class Rows(Protocol):
    """Examples on disk, in their order."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int, out: base.HostBatch) -> None:
        """Writes examples [start, stop) into arrays of that length: dense, sparse and label."""
        ...


class MappedClicks(ClickDataset):
    """Examples that are read in runs, from files mapped into memory.

    Training keeps the files' order, or shuffles blocks of examples that lie side by side: single
    examples cannot be fetched from terabytes at the speed of training.

    Args:
        columns: of the examples; `sparse` is taken modulo their table sizes where tables are cut.
        train, evaluation: the examples.
        block: how many examples stay side by side when shuffled; 0 keeps the order.
        num_threads: batches read at once.
        fake, description: see `base.Dataset`.
    """

    def __init__(
        self,
        columns: Columns,
        train: Rows,
        evaluation: Rows,
        *,
        block: int,
        num_threads: int,
        fake: bool,
        description: str,
    ) -> None:
        super().__init__(
            num_train=len(train),
            num_eval=len(evaluation),
            train_spec=columns.spec,
            eval_spec=columns.spec,
            fake=fake,
            description=description,
            num_threads=num_threads,
        )
        self.columns = columns
        self._train, self._eval, self._block = train, evaluation, block

    def read_train(self, start: int, stop: int, seed: int) -> base.HostBatch:
        return self._read(self._train, self._train_runs(start, stop, seed), stop - start)

    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> base.HostBatch:
        begins = np.flatnonzero(np.diff(indices, prepend=-2) != 1)  # Runs of neighbours are read at once.
        lengths = np.diff(begins, append=len(indices))
        runs = [(int(indices[b]), int(indices[b]) + n) for b, n in zip(begins, lengths.tolist(), strict=True)]
        batch = self._read(self._eval, runs, len(indices))
        return {name: batch[name] for name in fields}

    def _read(self, source: Rows, runs: Collection[tuple[int, int]], num_rows: int) -> base.HostBatch:
        batch = {
            name: np.empty((num_rows, *shape), dtype) for name, (shape, dtype) in self.train_spec.items()
        }
        done = 0
        for start, stop in runs:
            end = done + stop - start
            source.read(start, stop, {name: array[done:end] for name, array in batch.items()})
            done = end
        return batch

    def _train_runs(self, start: int, stop: int, seed: int) -> list[tuple[int, int]]:
        """Which runs of examples stand at positions [start, stop) of the global stream."""
        runs: list[tuple[int, int]] = []
        while start < stop:
            epoch, offset = divmod(start, self.num_train)
            length = min(stop - start, self.num_train - offset)
            runs += self._runs_of_epoch(seed, epoch, offset, offset + length)
            start += length
        return runs

    def _runs_of_epoch(self, seed: int, epoch: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        if not self._block:
            yield start, stop
            return
        order, begins = shuffled_blocks(seed, epoch, self.num_train, self._block)
        first = int(np.searchsorted(begins, start, side="right")) - 1
        for place in itertools.count(first):
            if place == len(order) or begins[place] >= stop:
                return
            example = int(order[place]) * self._block
            size = min(self._block, self.num_train - example)
            here = int(begins[place])
            yield example + max(start - here, 0), example + min(stop - here, size)


@functools.lru_cache(maxsize=4)
def shuffled_blocks(seed: int, epoch: int, num_examples: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of an epoch's blocks, and the position at which each begins, [blocks] int64 both.

    The last block of the files may be shorter than the others.
    """
    num_blocks = -(-num_examples // block)
    order = base.epoch_permutation(seed, epoch, num_blocks)
    sizes = np.where(order == num_blocks - 1, num_examples - (num_blocks - 1) * block, block)
    return order, np.cumsum(sizes) - sizes


def open_rows(
    name: str,
    columns: Columns,
    train: Rows,
    evaluation: Rows,
    *,
    block: int,
    fake: bool,
    options: Mapping[str, Any],
) -> MappedClicks:
    """The data set of this name, described; `options` may have `num_threads`, see `base.num_threads`."""
    what = f"Fake {name} (random clicks, not MLPerf's data)" if fake else name
    return MappedClicks(
        columns,
        train,
        evaluation,
        block=block,
        num_threads=base.num_threads(options),
        fake=fake,
        description=f"{what}, {len(train):,} train and {len(evaluation):,} eval examples",
    )


def verify(dataset: MappedClicks) -> None:
    """Reads every example once.

    Raises:
        UserError: an example is damaged.
    """
    total = dataset.num_train + dataset.num_eval
    with progress.step("verifying", total, "examples") as advance:
        for rows in (dataset._train, dataset._eval):
            for start in range(0, len(rows), _VERIFIED_AT_ONCE):
                stop = min(start + _VERIFIED_AT_ONCE, len(rows))
                dataset._read(rows, [(start, stop)], stop - start)
                advance(stop - start)
