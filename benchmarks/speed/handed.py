"""What our side hands to a peer: trees of arrays, in one .npz file, their paths as names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays by name, a dot between the parts of a path."""
    np.savez(path, **arrays)  # type: ignore[arg-type]  # it takes an argument of another type, by name


def read(path: Path) -> dict[str, Any]:
    """The same as nested dicts."""
    tree: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            *parents, last = name.split(".")
            part = tree
            for parent in parents:
                part = part.setdefault(parent, {})
            part[last] = file[name]
    return tree
