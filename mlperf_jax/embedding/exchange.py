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
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mlperf_jax.ordering import ordered
from mlperf_jax.parallel.layout import MeshAxes
from mlperf_jax.usual_loops import usually

DEVIATIONS = 6
"""Room for the rows that look-ups at random would ask a holder for, and so many standard deviations more."""
_TILE, _LANES = 16, 128
"""Rows and columns of a tile of TPUs' memory in bfloat16: what is made of whole ones takes another shape without being copied."""


class Wanted(NamedTuple):
    """What one device wants, of N look-ups, in the order of their rows.

    Attributes:
        distinct: their rows, each once, int32 [N]; after the last one, `Exchange.none`.
        order: which look-up each is, int32 [N].
        holder: who has its row, from 0, int32 [N].
        round: in which of `rounds` it travels, int32 [N]; `rounds` where no row is wanted.
        number: of those that this holder is asked for in this round, which its row is, int32 [N].
        rounds: the same on all devices, int32 [].
    """

    distinct: jax.Array
    order: jax.Array
    holder: jax.Array
    round: jax.Array
    number: jax.Array
    rounds: jax.Array


def first_at_least(ordered: jax.Array, bounds: jax.Array) -> jax.Array:
    """`jnp.searchsorted` of bounds [...] in numbers [N], both int32, by two looks at about sqrt(N) of them.

    On a TPU each of the many steps of a binary search takes as long.
    """
    width = math.isqrt(len(ordered))
    width = width if width < _LANES else -(-width // _LANES) * _LANES
    last = np.iinfo(np.int32).max
    blocks = jnp.pad(ordered, (0, -len(ordered) % width), constant_values=last).reshape(-1, width)

    def below(numbers: jax.Array) -> jax.Array:
        return (numbers < bounds[..., None]).sum(-1, dtype=jnp.int32)

    block = jnp.maximum(below(blocks[:, 0]) - 1, 0)
    return block * width + below(blocks[block])


def at_most(mean: float, most: int) -> int:
    """How many rows there are as a rule at most, where look-ups at random bring `mean` on average, from 1 to `most`."""
    return max(min(math.ceil(mean + DEVIATIONS * math.sqrt(mean)), most), 1)


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
        rows, order = ordered(rows, jnp.arange(count, dtype=jnp.int32), (self.none, count - 1))
        first = jnp.append(True, rows[1:] != rows[:-1])
        segment = jnp.cumsum(first, dtype=jnp.int32) - 1
        distinct = (
            jnp.full(count, self.none, jnp.int32)
            .at[segment]
            .set(rows, indices_are_sorted=True, wrap_negative_indices=False)
        )
        rounds = self._rounds(distinct)
        holder = jnp.minimum(lax.div(rows, jnp.int32(self.rows)), self.size - 1)
        round = lax.div(rows - holder * self.rows, self._width(rounds))
        round = jnp.where(rows < self.none, round, rounds)
        begins = jnp.append(True, (holder[1:] != holder[:-1]) | (round[1:] != round[:-1]))
        number = segment - lax.cummax(jnp.where(begins, segment, 0))
        return Wanted(distinct, order, holder, round, number, rounds)

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

        with usually(0):
            rounds = lax.while_loop(too_few, lambda rounds: 2 * rounds, one)
        return lax.pmax(rounds, self.axes)

    def _width(self, rounds: jax.Array) -> jax.Array:
        """How many of a holder's rows are in one round's range."""
        return (self.rows + rounds - 1) // rounds

    def asked(self, wanted: Wanted, round: jax.Array) -> jax.Array:
        """Who is asked for what in a round.

        Returns:
            [n holders, capacity], rows as their holder counts them; `rows` where there is none.
        """
        width = self._width(wanted.rounds)
        holder = jnp.arange(self.size, dtype=jnp.int32)
        begin = holder * self.rows + jnp.minimum(round * width, self.rows)
        end = holder * self.rows + jnp.minimum((round + 1) * width, self.rows)
        start, stop = first_at_least(wanted.distinct, jnp.stack([begin, end]))
        numbers = start[:, None] + jnp.arange(self.capacity, dtype=jnp.int32)
        numbers = jnp.where(numbers < stop[:, None], numbers, len(wanted.distinct))
        rows = wanted.distinct.at[numbers].get(mode="fill", fill_value=self.none, wrap_negative_indices=False)
        return jnp.minimum(rows - (holder * self.rows)[:, None], self.rows)

    def ordered_places(self, wanted: Wanted, round: jax.Array) -> jax.Array:
        """Where the row of each look-up, in the order of rows, is among all that travel in a round, flattened, int32 [N].

        Where it does not: before or behind its holder's others, where no row is asked for, as every holder's last place
        stays free. So places never fall; one before all others is -1.
        """
        number = jnp.where(wanted.round < round, -1, wanted.number)
        number = jnp.where(wanted.round > round, self.capacity - 1, number)
        return wanted.holder * self.capacity + number

    def places(self, wanted: Wanted, round: jax.Array) -> jax.Array:
        """Where the row of each look-up is among all that arrive in a round; if it does not, behind them all, int32 [N]."""
        outside = self.size * self.capacity
        place = jnp.where(wanted.round == round, self.ordered_places(wanted, round), outside)
        return (
            jnp.zeros_like(place)
            .at[wanted.order]
            .set(place, unique_indices=True, wrap_negative_indices=False)
        )

    def trade(self, parts: jax.Array) -> jax.Array:
        """[n, capacity, ...] by whom it goes to, to the same by whom it came from."""
        return lax.all_to_all(parts, self.axis, 0, 0, tiled=True)
