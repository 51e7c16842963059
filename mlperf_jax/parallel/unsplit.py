"""What a strategy wanted to split but could not: the documented rules of `layout` leave it whole."""

from __future__ import annotations

from typing import Any

import jax

from mlperf_jax.parallel.layout import MIN_SHARDED_SIZE, Strategy


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
    for part in ("params", "opt_state") if strategy.shard_params else ("opt_state",):
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
        f"they have fewer than {MIN_SHARDED_SIZE} elements, or no dimension that the mesh axis divides."
    )
