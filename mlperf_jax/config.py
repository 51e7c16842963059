"""From the flags to one resolved config.

A workload's config comes from `configs/<workload>.py`, or from the class itself where a user
brings their own (`Name.get_config(preset)`). `--config.KEY=value` changes any number in it.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from mlperf_jax.errors import UserError
from mlperf_jax.nested import flatten

PRESETS = ("mini", "closed")

_CHOSEN_BY = {
    "workload": "--workload",
    "benchmark": "--workload",
    "preset": "--preset",
    "reference_points": "--config.reference_point",
    "variants": "--config.variant",
}
"""Keys that say what a config is, or what it offers; the flags that choose it."""

_POSITIVE = (
    "batch_size",
    "eval_batch_size",
    "max_epochs",
    "eval_every_epochs",
    "evals_per_epoch",
    "steps_per_dispatch",
    "gradient_accumulation_steps",
    "training_steps",
    # Of a depth of 0 or less nothing would be left of a model, and of images divided by 0.
    "num_layers",
    "cross_layers",
    "trunk_layers",
    "std",
)
_BELOW_ONE = (
    "momentum",
    "beta1",
    "beta2",
    "label_smoothing",
    "dropout",
    "attention_dropout",
    "relu_dropout",
)
_SIGNED = ("komi", "start_warmup_step")
_MAY_BE_EMPTY = ("lr_boundaries", "decay_epochs", "source_lengths")


def default_preset(platform: str) -> str:
    """mini on a CPU, MLPerf's own closed elsewhere."""
    return "mini" if platform == "cpu" else "closed"


def presets(workload: str) -> tuple[str, ...]:
    """Those that a workload of the registry has: all, or what its file of numbers calls `PRESETS`."""
    return getattr(importlib.import_module(f"configs.{workload}"), "PRESETS", PRESETS)


def base_config(workload: str, preset: str) -> ConfigDict:
    """The config of a workload as written.

    Raises:
        UserError: the workload has no config for that preset.
    """
    if ":" in workload:
        from mlperf_jax import registry

        source: Any = registry.find(workload, registry.Workload)
        if not hasattr(source, "get_config"):
            raise UserError(
                f"--workload={workload} has no get_config(preset); add that classmethod, see configs/."
            )
    else:
        source = importlib.import_module(f"configs.{workload}")
    if preset not in PRESETS:
        raise UserError(f"There is no --preset={preset}; use {' or '.join(PRESETS)}.")
    if ":" not in workload and preset not in presets(workload):
        raise UserError(
            f"--workload={workload} has no preset {preset}, for MLPerf has no such benchmark; "
            f"use --preset={presets(workload)[0]}."
        )
    config = source.get_config(preset)
    config.lock()
    return config


def resolve(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Applies `--config.KEY=value` arguments, each with the type that the key has.

    A `reference_point` other than 0 first puts in the numbers of MLPerf's reference convergence
    point of that global batch, and a `variant` other than "" those of that variant of the model; what
    the user asked for beside them stands.

    Args:
        config: as written; it is not changed.
        overrides: the arguments, in order.

    Raises:
        UserError: an unknown key (with the nearest known one), one that other flags decide, a value of
            another type, or one that no run can have.
    """
    asked = _typed(config, overrides)
    resolved = _copy(config)
    points = config.get("reference_points", {})
    if batch := asked.get("reference_point", config.get("reference_point", 0)):
        if str(batch) not in points:
            known = ", ".join(sorted(points, key=int)) or "none"
            raise UserError(f"There is no reference point at batch {batch}; there are {known}.")
        _update(resolved, points[str(batch)].to_dict())
    if variant := asked.get("variant", config.get("variant", "")):
        if variant not in config.variants:
            raise UserError(f"There is no --config.variant={variant}; there is {', '.join(config.variants)}.")
        _update(resolved, config.variants[variant].to_dict())
    for key, value in asked.items():
        _set(resolved, key, value)
    _require_possible(config, resolved)
    resolved.lock()
    return resolved


def _typed(config: ConfigDict, arguments: Sequence[str]) -> dict[str, Any]:
    """Dotted key -> value; of two values for one key the later stands."""
    known = flatten(config.to_dict())
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, _ = argument.removeprefix("--config.").partition("=")
        _require_key(config, known, key)
        if chosen_by := _CHOSEN_BY.get(key.partition(".")[0]):
            raise UserError(f"--config.{key} cannot be set; what it says is chosen by {chosen_by}.")
        if not equals:
            raise UserError(f"{argument} has no value; write --config.{key}=value.")
        values[key] = _parse(config, argument, key, known[key])
    return values


def _copy(config: ConfigDict) -> ConfigDict:
    """A deep copy; `ConfigDict(config)` would share what is nested in it."""
    return config.copy_and_resolve_references()


def _parse(config: ConfigDict, argument: str, key: str, default: Any) -> Any:
    """The value in `--config.KEY=value`, of the type that ml_collections reads for that key."""
    values = flags.FlagValues()
    # By default ml_collections would look at the process's own command line for overrides.
    argv = ["config", argument]
    config_flags.DEFINE_config_dict("config", _copy(config), flag_values=values, sys_argv=argv)
    try:
        values(argv)
        value = config_flags.get_override_values(values["config"])[key]
        if isinstance(default, tuple) and default and not all(_is_like(one, default[0]) for one in value):
            raise TypeError
    except (flags.Error, TypeError, ValueError) as error:
        kind = type(default).__name__
        raise UserError(
            f"{argument} is of the wrong type: --config.{key} is of type {kind}, as {default!r}."
        ) from error
    return value


def _is_like(one: Any, other: Any) -> bool:
    return type(one) is type(other) or (type(one), type(other)) == (int, float)


def _require_possible(written: ConfigDict, resolved: ConfigDict) -> None:
    """Refuses what no run can have, whoever wrote it; a sign is judged by the number as written."""
    before = flatten(written.to_dict())
    for key, value in flatten(resolved.to_dict()).items():
        if must := _broken_rule(key, value, before.get(key)):
            raise UserError(f"--config.{key}={value} cannot be; it must {must}.")


def _broken_rule(key: str, value: Any, written: Any) -> str:
    """What a value must and does not, "" if all is well."""
    name, numbers = key.rpartition(".")[2], _numbers(value)
    if value == () and written and name not in _MAY_BE_EMPTY:
        return "hold at least one value"
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        return "be finite"
    if name in _POSITIVE and not all(number > 0 for number in numbers):
        return "be more than 0"
    if name in _BELOW_ONE and not all(number < 1 for number in numbers):
        return "be less than 1"
    # A model's single sizes are judged by compiling it.
    if name in _SIGNED or (key.startswith("model.") and isinstance(value, int)):
        return ""
    least = min(_numbers(written), default=-1)
    if (
        isinstance(value, tuple)
        and least > 0
        and all(isinstance(number, int) for number in _numbers(written))
    ):
        return "" if all(number > 0 for number in numbers) else "hold numbers that are more than 0"
    return "not be negative" if least >= 0 and any(number < 0 for number in numbers) else ""


def _numbers(value: Any) -> list[int | float]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]


def _require_key(config: ConfigDict, known: Mapping[str, Any], key: str) -> None:
    if key in known:
        return
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean --config.{close[0]}?" if close else f"there are {', '.join(config.keys())}."
    raise UserError(f"The config has no key {key!r}; {hint}")


def _set(config: ConfigDict, key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        config = config[name]
    config[last] = value


def _update(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    for key, value in flatten(changes).items():
        _set(config, key, value)
