"""`mlperf.conf`, `user.conf` and `audit.config`: lines `model.Scenario.key = number`.

The look-up, the order of the files and the odd corners follow the official
`TestSettings::FromConfig`: a key is looked for as model.scenario, *.scenario, model.*, *.*;
times are in ms, percentiles in percent; seeds count only in the built-in defaults.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from loadgen_py.official_defaults import DEFAULTS

if TYPE_CHECKING:
    from loadgen_py.settings import TestSettings

USER, BUILT_IN, AUDIT = 1, 0, 2

_UINT64 = 1 << 64
_NS_PER_MS = 1_000_000
_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|infinity|nan)", re.IGNORECASE)
_HEX_FLOAT = re.compile(r"[+-]?0[xX]([0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)([pP][+-]?\d+)?")

_user_files_read = 0
_pending_errors: list[str] = []


def take_pending_errors() -> list[str]:
    """The errors since the last call: no log is open while files are read, so the next run logs them."""
    errors = _pending_errors.copy()
    _pending_errors.clear()
    return errors


def apply(settings: TestSettings, path: str, model: str, scenario: str, conf_type: int) -> int:
    """Sets the fields of `settings` that the file names; returns 0 or a negative errno."""
    global _user_files_read
    if conf_type == USER:
        if _user_files_read == 0:
            apply(settings, "", model, scenario, BUILT_IN)
        else:
            _pending_errors.append("Multiple conf files are used. This is not valid for official submission.")
        _user_files_read += 1

    if conf_type == BUILT_IN:
        values = built_in_values()
    else:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                values, errors = parse(file)
        except OSError:
            _pending_errors.append(f"can't open file {path}")
            return -errno.ENOENT
        if errors:
            _pending_errors.extend(errors)
            return -errno.EINVAL
    _set_fields(settings, _LookUp(values, model, scenario), conf_type)
    return 0


def built_in_values() -> dict[str, str]:
    """The official defaults as the `key = value` pairs of a file."""
    return {
        f"{model}.{scenario}.{key}": str(value)
        for model, scenarios in DEFAULTS.items()
        for scenario, keys in scenarios.items()
        for key, value in keys.items()
    }


def parse(lines: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The pairs of a file and the errors in it.

    As officially, a comment must stand on a line of its own and the last of several
    values counts.
    """
    values: dict[str, str] = {}
    errors: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0] == "#" or (len(words) > 1 and words[1] == "#"):
            continue
        if len(words) > 1 and words[1] != "=":
            errors.append(f"expected 'key=value', line={number}")
            continue
        for word in words[2:]:
            if not (_INTEGER.fullmatch(word) or _DECIMAL.fullmatch(word) or _HEX_FLOAT.fullmatch(word)):
                errors.append(f"value needs to be integer or double, line={number}")
                break
            values[words[0]] = word
    return values, errors


def _unsigned(text: str) -> int:
    """`strtoull(text, nullptr, 0)`: the integer that the text starts with."""
    match = _INTEGER.match(text)
    if match is None:
        return 0
    digits = match.group().lstrip("+-")
    if digits.lower().startswith("0x"):
        value = int(digits, 16)
    else:
        value = int(digits, 8 if digits.startswith("0") else 10)
    if value >= _UINT64:
        return _UINT64 - 1
    return -value % _UINT64 if match.group().startswith("-") else value


def _double(text: str) -> float:
    """`strtod(text, nullptr)`."""
    if _HEX_FLOAT.fullmatch(text):
        return float.fromhex(text)
    try:
        return float(text)
    except (ValueError, OverflowError):
        return math.nan


class _LookUp:
    """Values for one model and scenario, the most specific key first."""

    def __init__(self, values: dict[str, str], model: str, scenario: str) -> None:
        self._values, self._model, self._scenario = values, model, scenario

    def text(self, key: str, scenario: str | None = None) -> str | None:
        scenario = scenario or self._scenario
        for prefix in (f"{self._model}.{scenario}", f"*.{scenario}", f"{self._model}.*", "*.*"):
            found = self._values.get(f"{prefix}.{key}")
            if found is not None:
                return found
        return None

    def integer(
        self, settings: TestSettings, field: str, key: str, scenario: str | None = None, unit: int = 1
    ) -> None:
        found = self.text(key, scenario)
        if found is not None:
            setattr(settings, field, _unsigned(found) * unit % _UINT64)

    def number(
        self, settings: TestSettings, field: str, key: str, scenario: str | None = None, unit: float = 1.0
    ) -> None:
        found = self.text(key, scenario)
        if found is not None:
            setattr(settings, field, _double(found) * unit)

    def switch(
        self,
        settings: TestSettings,
        field: str,
        *,
        only_one: bool,
        scenario: str | None = None,
        key: str | None = None,
    ) -> None:
        """A flag; some official keys are true only for 1, others for anything but 0."""
        found = self.text(key or field, scenario)
        if found is not None:
            value = _unsigned(found)
            setattr(settings, field, value == 1 if only_one else value != 0)


def _set_fields(settings: TestSettings, look_up: _LookUp, conf_type: int) -> None:
    mode = look_up.text("mode")
    if mode is not None:
        if _unsigned(mode) < 4:
            settings.mode = type(settings.mode)(_unsigned(mode))
        else:
            _pending_errors.append("Invalid value passed to Mode key in config.")
    if conf_type == BUILT_IN:
        for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
            look_up.integer(settings, name, name)
            look_up.integer(settings, f"test05_{name}", f"test05_{name}")
        look_up.number(settings, "accuracy_log_probability", "accuracy_log_probability", unit=0.01)
        look_up.switch(settings, "test05", only_one=True)

    look_up.switch(settings, "use_token_latencies", only_one=True)
    if settings.use_token_latencies:
        look_up.integer(settings, "ttft_latency", "ttft_latency", "Server", _NS_PER_MS)
        look_up.integer(settings, "tpot_latency", "tpot_latency", "Server", _NS_PER_MS)
    look_up.switch(settings, "infer_token_latencies", only_one=True)
    if settings.infer_token_latencies:
        look_up.integer(settings, "token_latency_scaling_factor", "token_latency_scaling_factor")

    for prefix, scenario in (
        ("single_stream", "SingleStream"),
        ("multi_stream", "MultiStream"),
        ("server", "Server"),
    ):
        field = f"{prefix}_target_latency_percentile"
        look_up.number(settings, field, "target_latency_percentile", scenario, 0.01)
    look_up.integer(settings, "multi_stream_samples_per_query", "samples_per_query", "MultiStream")
    look_up.integer(settings, "server_target_latency_ns", "target_latency", "Server", _NS_PER_MS)

    look_up.switch(settings, "performance_issue_unique", only_one=False)
    look_up.switch(settings, "performance_issue_same", only_one=False)
    look_up.switch(settings, "sample_concatenate_permutation", only_one=True)
    look_up.switch(
        settings, "server_coalesce_queries", only_one=False, scenario="Server", key="coalesce_queries"
    )
    look_up.switch(settings, "print_timestamps", only_one=False)
    look_up.integer(settings, "server_max_async_queries", "max_async_queries", "Server")
    for name in (
        "performance_issue_same_index",
        "min_query_count",
        "max_query_count",
        "performance_sample_count_override",
        "accuracy_sample_count_override",
        "accuracy_log_rng_seed",
        "accuracy_log_sampling_target",
    ):
        look_up.integer(settings, name, name)
    look_up.integer(settings, "min_duration_ms", "min_duration")
    look_up.integer(settings, "max_duration_ms", "max_duration")
    look_up.number(
        settings, "single_stream_expected_latency_ns", "target_latency", "SingleStream", _NS_PER_MS
    )
    look_up.number(settings, "multi_stream_expected_latency_ns", "target_latency", "MultiStream", _NS_PER_MS)
    look_up.number(settings, "server_target_qps", "target_qps", "Server")
    look_up.number(settings, "offline_expected_qps", "target_qps", "Offline")
