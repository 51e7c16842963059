"""Looking up and updating a stack of tables that lies on many devices.

Written for one device, in `shard_map`, with the exchanges spelled out: left to itself, XLA's
partitioner gathers a table whole. A batch of B examples lies over mesh axis x:

    no sharding      nothing; for an update every device takes the whole batch's gradients
    table over x     each device pools its tables' look-ups of the whole batch; an all-to-all trades
                     vectors [B, T / n, D] for [B / n, T, D]
    table_row over x each device asks the holders for the distinct rows of its own examples, and sends
                     them these rows' gradients (`exchange.py`)
    table_column     each device pools its columns of all vectors; an all-to-all as for tables
    over x

An example's vectors stand one behind the other, [B, T, D], and where they are summed, or their gradients spread,
as rows [B * T, D]: all else would be copied on the way from one to the other. Devices that trade tables for
examples hold them by table meanwhile.

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

from mlperf_jax.embedding.exchange import Exchange, at_most
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
        [B, T, D].
    """
    place = _placement(tables, len(places))
    if place is None:
        return _in_parts(lambda part: _cast(_pooled(_flat(stack), part, tables), dtype), places, 1)

    def local(stack: jax.Array, places: jax.Array) -> jax.Array:
        def one_part(part: jax.Array) -> jax.Array:
            if place.looks_up_for_all:
                part = lax.all_gather(part, place.batch, tiled=True)
            if between := place.exchange(len(part)):
                pooled = _fetched(_flat(stack), part, between, place, dtype).astype(dtype)
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
        gradients g[example, table]            [2, 2, D]

    Row 3 takes g[0, 0] + g[1, 0], row 5 takes g[0, 1] twice, rows 6 and 4 take g[1, 1] each, and others stay.

    One device hands `update_rows` these pairs of row and gradient. Of two devices that hold rows 0 to 3 and 4
    to 7, and an example each, the first sums 2 g[0, 1] for row 5 and sends that to the second, which sends
    it g[1, 0] for row 3; then each updates its rows. Where devices share tables or columns instead, each
    first gets the whole batch's places and gradients, as far as they are of its own shard.

    Args:
        rule: the optimizer.
        stack: [G, R, D].
        slots: the rule's, of the same shape.
        places: [B, L] int32, as `look_up` had them.
        grads: [B, T, D], in the dtype that they travel in, of the loss by `look_up`'s result.
        tables: what the stack holds.
        lr: learning rate [].

    Returns:
        The new stack and slots.
    """
    place = _placement(tables, len(places))
    holders = place.size(place.row) if place else 1
    usual = at_most(tables.distinct_rows(len(places)) / holders, tables.groups * tables.rows)

    def local(
        stack: jax.Array, slots: Slots, places: jax.Array, grads: jax.Array, lr: jax.Array
    ) -> tuple[jax.Array, Slots]:
        between = place.exchange(len(places)) if place else None
        if place is None:
            look_ups = _paired(places, tables, grads)
        elif between is not None:
            look_ups = _paired(place.rows_anywhere(places), tables, _own_columns(grads, place))
        else:
            look_ups = _to_all_examples(places, grads, place)
        now = _flat(stack), tuple(_flat(slot) for slot in slots)
        if between is None:
            table, new = update_rows(rule, *now, *look_ups, lr, usual=usual)
        else:
            table, new = _update_holders(rule, *now, *look_ups, lr, between, usual)
        return table.reshape(stack.shape), tuple(slot.reshape(stack.shape) for slot in new)

    if place is None:
        return local(stack, slots, places, grads, lr)
    shard = place.stack_spec
    specs = (shard, shard, place.batch_spec, place.vectors_spec, PartitionSpec())
    return _on_each_device(local, place, specs, (shard, shard))(stack, slots, places, grads, lr)


_LookUps = tuple[jax.Array, jax.Array, jax.Array]
"""Which row each look-up changes, and by which gradient: `rows`, `source` and `grads` of `update_rows`."""


def _paired(rows: jax.Array, tables: Tables, grads: jax.Array) -> _LookUps:
    """Of rows [B, L] and gradients [B, T, D]."""
    return rows.ravel(), _vector_of(len(rows), tables).ravel(), grads.reshape(-1, grads.shape[-1])


def _vector_of(batch: int, tables: Tables) -> jax.Array:
    """Which of all B * T vectors each look-up is summed in, int32 [B, L]: they never fall."""
    first = jnp.arange(batch, dtype=jnp.int32)[:, None] * tables.num_tables
    return first + jnp.asarray(tables.table_of, jnp.int32)


def _on_each_device(
    function: _Function, place: Placement, in_specs: tuple, out_specs: PartitionSpec | tuple
) -> _Function:
    return jax.shard_map(function, mesh=place.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _flat(stack: jax.Array) -> jax.Array:
    """[G, R, D] to [G * R, D]: the same bytes."""
    return stack.reshape(-1, stack.shape[-1])


def _in_parts(function: Callable[[jax.Array], jax.Array], places: jax.Array, holders: int) -> jax.Array:
    """`function` of [B, L], [B, T, D], so many examples at a time that all devices' together make few enough look-ups."""
    batch, look_ups = places.shape
    fits = max(LOOK_UPS_AT_ONCE // (look_ups * holders), 1)
    parts = next(n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= fits)
    if parts == 1:
        return function(places)
    done = lax.map(function, places.reshape(parts, batch // parts, look_ups))
    return done.reshape(batch, *done.shape[2:])


def _pooled(table: jax.Array, rows: jax.Array, tables: Tables) -> jax.Array:
    """Rows [B, L] of a table [R, D], those from R on zeros, summed to [B, T, D].

    XLA for TPUs gathers rows where it adds them to others, in float32, and makes no array of them. Elsewhere it sums
    faster what lies together, and always in the same order.
    """
    batch, width = len(rows), table.shape[1]
    if tables.look_ups == tables.num_tables or compiled_for() != "tpu":
        vectors = _rows(table, rows)
        if tables.look_ups == tables.num_tables:
            return vectors
        ends = zip(np.cumsum(tables.hots), tables.hots, strict=True)
        return jnp.stack([vectors[:, end - hot : end].sum(1) for end, hot in ends], axis=1)
    vectors = _rows(table, rows.ravel()).astype(jnp.float32)
    sums = jnp.zeros((batch * tables.num_tables, width), jnp.float32)
    vector_of = _vector_of(batch, tables).ravel()
    return (
        sums.at[vector_of]
        .add(vectors, indices_are_sorted=True, wrap_negative_indices=False)
        .reshape(batch, -1, width)
    )


def _rows(of: jax.Array, numbers: jax.Array) -> jax.Array:
    """Some of an array's rows; zeros for numbers that it does not have."""
    return of.at[numbers].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def _cast(vectors: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`vectors.astype(dtype)`, for many rows: XLA for TPUs casts so in half the time, and of a loop would cast all a table.

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
    """What this device's shard [R', D'] adds to the pooled vectors: [B, T, D'], or of its own tables alone [T', B, D']."""
    if not place.swaps:
        return _pooled(table, place.rows_here(places), place.tables)
    rows, slot = _own_look_ups(places, place)
    sums = jnp.zeros((place.slots_each, len(rows), table.shape[1]), table.dtype)
    return sums.at[slot].add(_rows(table, rows.T))


def _fetched(
    table: jax.Array, places: jax.Array, between: Exchange, place: Placement, dtype: DTypeLike
) -> jax.Array:
    """Pooled vectors [B, T, D'] of one's own examples, of rows that their holders send as `dtype`."""
    wanted = between.wanted(place.rows_anywhere(places).ravel())
    shape = len(places), place.tables.num_tables, table.shape[1]

    def pooled_in(round: jax.Array, cast: Callable[[jax.Array, DTypeLike], jax.Array]) -> jax.Array:
        # Where no row is asked for any will do: nobody looks there.
        rows = table.at[between.trade(between.asked(wanted, round))].get(
            mode="clip", wrap_negative_indices=False
        )
        sent = between.trade(cast(rows, dtype))
        # What arrives is a small table, in which the look-ups have other numbers.
        arrived = sent.reshape(-1, sent.shape[-1])
        pooled = _pooled(arrived, between.places(wanted, round).reshape(places.shape), place.tables)
        return pooled.astype(table.dtype).reshape(-1, shape[-1])

    first = pooled_in(jnp.int32(0), lax.convert_element_type)
    with usually(0):
        pooled = lax.fori_loop(1, wanted.rounds, lambda i, sums: sums + pooled_in(i, _cast), first)
    # XLA for TPUs would cast rows of the sums one by one, before it makes examples of them, in four times the time.
    return lax.optimization_barrier(pooled.reshape(shape[0], -1)).reshape(shape)


def _update_holders(
    rule: RowRule,
    table: jax.Array,
    slots: Slots,
    rows: jax.Array,
    source: jax.Array,
    grads: jax.Array,
    lr: jax.Array,
    between: Exchange,
    usual: int,
) -> tuple[jax.Array, Slots]:
    """As `update_rows` with rows [N] of all devices: each row's gradients are summed here, and sent to its holder.

    Sums are made in the table's dtype, here and there, and sent in that of the gradients.
    """
    wanted = between.wanted(rows)

    def one_round(round: jax.Array, carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
        # Of hundreds of gradients of one row, as small tables have, a sum in bfloat16 is 2 to 20 % off; sent in it, as all
        # gradients are, it is rounded once. They are gathered here, as XLA for TPUs gathers them then where it adds them,
        # and makes no array of them.
        ordered = _rows(grads, _rows(source, wanted.order)).astype(table.dtype)
        sums = jnp.zeros((between.size * between.capacity, grads.shape[-1]), table.dtype)
        sums = sums.at[between.ordered_places(wanted, round)].add(
            ordered, mode="drop", indices_are_sorted=True, wrap_negative_indices=False
        )
        sent = _cast(sums, grads.dtype)
        arrived = between.trade(sent.reshape(between.size, between.capacity, -1))
        # Where there is none, what arrives is dropped.
        rows = between.trade(between.asked(wanted, round)).ravel()
        each = jnp.arange(len(rows), dtype=jnp.int32)
        return update_rows(rule, *carry, rows, each, arrived.reshape(-1, arrived.shape[-1]), lr, usual=usual)

    # The usual round has no loop around it, so that XLA computes once what looking up already computed.
    first = one_round(jnp.int32(0), (table, slots))
    with usually(0):
        return lax.fori_loop(1, wanted.rounds, one_round, first)


def _own_columns(grads: jax.Array, place: Placement) -> jax.Array:
    """Of gradients [B, T, D] the columns that this device's shard has."""
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
    """Adds and joins the devices' parts of all that they looked up for, [B', T, D'] or [T', B', D'], to [B, T, D] of one's own."""
    for axis in (place.row, place.group):
        if axis and axis != place.batch:
            pooled = lax.psum(pooled, axis)
    if place.swaps:
        pooled = lax.all_to_all(pooled, place.batch, 1, 0, tiled=True)
        pooled = pooled[place.holders * place.slots_each + place.slots].swapaxes(0, 1)
    if place.column and place.column == place.batch:
        return lax.all_to_all(pooled, place.batch, 0, 2, tiled=True)
    return lax.all_gather(pooled, place.column, axis=2, tiled=True) if place.column else pooled


def _to_all_examples(places: jax.Array, grads: jax.Array, place: Placement) -> _LookUps:
    """The whole batch's look-ups and gradients [B, T, D], as far as they are of this device's shard."""
    batch, column = place.batch, place.column
    grads = _own_columns(grads, place)
    if batch:
        places = lax.all_gather(places, batch, tiled=True)
    if place.swaps:
        sent = np.zeros(place.size(batch) * place.slots_each, np.int32)  # unused slots carry anything
        sent[place.holders * place.slots_each + place.slots] = np.arange(place.tables.num_tables)
        grads = lax.all_to_all(grads.swapaxes(0, 1)[sent], batch, 0, 1, tiled=True)
        rows, slot = _own_look_ups(places, place)
        source = slot.astype(jnp.int32) * len(rows) + jnp.arange(len(rows), dtype=jnp.int32)[:, None]
        return rows.ravel(), source.ravel(), grads.reshape(-1, grads.shape[-1])
    if column and column == batch:
        grads = lax.all_to_all(grads, batch, 2, 0, tiled=True)
    elif batch:
        grads = lax.all_gather(grads, batch, axis=0, tiled=True)
    return _paired(place.rows_here(places), place.tables, grads)
