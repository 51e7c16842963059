"""Which mesh axes carry a stack of tables and the batch, and what of the stack one device holds."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from mlperf_jax.embedding import exchange
from mlperf_jax.embedding.exchange import Exchange
from mlperf_jax.embedding.tables import Tables
from mlperf_jax.parallel.layout import MeshAxes, together


@dataclasses.dataclass(frozen=True)
class Placement:
    """Mesh axes that carry the batch and a stack's three dimensions; None where nothing does.

    The batch's are all those of one dimension of the stack, or none that carries any of it.
    Inside `shard_map` its methods speak of the device at hand.
    """

    mesh: Mesh | AbstractMesh
    tables: Tables
    batch: MeshAxes | None
    group: MeshAxes | None
    row: MeshAxes | None
    column: MeshAxes | None

    @property
    def stack_spec(self) -> PartitionSpec:
        return PartitionSpec(self.group, self.row, self.column)

    @property
    def batch_spec(self) -> PartitionSpec:
        return PartitionSpec(self.batch)

    @property
    def vectors_spec(self) -> PartitionSpec:
        """Of [B, T, D]."""
        return PartitionSpec(self.batch)

    def size(self, axes: MeshAxes | None) -> int:
        return math.prod(self.mesh.shape[axis] for axis in together(axes))

    @property
    def swaps(self) -> bool:
        """Whether devices trade tables for examples."""
        return self.group is not None and self.group == self.batch

    @property
    def looks_up_for_all(self) -> bool:
        """Whether a device pools parts of vectors that other devices' examples need."""
        return self.batch is not None and self.batch in (self.group, self.column)

    @property
    def groups(self) -> int:
        """That a device holds rows of."""
        return self.tables.groups // self.size(self.group)

    @property
    def rows(self) -> int:
        """That a device holds of each of its groups."""
        return self.tables.rows // self.size(self.row)

    def exchange(self, examples: int) -> Exchange | None:
        """How devices send each other rows, where they do, for what so many examples of each look up."""
        if self.row is None or self.row != self.batch:
            return None
        size = self.size(self.row)
        room = exchange.at_most(self.tables.distinct_rows(examples) / size, examples * self.tables.look_ups)
        return Exchange(self.row, tuple(self.mesh.axis_names), size, self.groups * self.rows, room)

    def rows_anywhere(self, places: jax.Array) -> jax.Array:
        """Rows as `Exchange` counts them; those of groups that lie on another axis' devices are none."""
        group, row = self._group_and_row(places)
        here = (group >= 0) & (group < self.groups)
        found = (row // self.rows * self.groups + group) * self.rows + row % self.rows
        return jnp.where(here, found, self.size(self.row) * self.groups * self.rows)

    def rows_here(self, places: jax.Array) -> jax.Array:
        """Rows of this device's shard [G' * R', D'] for places in the stack; G' * R' where it has them not."""
        group, row = self._group_and_row(places)
        row -= lax.axis_index(self.row) * self.rows if self.row else 0
        here = (group >= 0) & (group < self.groups) & (row >= 0) & (row < self.rows)
        return jnp.where(here, group * self.rows + row, self.groups * self.rows)

    def _group_and_row(self, places: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Groups, counted from this device's first, and rows of places in the stack."""
        group, row = places // self.tables.rows, places % self.tables.rows
        group -= lax.axis_index(self.group) * self.groups if self.group else 0
        return group, row

    @functools.cached_property
    def holders(self) -> np.ndarray:
        """The device (along the axis of groups) that holds each table, [T]."""
        return self.tables.group_of // self.groups

    @functools.cached_property
    def slots(self) -> np.ndarray:
        """Each table's number among those of its holder, [T]."""
        return np.array([np.sum(self.holders[:t] == self.holders[t]) for t in range(self.tables.num_tables)])

    @property
    def slots_each(self) -> int:
        """The most tables that a device holds; others send as many vectors, of which some are none."""
        return int(self.slots.max()) + 1

    def look_ups_here(self) -> tuple[jax.Array, jax.Array]:
        """Which look-ups of an example are for this device's tables, and their slots: [L'] each.

        Devices with fewer than others ask for look-up L, which is none.
        """
        holders, count = self.holders[self.tables.table_of], self.size(self.group)
        most = int(np.bincount(holders, minlength=count).max())
        which = np.full((count, most), self.tables.look_ups)
        for holder in range(count):
            mine = np.flatnonzero(holders == holder)
            which[holder, : len(mine)] = mine
        slot = np.append(self.slots[self.tables.table_of], 0)[which]
        device = lax.axis_index(self.group)
        return jnp.asarray(which)[device], jnp.asarray(slot)[device]
