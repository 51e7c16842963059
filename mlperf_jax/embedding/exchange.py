"""Rows that one device wants and another holds: asked for once each, and sent to whoever wants them.

The devices of a mesh axis hold ranges of rows, and each wants any of them. A device sorts what it wants: so a
row is asked for once however often it is looked up, and what one holder is asked for lies together. With n
devices each sorts, sends and receives about an n-th of the batch's distinct rows.

Shapes are static, and so a round carries at most `room` rows from any device to any other. Where some
pair has more, as only very uneven data bring about, there are several rounds, each over a range of the
holders' rows: twice as many until everything fits, which it does at the latest when a range is one row.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mlperf_jax.parallel.layout import MeshAxes

SLACK = 1.25
"""Room for so many times as many rows as if all look-ups were distinct and evenly spread."""
_TILE = 16
"""Rows of a tile of TPUs' memory in bfloat16: what is made of whole ones takes another shape without being copied."""


class Wanted(NamedTuple):
    """What one device wants, of N look-ups.

    Attributes:
        rows: the distinct ones in order, int32 [N]; after the last one, `Exchange.none`.
        number: which of `rows` each look-up is, int32 [N].
        order: look-ups in the order of their rows, int32 [N].
        rounds: the same on all devices, int32 [].
    """

    rows: jax.Array
    number: jax.Array
    order: jax.Array
    rounds: jax.Array


class Round(NamedTuple):
    """What travels in one round, [n holders, capacity].

    Attributes:
        numbers: which of `Wanted.rows`; N or more where there is none.
        rows: the same as the holder counts them; `Exchange.rows` where there is none.
        place: where each look-up's row is among all that arrive, flattened, int32 [N]; where it does not arrive in
            this round the last one, n * capacity - 1, which is never taken.
    """

    numbers: jax.Array
    rows: jax.Array
    place: jax.Array


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Between the devices of one mesh axis, or of several as of one; its methods are called inside `shard_map`.

    Attributes:
        axis: the mesh axis or axes.
        axes: all of them: the number of rounds is agreed on by everyone.
        size: n, devices along `axis`.
        rows: that each of them holds; row r of all is row r % rows of device r // rows.
        room: for so many rows from one device to another in a round.
    """

    axis: MeshAxes
    axes: tuple[str, ...]
    size: int
    rows: int
    room: int

    @property
    def capacity(self) -> int:
        """Places from one device to another in a round: `room`, one that stays free, and what fills up a tile."""
        places = self.room + 1
        return places if places < _TILE else -(-places // _TILE) * _TILE

    @property
    def none(self) -> int:
        """A number that is no row's."""
        return self.size * self.rows

    def wanted(self, rows: jax.Array) -> Wanted:
        """Sorts what is looked up: rows [N] int32, `none` where nothing is."""
        count = len(rows)
        ordered, order = lax.sort((rows, jnp.arange(count, dtype=jnp.int32)), num_keys=1)
        first = jnp.append(True, ordered[1:] != ordered[:-1])
        segment = jnp.cumsum(first, dtype=jnp.int32) - 1
        distinct = jnp.full(count, self.none, jnp.int32).at[segment].set(ordered)
        number = jnp.zeros(count, jnp.int32).at[order].set(segment, unique_indices=True)
        return Wanted(distinct, number, order, self._rounds(distinct))

    def _rounds(self, distinct: jax.Array) -> jax.Array:
        """The least power of two in which all devices' requests fit."""
        one = jnp.int32(1)
        if self.room >= len(distinct):
            return one
        early, late = distinct[: -self.room], distinct[self.room :]

        def too_few(rounds: jax.Array) -> jax.Array:
            """Whether a row and the one `room` further on have a holder and a round in common."""
            width = self._width(rounds)
            same = (early // self.rows == late // self.rows) & (
                early % self.rows // width == late % self.rows // width
            )
            return (same & (late < self.none)).any()

        return lax.pmax(lax.while_loop(too_few, lambda rounds: 2 * rounds, one), self.axes)

    def _width(self, rounds: jax.Array) -> jax.Array:
        """How many of a holder's rows are in one round's range."""
        return (self.rows + rounds - 1) // rounds

    def round(self, wanted: Wanted, number: jax.Array) -> Round:
        """Who is asked for what in round `number`."""
        width = self._width(wanted.rounds)
        holder = jnp.arange(self.size, dtype=jnp.int32)
        begin = holder * self.rows + jnp.minimum(number * width, self.rows)
        end = holder * self.rows + jnp.minimum((number + 1) * width, self.rows)
        start, stop = jnp.searchsorted(wanted.rows, jnp.stack([begin, end]), method="scan_unrolled").astype(
            jnp.int32
        )
        numbers = start[:, None] + jnp.arange(self.capacity, dtype=jnp.int32)
        numbers = jnp.where(numbers < stop[:, None], numbers, len(wanted.rows))
        rows = wanted.rows.at[numbers].get(mode="fill", fill_value=self.none) - (holder * self.rows)[:, None]
        rows = jnp.minimum(rows, self.rows)
        row = wanted.rows[wanted.number]
        asked = jnp.minimum(row // self.rows, self.size - 1)
        inside = (row < self.none) & (row >= begin[asked]) & (row < end[asked])
        place = asked * self.capacity + wanted.number - start[asked]
        return Round(numbers, rows, jnp.where(inside, place, self.size * self.capacity - 1))

    def trade(self, parts: jax.Array) -> jax.Array:
        """[n, capacity, ...] by whom it goes to, to the same by whom it came from."""
        return lax.all_to_all(parts, self.axis, 0, 0, tiled=True)
