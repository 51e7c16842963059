"""What a strategy leaves whole: tensors that it wanted to split but could not, and work that devices repeat."""

from __future__ import annotations

from typing import Any

import jax

from mlperf_jax.parallel.layout import MIN_SHARDED_SIZE, Layout, Strategy, together

_PARAMETERS = ("params", "frozen", "ema", "opt_state")
"""Entries of a state that hold arrays of the shapes of parameters."""


def stayed_whole(state: Any, strategy: Strategy) -> list[dict[str, Any]]:
    """Parameters and optimizer arrays that every device holds whole though the strategy splits their kind.

    Args:
        state: the training state as structs with shardings.
        strategy: without `shard_params` and `shard_optimizer` it splits none of them by size, and the
            list is empty.

    Returns:
        Rows of name, shape and bytes, the largest first.
    """
    if not (strategy.shard_params or strategy.shard_optimizer):
        return []
    rows = []
    for part in _PARAMETERS if strategy.shard_params else ("opt_state",):
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.get(part, {})):
            if leaf.sharding.is_fully_replicated:
                name, size = part + jax.tree_util.keystr(path), leaf.size * leaf.dtype.itemsize
                rows.append({"name": name, "shape": list(leaf.shape), "bytes": size})
    return sorted(rows, key=lambda row: -row["bytes"])


def sentence(rows: list[dict[str, Any]], strategy: Strategy) -> str:
    """The rows in one sentence, "" for none."""
    if not rows:
        return ""
    total, first = sum(row["bytes"] for row in rows), rows[0]
    return (
        f"{strategy.name} leaves {len(rows)} tensors whole on every device, {total / 2**10:,.1f} KiB in all "
        f"(the largest: {first['name']} {tuple(first['shape'])}, {first['bytes'] / 2**10:,.1f} KiB): "
        f"they are vectors, have fewer than {MIN_SHARDED_SIZE} elements, or no dimension that the mesh axis divides."
    )


def repeated(layout: Layout, state: Any) -> str:
    """One sentence on the mesh axes whose devices do not share the work, "" where all do.

    An axis over which parameters alone are split (rule 2 of `layout`) saves memory. What of the work the
    compiler splits over it besides is its own choice, and no reason not to give it a part of the batch.

    Args:
        layout: with which everything was traced.
        state: the training state as structs with shardings.
    """
    idle = [axis for axis, size in layout.mesh.shape.items() if size > 1 and axis not in layout.sharing]
    if not idle:
        return ""
    holding = {a for x in jax.tree.leaves(state) for axes in x.sharding.spec for a in together(axes)}
    parts = []
    for axis in idle:
        name = f"mesh axis {axis} ({layout.mesh.shape[axis]} devices)"
        if axis in holding:
            parts.append(
                f"{name} splits parameters but not the batch: its devices compute from the same examples and "
                "repeat what the compiler does not split by itself"
            )
        else:
            parts.append(f"{name} splits neither the batch nor a tensor: its devices repeat the same work")
    carriers = [axis for axes in layout.choices("batch")[:1] for axis in axes if axis not in idle]
    listed = ", ".join(f'"{axis}"' for axis in (*carriers, *idle))
    return f"{'; '.join(parts)} (batch = [[{listed}]] in a strategy file splits the batch over all of them)."
