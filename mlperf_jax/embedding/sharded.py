"""Looking up and updating a stack of tables that lies on many devices.

Written for one device, in `shard_map`, with the exchanges spelled out: left to itself, XLA's
partitioner gathers a table whole. A batch of B examples lies over mesh axis x:

    no sharding      nothing; for an update every device takes the whole batch's gradients
    table over x     each device pools its tables' look-ups of the whole batch; an all-to-all trades
                     vectors [T / n, B, D] for [T, B / n, D]
    table_row over x each device asks the holders for the distinct rows of its own examples, and sends
                     them these rows' gradients (`exchange.py`)
    table_column     each device pools its columns of all vectors; an all-to-all as for tables
    over x

Vectors stand as [T, B, D]: of the three only B is a multiple of a TPU's tile, and [B, T, D] would be
copied each time it is made of, or into, rows.

A mesh axis other than x exchanges inside itself alone: parts are summed, columns gathered. Several axes
together count as one; where the batch shares some of its own with the stack, it is gathered over those.
Gradients travel the same ways back. Rows are updated where they lie, so all copies of a row see the same
numbers in the same order and stay bit-identical.

Source: hybrid parallelism of Naumov et al., arXiv:1906.00091, and the sharding kinds of torchrec
(Ivchenko et al., RecSys 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from mlperf_jax.embedding.exchange import Exchange
from mlperf_jax.embedding.placement import Placement
from mlperf_jax.embedding.tables import AXES, Tables
from mlperf_jax.errors import UserError
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.layout import Layout, joined, together
from mlperf_jax.platform import compiled_for
from mlperf_jax.training.sparse_optimizers import RowRule, Slots, update_rows
from mlperf_jax.usual_loops import usually

_Function = TypeVar("_Function", bound=Callable[..., Any])

LOOK_UPS_AT_ONCE = 1 << 19
"""Rows that a look-up holds before they are summed: 268 MB at a width of 128 in float32."""


def stack_sharding(tables: Tables, layout: Layout) -> NamedSharding:
    """Where a stack lies, and a rule's slots with it: an update reads both, whatever zero1 says.

    Raises:
        UserError: the strategy is to shard by table, and the groups do not divide over the devices.
    """
    for size in map(layout.size, layout.choices(AXES[0])):
        if tables.groups % size:
            raise UserError(
                f"--sharding={layout.strategy.name} puts whole tables on {size} devices, so "
                f"--config.model.table_groups must be a multiple of {size}, not {tables.groups}."
            )
    return layout.param_sharding(tables.shape, AXES)


def _placement(tables: Tables, batch_size: int) -> Placement | None:
    """By the layout in use; None on one device.

    A batch whose mesh axes carry dimensions of the stack in part is gathered over those.
    """
    layout = layouts.active()
    if layout is None or layout.mesh.size == 1:
        return None
    group, row, column = [*stack_sharding(tables, layout).spec, None, None, None][:3]
    (batch,) = [*layout.spec((batch_size,), ("batch",)), None][:1]
    if batch not in (group, row, column):
        taken = {*together(group), *together(row), *together(column)}
        batch = joined([axis for axis in together(batch) if axis not in taken])
    return Placement(layout.mesh, tables, batch, group, row, column)


def look_up(stack: jax.Array, places: jax.Array, tables: Tables, dtype: DTypeLike) -> jax.Array:
    """Sums the vectors that each example looks up in each table. Not to be differentiated.

    Args:
        stack: [G, R, D].
        places: [B, L] int32, from `Tables.places`.
        tables: what the stack holds.
        dtype: of the result and of what travels; a device's sums are made in the stack's own.

    Returns:
        [T, B, D].
    """
    place = _placement(tables, len(places))
    if place is None:
        return _in_parts(lambda part: _cast(_pooled(_vectors(_flat(stack), part), tables), dtype), places, 1)

    def local(stack: jax.Array, places: jax.Array) -> jax.Array:
        def one_part(part: jax.Array) -> jax.Array:
            if place.looks_up_for_all:
                part = lax.all_gather(part, place.batch, tiled=True)
            if between := place.exchange(len(part)):
                pooled = _fetched(_flat(stack), part, between, place, dtype)
            else:
                pooled = _cast(_partly_pooled(_flat(stack), part, place), dtype)
            return _to_own_examples(pooled, place)

        return _in_parts(one_part, places, place.size(place.batch) if place.looks_up_for_all else 1)

    specs = (place.stack_spec, place.batch_spec)
    return _on_each_device(local, place, specs, place.vectors_spec)(stack, places)


def update(
    rule: RowRule,
    stack: jax.Array,
    slots: Slots,
    places: jax.Array,
    grads: jax.Array,
    tables: Tables,
    lr: jax.Array,
) -> tuple[jax.Array, Slots]:
    """Updates the rows that a batch looked up.

    For example, of `Tables((4, 4), (1, 2), width=D, stripes=1)`, which share a stack of 8 rows, with a batch of 2:

        rows asked for, of each table's own    [[3, 1, 1], [3, 2, 0]]
        places in the stack                    [[3, 5, 5], [3, 6, 4]]
        gradients g[table, example]            [2, 2, D]

    Row 3 takes g[0, 0] + g[0, 1], row 5 takes g[1, 0] twice, rows 6 and 4 take g[1, 1] each, and others stay.

    One device hands `update_rows` these pairs of row and gradient. Of two devices that hold rows 0 to 3 and 4
    to 7, and an example each, the first sums 2 g[1, 0] for row 5 and sends that to the second, which sends
    it g[0, 1] for row 3; then each updates its rows. Where devices share tables or columns instead, each
    first gets the whole batch's places and gradients, as far as they are of its own shard.

    Args:
        rule: the optimizer.
        stack: [G, R, D].
        slots: the rule's, of the same shape.
        places: [B, L] int32, as `look_up` had them.
        grads: [T, B, D], of the loss by `look_up`'s result.
        tables: what the stack holds.
        lr: learning rate [].

    Returns:
        The new stack and slots.
    """
    place = _placement(tables, len(places))

    def local(
        stack: jax.Array, slots: Slots, places: jax.Array, grads: jax.Array, lr: jax.Array
    ) -> tuple[jax.Array, Slots]:
        between = place.exchange(len(places)) if place else None
        if place is None:
            look_ups = _paired(places, jnp.asarray(tables.table_of), grads)
        elif between is None:
            look_ups = _paired(*_to_all_examples(places, grads, place))
        else:
            rows, table_of = place.rows_anywhere(places), jnp.asarray(tables.table_of)
            look_ups = _paired(rows, table_of, _own_columns(grads, place))
        now = _flat(stack), tuple(_flat(slot) for slot in slots)
        if between is None:
            table, new = update_rows(rule, *now, *look_ups, lr)
        else:
            table, new = _update_holders(rule, *now, *look_ups, lr, between)
        return table.reshape(stack.shape), tuple(slot.reshape(stack.shape) for slot in new)

    if place is None:
        return local(stack, slots, places, grads, lr)
    shard = place.stack_spec
    specs = (shard, shard, place.batch_spec, place.vectors_spec, PartitionSpec())
    return _on_each_device(local, place, specs, (shard, shard))(stack, slots, places, grads, lr)


def _paired(
    rows: jax.Array, vector_of: jax.Array, grads: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What each look-up changes, and by which gradient: `rows`, `source` and `grads` of `update_rows`.

    Args:
        rows: [B, L].
        vector_of: [L], which of an example's T vectors a look-up was summed in.
        grads: [T, B, D].

    Returns:
        Rows [B * L], the number of each one's gradient [B * L], gradients [T * B, D].
    """
    source = vector_of.astype(jnp.int32) * len(rows) + jnp.arange(len(rows), dtype=jnp.int32)[:, None]
    return rows.ravel(), source.ravel(), grads.reshape(-1, grads.shape[-1])


def _on_each_device(
    function: _Function, place: Placement, in_specs: tuple, out_specs: PartitionSpec | tuple
) -> _Function:
    return jax.shard_map(function, mesh=place.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _flat(stack: jax.Array) -> jax.Array:
    """[G, R, D] to [G * R, D]: the same bytes."""
    return stack.reshape(-1, stack.shape[-1])


def _in_parts(function: Callable[[jax.Array], jax.Array], places: jax.Array, holders: int) -> jax.Array:
    """`function` of [B, L], [T, B, D], so many examples at a time that all devices' together make few enough look-ups."""
    batch, look_ups = places.shape
    fits = max(LOOK_UPS_AT_ONCE // (look_ups * holders), 1)
    parts = next(n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= fits)
    if parts == 1:
        return function(places)
    done = lax.map(function, places.reshape(parts, batch // parts, look_ups)).swapaxes(0, 1)
    return done.reshape(len(done), batch, -1)


def _pooled(vectors: jax.Array, tables: Tables) -> jax.Array:
    """Sums vectors [L, B, D] of look-ups to [T, B, D]."""
    if tables.look_ups == tables.num_tables:
        return vectors
    ends = np.cumsum(tables.hots)
    return jnp.stack([vectors[end - hot : end].sum(0) for end, hot in zip(ends, tables.hots, strict=True)])


def _summed(table: jax.Array, rows: jax.Array, tables: Tables) -> jax.Array:
    """Rows [B, L] of a table [R, D], all of which it has, pooled: [T, B, D].

    XLA for TPUs gathers rows where it adds them to others, and makes no array of them; elsewhere sums come first.
    """
    if compiled_for() != "tpu":
        return _pooled(table.at[rows.T].get(mode="clip"), tables)
    ends, each = np.cumsum(tables.hots), np.arange(len(rows), dtype=np.int32)
    of_tables = [rows[:, end - hot : end].ravel() for end, hot in zip(ends, tables.hots, strict=True)]
    vector = np.concatenate([each.repeat(hot) + t * len(rows) for t, hot in enumerate(tables.hots)])
    vectors = table.at[jnp.concatenate(of_tables)].get(mode="clip").astype(jnp.float32)
    sums = jnp.zeros((tables.num_tables * len(rows), table.shape[1]), jnp.float32)
    sums = sums.at[vector].add(vectors, mode="drop", indices_are_sorted=True, wrap_negative_indices=False)
    return sums.astype(table.dtype).reshape(tables.num_tables, len(rows), -1)


def _vectors(table: jax.Array, rows: jax.Array) -> jax.Array:
    """Rows [B, L] of a table [R, D] as [L, B, D]; those from R on are zeros."""
    return table.at[rows.T].get(mode="fill", fill_value=0)


def _cast(vectors: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`vectors.astype(dtype)`, for rows that are gathered in a loop: XLA for TPUs would cast the table, before the loop.

    Its propagation of bfloat16 goes through gathers, sums, collectives and optimization barriers, but not
    through the rounding, to nearest and ties to even, done on the bits of a float32. Outside of loops a gather
    casts what it reads, in no time.
    """
    if (vectors.dtype, jnp.dtype(dtype)) != (jnp.float32, jnp.bfloat16):
        return vectors.astype(dtype)
    bits = lax.bitcast_convert_type(vectors, jnp.uint32)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return lax.bitcast_convert_type(bits.astype(jnp.uint16), jnp.bfloat16)


def _partly_pooled(table: jax.Array, places: jax.Array, place: Placement) -> jax.Array:
    """What this device's shard [R', D'] adds to the pooled vectors: [T, B, D'], or of its own tables alone."""
    if not place.swaps:
        return _pooled(_vectors(table, place.rows_here(places)), place.tables)
    rows, slot = _own_look_ups(places, place)
    sums = jnp.zeros((place.slots_each, len(rows), table.shape[1]), table.dtype)
    return sums.at[slot].add(_vectors(table, rows))


def _fetched(
    table: jax.Array, places: jax.Array, between: Exchange, place: Placement, dtype: DTypeLike
) -> jax.Array:
    """Pooled vectors [T, B, D'] of one's own examples, of rows that their holders send."""
    wanted = between.wanted(place.rows_anywhere(places).ravel())

    def pooled_in(round: jax.Array, cast: Callable[[jax.Array, DTypeLike], jax.Array]) -> jax.Array:
        # Where no row is asked for any will do: nobody looks there.
        rows = table.at[between.trade(between.asked(wanted, round))].get(mode="clip")
        sent = between.trade(cast(rows, dtype))
        # What arrives is a small table, in which the look-ups have other numbers; what is not there is its last row.
        arrived = sent.reshape(-1, sent.shape[-1]).at[-1].set(0)
        return _summed(arrived, between.places(wanted, round).reshape(places.shape), place.tables)

    def one_more(round: jax.Array, pooled: jax.Array) -> jax.Array:
        more = pooled_in(round, _cast)
        return (pooled.astype(table.dtype) + more.astype(table.dtype)).astype(dtype)

    first = pooled_in(jnp.int32(0), lax.convert_element_type)
    with usually(0):
        return lax.fori_loop(1, wanted.rounds, one_more, first)


def _update_holders(
    rule: RowRule,
    table: jax.Array,
    slots: Slots,
    rows: jax.Array,
    source: jax.Array,
    grads: jax.Array,
    lr: jax.Array,
    between: Exchange,
) -> tuple[jax.Array, Slots]:
    """As `update_rows` with rows [N] of all devices: each row's gradients are summed here, and sent to its holder."""
    wanted = between.wanted(rows)

    def one_round(round: jax.Array, carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
        # Of hundreds of gradients of one row, as small tables have, a sum in bfloat16 is 2 to 20 % off. They are gathered
        # here, as XLA for TPUs gathers them then where it adds them, and makes no array of them.
        ordered = grads[source[wanted.order]].astype(table.dtype)
        sums = jnp.zeros((between.size * between.capacity, grads.shape[-1]), table.dtype)
        sums = sums.at[between.ordered_places(wanted, round)].add(
            ordered, mode="drop", indices_are_sorted=True, wrap_negative_indices=False
        )
        arrived = between.trade(sums.reshape(between.size, between.capacity, -1))
        # Where there is none, what arrives is dropped.
        rows = between.trade(between.asked(wanted, round)).ravel()
        each = jnp.arange(len(rows), dtype=jnp.int32)
        return update_rows(rule, *carry, rows, each, arrived.reshape(-1, arrived.shape[-1]), lr)

    # The usual round has no loop around it, so that XLA computes once what looking up already computed.
    first = one_round(jnp.int32(0), (table, slots))
    with usually(0):
        return lax.fori_loop(1, wanted.rounds, one_round, first)


def _own_columns(grads: jax.Array, place: Placement) -> jax.Array:
    """Of gradients [T, B, D] the columns that this device's shard has."""
    if place.column is None or place.column == place.batch:
        return grads
    width = grads.shape[2] // place.size(place.column)
    return lax.dynamic_slice_in_dim(grads, lax.axis_index(place.column) * width, width, axis=2)


def _own_look_ups(places: jax.Array, place: Placement) -> tuple[jax.Array, jax.Array]:
    """Rows [B, L'] here that are looked up in this device's tables, and the slots [L'] of those."""
    which, slot = place.look_ups_here()
    outside = place.tables.groups * place.tables.rows  # of every shard
    return place.rows_here(places.at[:, which].get(mode="fill", fill_value=outside)), slot


def _to_own_examples(pooled: jax.Array, place: Placement) -> jax.Array:
    """Adds and joins the devices' parts: [T', B', D'] of all that they looked up for, to [T, B, D] of one's own."""
    for axis in (place.row, place.group):
        if axis and axis != place.batch:
            pooled = lax.psum(pooled, axis)
    if place.swaps:
        pooled = lax.all_to_all(pooled, place.batch, 1, 0, tiled=True)
        pooled = pooled[place.holders * place.slots_each + place.slots]
    if place.column and place.column == place.batch:
        return lax.all_to_all(pooled, place.batch, 1, 2, tiled=True)
    return lax.all_gather(pooled, place.column, axis=2, tiled=True) if place.column else pooled


def _to_all_examples(
    places: jax.Array, grads: jax.Array, place: Placement
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The whole batch's look-ups and gradients [T, B, D], as far as they are of this device's shard.

    Returns:
        Rows here [B', L'], which of T' vectors of an example each belongs to [L'], gradients [T', B', D'].
    """
    batch, column = place.batch, place.column
    grads = _own_columns(grads, place)
    if batch:
        places = lax.all_gather(places, batch, tiled=True)
    if place.swaps:
        sent = np.zeros(place.size(batch) * place.slots_each, np.int32)  # unused slots carry anything
        sent[place.holders * place.slots_each + place.slots] = np.arange(place.tables.num_tables)
        grads = lax.all_to_all(grads[sent], batch, 0, 1, tiled=True)
        return *_own_look_ups(places, place), grads
    if column and column == batch:
        grads = lax.all_to_all(grads, batch, 2, 1, tiled=True)
    elif batch:
        grads = lax.all_gather(grads, batch, axis=1, tiled=True)
    return place.rows_here(places), jnp.asarray(place.tables.table_of), grads
