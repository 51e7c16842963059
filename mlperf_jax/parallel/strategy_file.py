"""A user's own sharding strategy, in a TOML file.

# mine.toml, used as --sharding=mine.toml
shard_params = "fsdp"          # optional: fsdp over this axis; or shard_optimizer = "fsdp" for zero1

[mesh]                         # axis = size; one of them may be -1, for what is left
data = -1
fsdp = 8
model = 4

[rules]                        # logical axis = what may carry it, in order of preference
batch = [["data", "fsdp"], "data"]   # both together; where their product does not divide it, data alone
conv_out = ["model"]
mlp = ["model"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.parallel.layout import MeshAxes, Strategy

_KEYS = {"mesh", "rules", "shard_params", "shard_optimizer"}


def load(path: Path) -> Strategy:
    """Reads a strategy; it is named after the file.

    Raises:
        UserError: the file is not there or says something else; the text names what.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--sharding={path} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # tomllib's errors and those of a wrong encoding
        raise UserError(f"--sharding={path} is no TOML file ({error}).") from error
    try:
        return _strategy(path.stem, content)
    except ValueError as error:
        raise UserError(f"--sharding={path}: {error}.") from error


def _strategy(name: str, content: dict[str, Any]) -> Strategy:
    if unknown := set(content) - _KEYS:
        raise ValueError(f"there is no key {min(unknown)!r}; there are {', '.join(sorted(_KEYS))}")
    mesh = content.get("mesh")
    if not isinstance(mesh, dict) or not mesh:
        raise ValueError("a [mesh] table is missing, as in data = -1")
    for axis, size in mesh.items():
        if not axis.isidentifier() or type(size) is not int or (size < 1 and size != -1):
            raise ValueError(
                f"mesh axis {axis!r} = {size!r} is no size; write a whole number, or -1 for the rest"
            )
    if sum(size == -1 for size in mesh.values()) > 1:
        raise ValueError("only one mesh axis can take the rest (-1)")
    rules = content.get("rules", {})
    if not isinstance(rules, dict):
        raise ValueError("[rules] is no table")
    rules = {logical: _rule(logical, choices, mesh) for logical, choices in rules.items()}
    sharded = {key: content.get(key) for key in ("shard_params", "shard_optimizer")}
    for key, axis in sharded.items():
        if axis is not None and not isinstance(axis, str):
            raise ValueError(f"{key} is no mesh axis")
        _known(mesh, [axis] if axis else [])
    return Strategy(name, mesh, rules, **sharded)


def _rule(logical: str, listed: Any, mesh: dict[str, int]) -> tuple[MeshAxes, ...]:
    """What may carry a dimension: mesh axes by name, and lists of some that carry it together."""
    if not isinstance(listed, list):
        raise ValueError(f'rule {logical!r} is no list of mesh axes, as in batch = ["data"]')
    rule = [tuple(choice) if isinstance(choice, list) else choice for choice in listed]
    for choice in rule:
        axes = choice if isinstance(choice, tuple) else (choice,)
        if not axes or not all(isinstance(axis, str) for axis in axes) or len(set(axes)) < len(axes):
            raise ValueError(
                f"{choice!r} of rule {logical!r} is neither a mesh axis nor a list of different ones, "
                'as in batch = [["data", "fsdp"]]'
            )
        _known(mesh, axes)
    return tuple(rule)


def _known(mesh: dict[str, int], axes: Iterable[str]) -> None:
    for axis in axes:
        if axis not in mesh:
            raise ValueError(f"there is no mesh axis {axis!r}; there are {', '.join(mesh)}")
