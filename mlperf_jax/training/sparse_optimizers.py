"""Optimizers whose update of a row depends on that row alone: for tables, and for dense parameters.

A `RowRule` is written once. `dense` makes it an optax transformation; `update_rows` applies it to the
rows that a batch looked up, with no gradient of the table ever built: others keep their bits. The
gradients of a row that was looked up several times are summed first, as a dense gradient would be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mlperf_jax.ordering import ordered
from mlperf_jax.usual_loops import usually

Slots = tuple[jax.Array, ...]
"""What a rule keeps of the past, arrays of the parameter's shape."""

CHUNK = 1 << 19
"""Look-ups whose gradients `update_rows` sums at a time, at most: what it needs of memory, 268 MB at a width of 128."""
PART = 80 << 10
"""Rows that it updates at a time, at most: usually there are fewer than look-ups, so it need not go on to where they could end."""
_TILE = 1 << 10  # int32 of a TPU's tile: where parts begin with one, they are read as they lie


@dataclasses.dataclass(frozen=True)
class RowRule:
    """An elementwise optimizer.

    Attributes:
        initial: what each of its slots starts with.
        more: (gradient, slots) -> what is added to each slot.
        step: (gradient, slots with that, learning rate) -> what is added to the parameter.
    """

    initial: tuple[float, ...]
    more: Callable[[jax.Array, Slots], Slots]
    step: Callable[[jax.Array, Slots, jax.Array], jax.Array]

    def init(self, w: jax.Array) -> Slots:
        """The slots of a parameter before the first update."""
        return tuple(jnp.full(w.shape, value, w.dtype) for value in self.initial)


def sgd() -> RowRule:
    """w <- w - lr * g."""
    return RowRule((), lambda g, slots: (), lambda g, slots, lr: -lr * g)


def adagrad(*, epsilon: float, initial_accumulator: float = 0.0) -> RowRule:
    """Adagrad (Duchi et al., 2011), as torch.optim.Adagrad and FBGEMM's exact one have it.

    a <- a + g**2;  w <- w - lr * g / (sqrt(a) + epsilon)
    """

    def step(g: jax.Array, slots: Slots, lr: jax.Array) -> jax.Array:
        return -lr * g / (jnp.sqrt(slots[0]) + epsilon)

    return RowRule((initial_accumulator,), lambda g, slots: (jnp.square(g),), step)


def lazy_adam(*, beta1: float, beta2: float, epsilon: float) -> RowRule:
    """Adam's step of the rows that were looked up, as `adam.adam` describes it; the others keep their moments too.

    m <- m + (1 - beta1) * (g - m);  v <- v + (1 - beta2) * (g**2 - v);  w <- w - lr * m / (sqrt(v) + epsilon)

    The correction of the moments' bias, one number a step for all rows, is part of lr: see `adam_rate`.
    """

    def more(g: jax.Array, slots: Slots) -> Slots:
        m, v = slots
        return (1 - beta1) * (g - m), (1 - beta2) * (jnp.square(g) - v)

    def step(g: jax.Array, slots: Slots, lr: jax.Array) -> jax.Array:
        m, v = slots
        return -lr * m / (jnp.sqrt(v) + epsilon)

    return RowRule((0.0, 0.0), more, step)


def adam_rate(schedule: optax.Schedule, *, beta1: float, beta2: float) -> optax.Schedule:
    """What `lazy_adam` takes as lr at a step, from 0: the schedule's, corrected for the moments' bias."""

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(step).astype(float) + 1
        return schedule(step) * jnp.sqrt(1 - beta2**t) / (1 - beta1**t)

    return rate


class DenseState(NamedTuple):
    """State of `dense`.

    Attributes:
        count: updates made so far, int32 scalar.
        slots: one tree like the parameters for each slot of the rule.
    """

    count: jax.Array  # type: ignore[assignment]  # tuples have a method of the name that optax gives it
    slots: tuple[optax.Params, ...]


def dense(rule: RowRule, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The rule for parameters whose gradient is an array: the same equation, all elements at once."""

    def init(params: optax.Params) -> DenseState:
        slots = (
            jax.tree.map(lambda w, value=value: jnp.full(w.shape, value, w.dtype), params)
            for value in rule.initial
        )
        return DenseState(jnp.zeros((), jnp.int32), tuple(slots))

    def update(
        grads: optax.Updates, state: DenseState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, DenseState]:
        lr = schedule(state.count)

        def stepped(g: jax.Array, *old: jax.Array) -> tuple[jax.Array, Slots]:
            slots = tuple(map(jnp.add, old, rule.more(g, old)))
            return rule.step(g, slots, lr).astype(g.dtype), slots

        each = jax.tree.structure((0, (0,) * len(rule.initial)))
        both = jax.tree.map(stepped, grads, *state.slots)
        updates, slots = jax.tree.transpose(jax.tree.structure(grads), each, both)
        return updates, DenseState(optax.safe_increment(state.count), slots)

    return optax.GradientTransformation(init, update)


def update_rows(
    rule: RowRule,
    table: jax.Array,
    slots: Slots,
    rows: jax.Array,
    source: jax.Array,
    grads: jax.Array,
    lr: jax.Array,
    *,
    usual: int | None = None,
    chunk: int = CHUNK,
    part: int = PART,
) -> tuple[jax.Array, Slots]:
    """Updates the rows that were looked up, each once, with the sum of its gradients.

    The look-ups are sorted by row and their gradients summed in chunks; the rows of a chunk are updated in parts.
    The last row of a chunk may go on in the next, so its sum so far waits there. Nothing of the table's size is made,
    and only as many chunks and parts are run as hold rows of this table. For example, of a table of 4 rows, look-ups of
    rows [2, 0, 2, 9, 2] with the gradients a, b, c, d, e, in chunks of 3:

        sorted rows        gradients    updated                waits
        [0, 2, 2]          b, a, c      row 0 by b             row 2 with a + c
        [2, none, none]    e            row 2 by a + c + e     none

    Args:
        rule: the optimizer.
        table: [R, D].
        slots: the rule's, [R, D] each.
        rows: [N] int32, the row of each look-up; R or more where it is none of this table.
        source: [N] int32, which of `grads` each look-up's is.
        grads: [M, D]; one gradient may belong to many look-ups, as where their vectors were summed.
        lr: [].
        usual: how many rows of this table are looked up, as a rule at most; None for as many as there are look-ups.
        chunk: look-ups at a time, at most.
        part: rows at a time, at most.

    Returns:
        The new table and slots.
    """
    num_rows, none = len(table), jnp.int32(len(table))
    chunks, chunk = _even(len(rows), chunk)
    parts, part = _even(min(len(rows) if usual is None else usual, chunk - 1), part)
    rows, source = _sorted(rows, source, (len(table), len(grads)), chunks * chunk)
    # Rows that are looked up have numbers from 1; 0 is open at first. It and numbers without a row lie outside of the
    # table, before and behind it, so that all rise.
    number = jnp.cumsum(jnp.append(True, rows[1:] != rows[:-1]), dtype=jnp.int32)
    spare = none + jnp.arange(len(rows) + 1 + part, dtype=jnp.int32)
    distinct = spare.at[number].set(rows, indices_are_sorted=True, wrap_negative_indices=False).at[0].set(-1)
    room = -(-(chunk + 1) // part) * part

    def one_chunk(i: jax.Array, carry: _Carry) -> _Carry:
        table, slots, first, open_sum = carry
        segment = lax.dynamic_slice_in_dim(number, i * chunk, chunk) - first  # 0: the row that is still open
        of = lax.dynamic_slice_in_dim(source, i * chunk, chunk)
        g = grads.at[of].get(mode="clip", wrap_negative_indices=False).astype(table.dtype)
        sums = jnp.zeros((room, table.shape[1]), table.dtype)
        sums = sums.at[segment].add(g, indices_are_sorted=True, wrap_negative_indices=False)
        sums = sums.at[0].add(open_sum)
        last = segment[-1]

        def one_part(j: jax.Array, carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
            # Of the last row more may follow, and rows outside of the table are dropped.
            each = j * part + jnp.arange(part, dtype=jnp.int32)
            done = lax.dynamic_slice_in_dim(distinct, first + j * part, part)
            done = jnp.where(each < last, done, none + each)
            return _stepped(rule, *carry, done, lax.dynamic_slice_in_dim(sums, j * part, part), lr)

        with usually(parts):
            table, slots = lax.fori_loop(0, (last + part - 1) // part, one_part, (table, slots))
        return table, slots, first + last, sums[last]

    start = (table, slots, jnp.int32(0), jnp.zeros(table.shape[1:], table.dtype))
    if chunks == 1:  # without a loop XLA for TPUs gathers gradients where it sums them, however many
        return one_chunk(jnp.int32(0), start)[:2]
    with usually(chunks):
        return lax.fori_loop(0, (rows < num_rows).sum() // chunk + 1, one_chunk, start)[:2]


def _even(count: int, most: int) -> tuple[int, int]:
    """How many parts of one size hold `count` and one more, and the size: `most`, or what fills up a tile, at most."""
    parts = count // most + 1
    size = count // parts + 1
    return parts, size if size < _TILE else -(-size // _TILE) * _TILE


_Carry = tuple[jax.Array, Slots, jax.Array, jax.Array]
"""From chunk to chunk: table, slots, the number of the row that is still open [] and its sum so far [D]."""


def _sorted(
    rows: jax.Array, source: jax.Array, counts: tuple[int, int], size: int
) -> tuple[jax.Array, jax.Array]:
    """Look-ups in the order of their rows, filled up to `size` with look-ups of no row; of so many rows and gradients."""
    # At least one of them at the end: it sends the last real row on its way.
    none, missing = counts[0], size - len(rows)
    rows = jnp.concatenate([jnp.minimum(rows, none), jnp.full(missing, none, rows.dtype)])
    source = jnp.concatenate([source, jnp.zeros(missing, source.dtype)])
    return ordered(rows, source, (none, counts[1] - 1))


def _stepped(
    rule: RowRule, table: jax.Array, slots: Slots, rows: jax.Array, grads: jax.Array, lr: jax.Array
) -> tuple[jax.Array, Slots]:
    """One step of rising rows [N], of which those outside of the table are dropped, by gradients [N, D].

    Rows are read again where they were just changed: then XLA for TPUs does so while it adds to others, makes no array
    of them, and no XLA copies a table.
    """

    def read(of: jax.Array) -> jax.Array:  # any row, where none will be changed
        return of.at[rows].get(mode="clip", indices_are_sorted=True, wrap_negative_indices=False)

    def added(to: jax.Array, more: jax.Array) -> jax.Array:
        return to.at[rows].add(
            more.astype(to.dtype),
            mode="drop",
            indices_are_sorted=True,
            unique_indices=True,
            wrap_negative_indices=False,
        )

    slots = tuple(map(added, slots, rule.more(grads, tuple(map(read, slots)))))
    return added(table, rule.step(grads, tuple(map(read, slots)), lr)), slots
