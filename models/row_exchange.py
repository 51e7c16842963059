"""Rows to the devices that they belong to, as many to each as there are: nothing is padded, nothing is dropped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from mlperf_jax.platform import compiled_for


def exchanged(rows: jax.Array, sizes: jax.Array, room: int, axis: str) -> jax.Array:
    """What every device of a mesh axis has for this one: [room, D], by the devices it is from, and behind it zeros.

    Within `jax.shard_map`. With `sizes` transposed what came goes back to where it was.

    Args:
        rows: [N, D], this device's, those for the first device first, and so on; what is behind them goes nowhere.
        sizes: [P, P] int32, the same on every device: how many rows each (the first axis) has for each.
        room: at least the rows that come.
        axis: its name; it has P devices.
    """
    me = lax.axis_index(axis)
    begins, lands = (jnp.cumsum(sizes, along) - sizes for along in (1, 0))
    if compiled_for() != "cpu":
        nothing = jnp.zeros((room, rows.shape[1]), rows.dtype)
        return lax.ragged_all_to_all(
            rows, nothing, begins[me], sizes[me], lands[me], sizes[:, me], axis_name=axis
        )
    # XLA:CPU has no such exchange (jax 0.10.2): everybody gets all, and looks up what is meant for it.
    everybodys = lax.all_gather(rows, axis)
    place = jnp.arange(room)
    source = jnp.searchsorted(jnp.cumsum(sizes[:, me]), place, side="right")
    there = source < len(sizes)
    source = jnp.where(there, source, 0)
    found = everybodys[source, jnp.where(there, begins[source, me] + place - lands[source, me], 0)]
    return jnp.where(there[:, None], found, 0)
