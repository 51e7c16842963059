"""From the flags to one resolved config.

A workload's config comes from `configs/<workload>.py`, or from the class itself where a user
brings their own (`Name.get_config(preset)`). `--config.KEY=value` changes any number in it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from mlperf_jax.errors import UserError

PRESETS = ("mini", "closed")


def default_preset(platform: str) -> str:
    """mini on a CPU, MLPerf's own closed elsewhere."""
    return "mini" if platform == "cpu" else "closed"


def base_config(workload: str, preset: str) -> ConfigDict:
    """The config of a workload as written.

    Raises:
        UserError: the workload has no config for that preset.
    """
    if ":" in workload:
        from mlperf_jax import workload as registry

        source: Any = registry.find(workload)
    else:
        source = importlib.import_module(f"configs.{workload}")
    if preset not in PRESETS:
        raise UserError(f"There is no --preset={preset}; use {' or '.join(PRESETS)}.")
    config = source.get_config(preset)
    config.lock()
    return config


def resolve(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """Applies `--config.KEY=value` arguments, each with the type that the key has.

    A `reference_point` other than 0 first puts in the numbers of MLPerf's reference convergence
    point of that global batch; what the user asked for beside it stands.

    Args:
        config: as written; it is not changed.
        overrides: the arguments, in order.

    Raises:
        UserError: an unknown key (with the nearest known one) or a value of another type.
    """
    asked = _typed(config, overrides)
    resolved = ConfigDict(config)
    points = config.get("reference_points", {})
    if batch := asked.get("reference_point", config.get("reference_point", 0)):
        if str(batch) not in points:
            raise UserError(f"There is no reference point at batch {batch}; there are {', '.join(points) or 'none'}.")
        _update(resolved, points[str(batch)].to_dict())
    for key, value in asked.items():
        _set(resolved, key, value)
    resolved.lock()
    return resolved


def _typed(config: ConfigDict, arguments: list[str]) -> dict[str, Any]:
    """Dotted key -> value, typed by ml_collections."""
    for argument in arguments:
        key, equals, _ = argument.removeprefix("--config.").partition("=")
        _require_key(config, key)
        if not equals:
            raise UserError(f"{argument} has no value; write --config.{key}=value.")
    values = flags.FlagValues()
    argv = ["config", *arguments]
    config_flags.DEFINE_config_dict("config", ConfigDict(config), flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"{' '.join(arguments)}: {str(error).splitlines()[0]}") from error
    return dict(config_flags.get_override_values(values["config"]))


def _require_key(config: ConfigDict, key: str) -> None:
    known = _flatten(config.to_dict())
    if key in known:
        return
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean --config.{close[0]}?" if close else f"there are {', '.join(config.keys())}."
    raise UserError(f"The config has no key {key!r}; {hint}")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _set(config: ConfigDict, key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        config = config[name]
    config[last] = value


def _update(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    for key, value in _flatten(changes).items():
        _set(config, key, value)
