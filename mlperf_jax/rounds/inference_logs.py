"""Reads the logs of LoadGen, the official one and ours: they are of one format.

A run is a folder that holds mlperf_log_detail.txt. Latencies of single samples come from
mlperf_log_trace.json, where the run wrote one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.goals import Goal
from mlperf_jax.regular import open_regular
from mlperf_jax.rounds.collect import NOT_RESULTS, Problem
from mlperf_jax.rounds.inference_limits import TPOT, TTFT
from mlperf_jax.rounds.objects import command_in, flat_texts, number, read_ends, read_object
from mlperf_jax.rounds.qualities import figures, told_goals
from mlperf_jax.rounds.training_rules import UNVERIFIED

DETAIL = "mlperf_log_detail.txt"
SUMMARY = "mlperf_log_summary.txt"
BEGIN = "effective_test_mode"
"""What a run logs once, before it begins."""
_TRACE = "mlperf_log_trace.json"
_MOST_BYTES = 64 << 20  # of a detail log: its settings come first, its results last
_MOST_ACCURACY = 16 << 10
_CHUNK = 16 << 20
_MOST_LATENCIES = 5_000_000
_COMPLETE = re.compile(rb'"complete_ns":\s*(\d{1,18})')
_PERCENTILE = re.compile(r"result_(\d\d\.\d\d)_percentile_latency_ns")
# What a scenario is judged by: field of the detail log, name, unit, factor to it.
METRICS = {
    "SingleStream": ("early_stopping_latency_ss", "90th percentile latency", "ms", 1e-6),
    "MultiStream": ("early_stopping_latency_ms", "99th percentile latency", "ms", 1e-6),
    "Server": ("result_completed_samples_per_sec", "completed samples", "per s", 1.0),
    "Offline": ("result_samples_per_second", "samples", "per s", 1.0),
}
SCENARIOS = tuple(METRICS)
_TOKENS = {  # in their place, where a run logs them
    "Server": ("result_completed_tokens_per_second", "completed tokens", "per s", 1.0),
    "Offline": ("result_tokens_per_second", "tokens", "per s", 1.0),
}
_EARLY = {
    "early_stopping_result": "",
    "early_stopping_ttft_result": "of first tokens: ",
    "early_stopping_tpot_result": "of the time per token: ",
}


@dataclasses.dataclass(frozen=True)
class InferenceRun:
    """One run of LoadGen.

    Attributes:
        model, system, submitter: from the path, as far as it tells.
        scenario, mode: as logged, "Server", "PerformanceOnly".
        valid: LoadGen's verdict; None in accuracy mode.
        reason: why it is invalid.
        metric, value, unit: what the scenario is judged by; value None where there is none.
        percentiles: (share, seconds), as logged.
        latencies: [samples] seconds, sorted; empty without a trace.
        bound: Server's latency bound in seconds. bound_percentile: the share that must keep it.
        target_qps: as asked.
        tokens: latencies of first and of other tokens, in a line; "" where these are not measured.
        accuracy: as our result.json or the lines of accuracy.txt have it.
        errors: how many error lines the log holds.
        fields: all settings and results, as logged.
        facts: of runs of ours, model, machine and software.
        command: of runs of ours, what was typed; "" where it is not known.
        labels: what must be said with every figure.
    """

    path: Path
    model: str
    system: str
    submitter: str
    scenario: str
    mode: str
    valid: bool | None
    reason: str
    metric: str
    value: float | None
    unit: str
    percentiles: tuple[tuple[float, float], ...]
    latencies: np.ndarray
    bound: float | None
    bound_percentile: float
    target_qps: float | None
    tokens: str
    accuracy: tuple[str, ...]
    errors: int
    fields: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    command: str
    labels: tuple[str, ...]

    @property
    def server_p99(self) -> float | None:
        """Seconds at the judged percentile: what Server's curve shows."""
        return next((s for share, s in self.percentiles if abs(share - self.bound_percentile) < 1e-6), None)


def read_inference(roots: Iterable[Path]) -> tuple[list[InferenceRun], list[Problem]]:
    """All LoadGen runs below `roots`. What cannot be read is listed."""
    runs: dict[Path, InferenceRun] = {}
    problems: list[Problem] = []
    for root in roots:
        root = Path(os.path.abspath(root))
        for folder in run_folders(root):
            try:
                runs.setdefault(folder, read_run(folder, folder if root.is_file() else root))
            except UserError as error:
                problems.append(Problem.of(folder / DETAIL, error))
    return list(runs.values()), problems


def run_folders(root: Path) -> Iterator[Path]:
    """Every folder below `root` that holds a run's detail log; the one of `root` where it is such a log itself."""
    if root.is_file() and root.name == DETAIL:
        yield root.parent
    for folder, names, files in os.walk(root, followlinks=False):
        names[:] = sorted(name for name in names if name not in NOT_RESULTS)
        if DETAIL in files:
            yield Path(folder)


def read_run(folder: Path, root: Path) -> InferenceRun:
    """Reads one run.

    Raises:
        UserError: its detail log cannot be read, or holds no scenario, or more than one run.
    """
    fields, errors = _detail(folder / DETAIL)
    scenario, mode = str(fields.get("effective_scenario", "")), str(fields.get("effective_test_mode", ""))
    if scenario not in SCENARIOS:
        raise UserError("holds no scenario that LoadGen has.")
    performance = mode != "AccuracyOnly"
    field, metric, unit, factor = judged_by(scenario, fields)
    found = number(fields.get(field)) if performance else None
    submitter, system, model = _names(folder, root)
    own = own_record(folder)
    bound = number(fields.get("effective_target_latency_ns")) if scenario == "Server" else None
    return InferenceRun(
        path=folder,
        model=model,
        system=system,
        submitter=submitter,
        scenario=scenario,
        mode=mode,
        valid=fields.get("result_validity") == "VALID" if performance else None,
        reason=_reason(fields, own),
        metric=metric,
        value=found * factor if found else None,  # 0 stands for none: too few queries for an estimate
        unit=unit,
        percentiles=_percentiles(fields),
        latencies=_latencies(folder / _TRACE) if performance else np.zeros(0),
        bound=bound / 1e9 if bound else None,
        bound_percentile=number(fields.get("effective_target_latency_percentile")) or 0.99,
        target_qps=number(fields.get("effective_target_qps")),
        tokens=_tokens(fields, own),
        accuracy=_accuracy(folder),
        errors=errors,
        fields=tuple((k, _text(v)) for k, v in fields.items()),
        facts=_facts(own),
        command=command_in(own),
        labels=_labels(folder, own),
    )


def _detail(path: Path) -> tuple[dict[str, Any], int]:
    """The last value of each key (a search for the peak logs many), and how many lines are errors.

    Raises:
        UserError: it cannot be read, or holds more than one run.
    """
    try:
        text = read_ends(path, _MOST_BYTES)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}).") from None
    fields: dict[str, Any] = {}
    errors = runs = 0
    for line in text.splitlines():
        _, token, body = line.partition(b":::MLLOG ")
        # The rest are long lists: the hashes of LoadGen's sources, the loaded samples.
        if not token or len(body) > 4096:
            continue
        try:
            event = json.loads(body)
            key = event["key"]
            errors += bool(event.get("metadata", {}).get("is_error"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        runs += key == BEGIN
        if isinstance(key, str):
            fields[key] = event.get("value")
    if runs > 1:
        raise UserError("holds two runs in one file.")
    return fields, max(errors, int(number(fields.get("num_errors")) or 0))


def _reason(fields: dict[str, Any], own: dict[str, Any]) -> str:
    """Why a run is invalid. Ours say it in full; of early stopping the official LoadGen says it elsewhere."""
    if isinstance(own.get("reasons"), list):
        return own_reasons(own)
    told = " ".join(str(fields.get("result_invalid_reason", "")).split())
    if not told and fields.get("early_stopping_met") is False:
        told = f"Too few queries: {early_stopping(fields)}"
    return told


def judged_by(scenario: str, fields: Mapping[str, Any]) -> tuple[str, str, str, float]:
    """As `METRICS` has it, by tokens where these were counted."""
    by_tokens = _TOKENS.get(scenario)
    return by_tokens if by_tokens and by_tokens[0] in fields else METRICS[scenario]


def early_stopping(fields: Mapping[str, Any]) -> str:
    """What LoadGen says of early stopping, in a line: of samples, or of tokens, where it may be silent of the one."""
    told = (f"{of}{fields[key]}" for key, of in _EARLY.items() if str(fields.get(key) or "").strip())
    return " ".join(" ".join(told).replace("*", "").split())


def own_reasons(own: Mapping[str, Any]) -> str:
    """Why a run of ours is invalid, as its result.json says; "" where it does not."""
    reasons = own.get("reasons")
    listed = reasons if isinstance(reasons, list) else []
    return " ".join(str(reason["text"]) for reason in listed if isinstance(reason, dict) and "text" in reason)


def _percentiles(fields: dict[str, Any]) -> tuple[tuple[float, float], ...]:
    found = []
    for key, value in fields.items():
        match, nanoseconds = _PERCENTILE.fullmatch(key), number(value)
        if match and nanoseconds is not None:
            found.append((float(match[1]) / 100, nanoseconds / 1e9))
    return tuple(sorted(found))


def _tokens(fields: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """By LoadGen, and the other ones also as mlcommons/endpoints has them, where ours measured that."""
    first, each = (number(fields.get(key)) for key in (TTFT, TPOT))
    if first is None or each is None:
        return ""
    told = f"99th percentiles: first token {first / 1e6:.4g} ms, each other {each / 1e6:.4g} ms"
    other = number(own.get("endpoints_tpot_99_ns"))
    return told + (f" ({other / 1e6:.4g} ms as mlcommons/endpoints has it)" if other is not None else "")


def _latencies(path: Path) -> np.ndarray:
    """Seconds of every sample of a trace, sorted; empty if there is none or it cannot be read."""
    found: list[int] = []
    try:
        with open_regular(path) as file:
            rest = b""
            while (chunk := file.read(_CHUNK)) and len(found) < _MOST_LATENCIES:
                text = rest + chunk
                cut = text.rfind(b"\n") + 1
                rest = text[cut:][-65_536:]
                found += map(int, _COMPLETE.findall(text[:cut]))
            found += map(int, _COMPLETE.findall(rest))
    except OSError:
        return np.zeros(0)
    return np.sort(np.asarray(found[:_MOST_LATENCIES], dtype=np.float64)) / 1e9


def _accuracy(folder: Path) -> tuple[str, ...]:
    """How good the answers were: of this run, or of the accuracy run beside it."""
    above = list(folder.parents)[:3]
    depth = next((i for i, place in enumerate(above) if place.name in SCENARIOS), -1)
    for place in (folder, *(place / "accuracy" for place in above[: depth + 1])):
        own = own_record(place)
        if number(own.get("quality")) is not None:
            return tuple(_own_figures(own))
        try:
            lines = read_ends(place / "accuracy.txt", _MOST_ACCURACY).decode("utf-8", "replace").splitlines()
        except OSError:
            continue
        return tuple(line.strip()[:300] for line in lines if line.strip())
    return ()


def own_goals(own: Mapping[str, Any]) -> tuple[Goal, ...]:
    """What a run of ours had to reach, as its result.json says; nothing where it does not."""
    several = isinstance(own.get("quality_target"), dict)
    about = {"direction": own.get("direction"), "metric": None if several else own.get("metric")}
    return told_goals(own.get("quality_target"), about)


def _own_figures(own: Mapping[str, Any]) -> Iterator[str]:
    goals = own_goals(own)
    if not goals:
        yield f"{own.get('metric', 'quality')} {number(own['quality']):.4g}"
    for goal in goals:
        name = goal.name if len(goals) > 1 else goal.metric
        yield f"{name} {figures(goals, own['quality'])[goal.name]:.4g}, target {goal.target:.4g}"


def own_record(folder: Path) -> dict[str, Any]:
    """The result.json with which our runs say what they are; empty with anybody else's."""
    return read_object(folder / "result.json")


def _names(folder: Path, root: Path) -> tuple[str, str, str]:
    """Submitter, system and model of ORG/results/SYSTEM/MODEL/SCENARIO/... or of our
    RESULTS/inference/SYSTEM/MODEL/SCENARIO/..., else from what path there is."""
    parts = folder.parts
    for name in ("inference", "results"):
        at = max((i for i, part in enumerate(parts) if part == name), default=None)
        if at is not None and len(parts) > at + 3:
            return parts[at - 1] if name == "results" else "", parts[at + 1], parts[at + 2]
    inside = parts[len(root.parts) :]
    before = inside[: next((i for i, part in enumerate(inside) if part in SCENARIOS), 0)]
    return "", root.name, before[-1] if before else root.name


def _labels(folder: Path, own: dict[str, Any]) -> tuple[str, ...]:
    """What our runs say of themselves; others' are called unverified unless they lie in a published round."""
    labels = own.get("labels")
    if isinstance(labels, list) and labels:
        return tuple(map(str, labels))
    published = any(re.match(r"inference_results_v\d", part) for part in folder.parts)
    return () if published else (UNVERIFIED,)


def _facts(own: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Model, machine and software of a run of ours."""
    names = ("model", "precision", "sharding", "replicas", "devices", "versions")
    return flat_texts({name: own[name] for name in names if name in own})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
