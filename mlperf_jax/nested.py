"""Nested values, as configs and JSON files have them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dicts within dicts as one, by dotted keys; an empty dict leaves nothing, lists stay whole.

    {"model": {"width": 8, "stages": [1, 2]}, "seed": 1} -> {"model.width": 8, "model.stages": [1, 2], "seed": 1}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def tupled(value: Any) -> Any:
    """Lists as tuples, inner ones too: what a config holds of several values, after JSON has had it."""
    return tuple(map(tupled, value)) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Returns `value` as types that every JSON reader knows.

    NaN and infinities, for which JSON has no number, become the strings "nan", "inf" and
    "-inf"; NumPy and JAX scalars and arrays become numbers and lists; what is neither is its str.
    """
    if hasattr(value, "to_dict"):  # an ml_collections.ConfigDict, which is no Mapping
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "tolist"):
        converted = value.tolist()
        return str(value) if type(converted) is type(value) else plain(converted)
    return str(value)
