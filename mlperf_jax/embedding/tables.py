"""Embedding tables of one width as one array: where every row lies.

Dozens of tables of very different sizes become one array `stack` [G, R, D]: G groups that each hold
whole tables. One look-up then serves them all, and a sharding is a `PartitionSpec` of three meanings:

    "table"         G over devices: every table is whole on one of them (needs groups, see `Tables`)
    "table_row"     R over devices
    "table_column"  D over devices

Inside a group rows are dealt over stripes like cards: row i of a group lies in stripe i % S. A device
that holds a range of R so holds its share of every table, small and hot ones included, and the place
of a row does not depend on the number of devices: a checkpoint of one layout continues on another.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

AXES = ("table", "table_row", "table_column")
"""The logical axes of a stack."""

_TILE = 8  # rows of a TPU's tile of float32: other multiples would be copied where a shard is reshaped

_Rows = TypeVar("_Rows", jax.Array, np.ndarray)


@dataclasses.dataclass(frozen=True)
class Tables:
    """Tables of one width.

    Attributes:
        sizes: rows of each.
        hots: look-ups of each in one example; their vectors are summed.
        width: D.
        groups: G; tables are packed into so many groups of nearly equal size. More than one wastes
            rows where a table is larger than its share, and is for sharding by table.
        stripes: S; a mesh axis carries "table_row" if it divides S * 8.
    """

    sizes: tuple[int, ...]
    hots: tuple[int, ...]
    width: int
    groups: int = 1
    stripes: int = 1024

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.hots):
            raise ValueError(f"{len(self.sizes)} tables and {len(self.hots)} numbers of look-ups")
        if self.groups * self.rows >= 2**31:
            raise ValueError(f"{self.groups} groups of {self.rows} rows are more than int32 can number")

    @property
    def num_tables(self) -> int:
        return len(self.sizes)

    @property
    def look_ups(self) -> int:
        """L, of one example."""
        return sum(self.hots)

    @property
    def num_parameters(self) -> int:
        """Without the rows that only fill up."""
        return sum(self.sizes) * self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """[G, R, D]."""
        return self.groups, self.rows, self.width

    @functools.cached_property
    def _packing(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Group [T] and first row [T] of each table, and the fullest group's rows: largest first."""
        loads = np.zeros(self.groups, np.int64)
        group, first = np.zeros((2, self.num_tables), np.int64)
        for table in np.argsort(-np.array(self.sizes), kind="stable"):
            group[table] = loads.argmin()
            first[table] = loads[group[table]]
            loads[group[table]] += self.sizes[table]
        return group, first, int(loads.max())

    @property
    def group_of(self) -> np.ndarray:
        """The group of each table, [T]."""
        return self._packing[0]

    @property
    def rows(self) -> int:
        """R, of a group."""
        multiple = self.stripes * _TILE
        return -(-max(self._packing[2], 1) // multiple) * multiple

    @functools.cached_property
    def table_of(self) -> np.ndarray:
        """The table of each look-up of an example, [L]."""
        return np.repeat(np.arange(self.num_tables), self.hots)

    def distinct_rows(self, examples: int) -> float:
        """How many rows so many examples look up on average, were each look-up of any of its table's: never more otherwise."""
        sizes, hots = np.array(self.sizes, float), np.array(self.hots)
        return float(np.sum(sizes * (1 - (1 - 1 / sizes) ** (examples * hots))))

    def places(self, sparse: jax.Array) -> jax.Array:
        """Where the rows lie in the stack, as `group * R + row`.

        Args:
            sparse: [B, L] int32, rows of each look-up's own table, from 0.

        Returns:
            [B, L] int32.
        """
        group, first, _ = self._packing
        row = sparse + jnp.asarray(first[self.table_of], jnp.int32)
        return jnp.asarray(group[self.table_of] * self.rows, jnp.int32) + self._dealt(row)

    def _dealt(self, row: _Rows) -> _Rows:
        return row % self.stripes * (self.rows // self.stripes) + row // self.stripes

    def initial(self, key: jax.Array, dtype: DTypeLike) -> jax.Array:
        """A stack [G, R, D] whose tables of n rows start uniform within 1 / sqrt(n); rows that only fill up as 0.

        Source: both references, `create_emb` of dlrm_s_pytorch.py and torchrec's EmbeddingBagConfig.
        """
        group, first, _ = self._packing
        # In each group the tables follow each other, and then come rows of none. Where there are none of
        # those, the next group's first table begins at the same row: listed last, it is the one found.
        starts = np.append(np.arange(self.groups) * self.rows + self._loads(), group * self.rows + first)
        bounds = np.append(np.zeros(self.groups), 1 / np.sqrt(np.array(self.sizes)))
        order = np.argsort(starts, kind="stable")
        place = jnp.arange(self.rows, dtype=jnp.int32)
        depth = self.rows // self.stripes
        row = place % depth * self.stripes + place // depth  # undoes the dealing
        row = jnp.arange(self.groups, dtype=jnp.int32)[:, None] * self.rows + row
        # A chain of choices compiles into what draws; looking the bounds up takes the TPU compiler twice as long.
        bound = jnp.zeros(row.shape, dtype)
        for start, value in zip(starts[order].tolist(), bounds[order].tolist(), strict=True):
            bound = jnp.where(row >= start, jnp.asarray(value, dtype), bound)
        return bound[..., None] * jax.random.uniform(key, self.shape, dtype, minval=-1, maxval=1)

    def _loads(self) -> np.ndarray:
        """Rows in use of each group, [G]."""
        return np.bincount(self.group_of, np.array(self.sizes), minlength=self.groups).astype(np.int64)

    def stacked(self, tables: Iterable[np.ndarray], dtype: DTypeLike) -> np.ndarray:
        """One array [G, R, D] of tables [n, D] each."""
        stack = np.zeros(self.shape, dtype)
        for table, where in zip(tables, self._rows_of_tables(), strict=True):
            stack[where] = table
        return stack

    def unstacked(self, stack: np.ndarray) -> list[np.ndarray]:
        """The tables [n, D] that a stack [G, R, D] holds."""
        return [np.asarray(stack)[where] for where in self._rows_of_tables()]

    def _rows_of_tables(self) -> list[tuple[int, np.ndarray]]:
        group, first, _ = self._packing
        return [
            (int(g), self._dealt(np.arange(f, f + n)))
            for g, f, n in zip(group, first, self.sizes, strict=True)
        ]
