"""`mlperf.conf`, `user.conf` and `audit.config`: lines `model.Scenario.key = number`.

The look-up, the order of the files and the odd corners follow the official
`TestSettings::FromConfig`: a key is looked for as model.scenario, *.scenario, model.*, *.*;
times are in ms, percentiles in percent; seeds count only in the built-in defaults.
"""

from __future__ import annotations

import errno
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping

from loadgen_py.official_defaults import DEFAULTS

USER, BUILT_IN, AUDIT = 1, 0, 2

_SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
_UINT64 = 1 << 64
_NS_PER_MS = 1_000_000
_TOLD = 60  # characters of a value
_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|infinity|nan)", re.IGNORECASE)
_HEX_FLOAT = re.compile(r"[+-]?0[xX]([0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)([pP][+-]?\d+)?")

Value = int | float | bool

_user_files_read = 0
_pending_errors: list[str] = []
_pending_warnings: list[str] = []


def take_pending_errors() -> list[str]:
    """The errors since the last call: no log is open while files are read, so the next run logs them."""
    return _taken(_pending_errors)


def take_pending_warnings() -> list[str]:
    """What was not read as its writer may have meant it, since the last call."""
    return _taken(_pending_warnings)


def _taken(texts: list[str]) -> list[str]:
    taken = texts.copy()
    texts.clear()
    return taken


def _warn(text: str) -> None:
    _pending_warnings.append(text)
    print(f"LoadGen: WARNING: {text}", file=sys.stderr, flush=True)


def read_fields(
    path: str, model: str, scenario: str, conf_type: int, before: Mapping[str, Value]
) -> tuple[dict[str, Value], int]:
    """(the fields of `TestSettings` that a file sets, 0 or a negative errno).

    `before` has the fields as they are: bounds of tokens are read only where tokens are measured.
    """
    global _user_files_read
    found: dict[str, Value] = {}
    if conf_type == USER:
        if _user_files_read == 0:
            found, _ = read_fields("", model, scenario, BUILT_IN, before)
        else:
            _pending_errors.append("Multiple conf files are used. This is not valid for official submission.")
        _user_files_read += 1

    if conf_type == BUILT_IN:
        values = built_in_values()
    else:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                values, errors, ignored = parse(file)
        except OSError:
            _pending_errors.append(f"can't open file {path}")
            return found, -errno.ENOENT
        if errors:
            _pending_errors.extend(errors)
            return found, -errno.EINVAL
        if scenario not in _SCENARIOS:
            ignored.append(f"read for {scenario}, which is no scenario; write one of {', '.join(_SCENARIOS)}")
        for text in ignored + _never_read(values, conf_type):
            _warn(f"{path}: {text}")
    reader = _Reader(values, model, scenario, {**before, **found})
    _read_all(reader, conf_type)
    return found | reader.found, 0


def _never_read(values: Mapping[str, str], conf_type: int) -> list[str]:
    """A remark on each key that no model and scenario would look for."""
    probe = _Reader({}, "*", "*", defaultdict(lambda: True))
    _read_all(probe, conf_type)
    remarks = []
    for name in values:
        _, scenario, key = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", name)
        known = (scenario, key) in probe.asked or scenario in _SCENARIOS and ("*", key) in probe.asked
        if scenario == "*":
            known = any(key == other for _, other in probe.asked)
        if not known:
            remarks.append(
                f"{name} sets nothing; write model.Scenario.key, with a key that this file may set"
            )
    return remarks


def built_in_values() -> dict[str, str]:
    """The official defaults as the `key = value` pairs of a file."""
    return {
        f"{model}.{scenario}.{key}": str(value)
        for model, scenarios in DEFAULTS.items()
        for scenario, keys in scenarios.items()
        for key, value in keys.items()
    }


def parse(lines: Iterable[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """The pairs of a file, the errors in it, and remarks on lines that set nothing.

    As officially, a comment must stand on a line of its own and the last of several
    values counts.
    """
    values: dict[str, str] = {}
    errors: list[str] = []
    remarks: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0] == "#" or (len(words) > 1 and words[1] == "#"):
            continue
        if len(words) > 1 and words[1] != "=":
            errors.append(f"expected 'key=value', line={number}")
            continue
        if len(words) < 3 and not words[0].startswith("#"):
            remarks.append(f"line {number} sets nothing; write 'key = value', with spaces")
        for word in words[2:]:
            if not (_INTEGER.fullmatch(word) or _DECIMAL.fullmatch(word) or _HEX_FLOAT.fullmatch(word)):
                errors.append(f"value needs to be integer or double, line={number}")
                break
            values[words[0]] = word
    return values, errors, remarks


def _unsigned(text: str) -> int:
    """`strtoull(text, nullptr, 0)`: the integer that the text starts with."""
    match = _INTEGER.match(text)
    if match is None:
        return 0
    digits = match.group().lstrip("+-").lower()
    base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10
    digits = digits.removeprefix("0x").lstrip("0") or "0"
    # More digits than 64 bits have in any base are not worked out: that would take long.
    value = int(digits, base) if len(digits) <= 64 else _UINT64
    if value >= _UINT64:
        return _UINT64 - 1
    return -value % _UINT64 if match.group().startswith("-") else value


def _double(text: str) -> float:
    """`strtod(text, nullptr)`."""
    try:
        return float.fromhex(text) if _HEX_FLOAT.fullmatch(text) else float(text)
    except OverflowError:
        return -math.inf if text.startswith("-") else math.inf
    except ValueError:
        return math.nan


class _Reader:
    """Takes fields out of the values for one model and scenario, the most specific key first.

    A field is looked for under its own name if no `key` is given.

    Attributes:
        found: the fields so far.
        asked: the (scenario, key) that were looked for.
    """

    def __init__(
        self, values: Mapping[str, str], model: str, scenario: str, before: Mapping[str, Value]
    ) -> None:
        self._values, self._model, self._scenario, self._before = values, model, scenario, before
        self.found: dict[str, Value] = {}
        self.asked: set[tuple[str, str]] = set()

    def text(self, key: str, scenario: str | None = None) -> str | None:
        scenario = scenario or self._scenario
        self.asked.add((scenario, key))
        for prefix in (f"{self._model}.{scenario}", f"*.{scenario}", f"{self._model}.*", "*.*"):
            text = self._values.get(f"{prefix}.{key}")
            if text is not None:
                return text
        return None

    def integer(self, field: str, key: str = "", scenario: str | None = None, unit: int = 1) -> None:
        text = self.text(key or field, scenario)
        if text is not None:
            self.found[field] = _unsigned(text) * unit % _UINT64
            if text != str(_unsigned(text)):
                _warn(f"{key or field} = {text[:_TOLD]} is read as {_unsigned(text)}")

    def number(self, field: str, key: str = "", scenario: str | None = None, unit: float = 1.0) -> None:
        text = self.text(key or field, scenario)
        if text is not None:
            self.found[field] = _double(text) * unit

    def switch(self, field: str, key: str = "", scenario: str | None = None, *, only_one: bool) -> bool:
        """A flag, and whether it is on now; some official keys are true only for 1, others for anything but 0."""
        text = self.text(key or field, scenario)
        if text is not None:
            value = _unsigned(text)
            self.found[field] = value == 1 if only_one else value != 0
        return bool(self.found.get(field, self._before[field]))


def _read_all(reader: _Reader, conf_type: int) -> None:
    mode = reader.text("mode")
    if mode is not None:
        if _unsigned(mode) < 4:
            reader.found["mode"] = _unsigned(mode)
        else:
            _pending_errors.append("Invalid value passed to Mode key in config.")
    if conf_type == BUILT_IN:
        for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
            reader.integer(name)
            reader.integer(f"test05_{name}")
        reader.number("accuracy_log_probability", unit=0.01)
        reader.switch("test05", only_one=True)

    if reader.switch("use_token_latencies", only_one=True):
        reader.integer("ttft_latency", scenario="Server", unit=_NS_PER_MS)
        reader.integer("tpot_latency", scenario="Server", unit=_NS_PER_MS)
    if reader.switch("infer_token_latencies", only_one=True):
        reader.integer("token_latency_scaling_factor")

    prefixes = ("single_stream", "SingleStream"), ("multi_stream", "MultiStream"), ("server", "Server")
    for prefix, scenario in prefixes:
        reader.number(f"{prefix}_target_latency_percentile", "target_latency_percentile", scenario, 0.01)
    reader.integer("multi_stream_samples_per_query", "samples_per_query", "MultiStream")
    reader.integer("server_target_latency_ns", "target_latency", "Server", _NS_PER_MS)

    reader.switch("performance_issue_unique", only_one=False)
    reader.switch("performance_issue_same", only_one=False)
    reader.switch("sample_concatenate_permutation", only_one=True)
    reader.switch("server_coalesce_queries", "coalesce_queries", "Server", only_one=False)
    reader.switch("print_timestamps", only_one=False)
    reader.integer("server_max_async_queries", "max_async_queries", "Server")
    for name in (
        "performance_issue_same_index",
        "min_query_count",
        "max_query_count",
        "performance_sample_count_override",
        "accuracy_sample_count_override",
        "accuracy_log_rng_seed",
        "accuracy_log_sampling_target",
    ):
        reader.integer(name)
    reader.integer("min_duration_ms", "min_duration")
    reader.integer("max_duration_ms", "max_duration")
    reader.number("single_stream_expected_latency_ns", "target_latency", "SingleStream", _NS_PER_MS)
    reader.number("multi_stream_expected_latency_ns", "target_latency", "MultiStream", _NS_PER_MS)
    reader.number("server_target_qps", "target_qps", "Server")
    reader.number("offline_expected_qps", "target_qps", "Offline")
