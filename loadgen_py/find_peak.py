"""The peak search of Server: the highest rate at which the latency bound holds.

The base rate must pass; it is multiplied by (1 + step) until a rate fails, and the two are
bisected to the asked number of decimals (`FindPeakPerformance`, official `loadgen.cc`). With
`server_find_peak_early_stopping` a base rate that fails is divided by (1 + step) until one passes, or
until the system is idle nearly all the time and misses the bound even so.
"""

from __future__ import annotations

import dataclasses
import math

from loadgen_py.phases import PhaseRunner
from loadgen_py.schedule import LoadableSet
from loadgen_py.settings import EffectiveSettings
from loadgen_py.statistics import PerformanceVerdict

_LOWEST_QPS = 1e-3
_IDLE = 0.02  # queries in flight on average


def find_peak(phases: PhaseRunner, base: EffectiveSettings) -> PerformanceVerdict:
    """Searches, and returns the verdict at the highest rate that passed, or the last one if none did."""
    phases.note(f"FindPeakPerformance: Check validity of the base settings field: {base.target_qps:f}")
    lower, upper = _passing_base(phases, base)
    if phases.broken:
        return lower
    if not _passes(lower):
        phases.fail(
            "FindPeakPerformance: Initial lower bound does not satisfy performance constraints, msg: "
            + (lower.perf_advice or "early stopping is not satisfied")
        )
        return lower
    step = 1 + base.requested.server_find_peak_qps_boundary_step_size
    while upper is None and not phases.broken:
        next_settings = _at(lower.settings, lower.settings.target_qps * step)
        phases.note(f"FindBoundaries: Checking fields {_bounds(lower.settings, next_settings)}")
        verdict = _probe_with_load(phases, next_settings)
        if _passes(verdict):
            lower = verdict
        else:
            upper = next_settings
    if upper is not None:
        phases.note(f"FindPeakPerformance: Found boundaries: {_bounds(lower.settings, upper)}")
        lower = _bisect(phases, lower, upper)
        phases.note(f"FindPeakPerformance: Found peak performance field: {lower.settings.target_qps:f}")
    return lower


def _passing_base(
    phases: PhaseRunner, base: EffectiveSettings
) -> tuple[PerformanceVerdict, EffectiveSettings | None]:
    """(the verdict at the base rate, or at the first lower one that passes if it may be lowered,
    the settings of the lowest that is known not to pass)."""
    lower, upper = _probe_with_load(phases, base), None
    step = 1 + base.requested.server_find_peak_qps_boundary_step_size
    while base.requested.server_find_peak_early_stopping and not _passes(lower) and not phases.broken:
        upper = lower.settings
        if upper.target_qps < _LOWEST_QPS:
            break
        if _idle(lower):
            phases.note(
                f"FindPeakPerformance: {upper.target_qps:f} leaves the system idle, a lower base is no faster"
            )
            break
        phases.note(f"FindPeakPerformance: {upper.target_qps:f} does not pass, trying a lower base")
        lower = _probe_with_load(phases, _at(upper, upper.target_qps / step))
    return lower, upper


def _at(settings: EffectiveSettings, qps: float) -> EffectiveSettings:
    return dataclasses.replace(settings, target_qps=qps)


def _bounds(lower: EffectiveSettings, upper: EffectiveSettings) -> str:
    return f"[{lower.target_qps:f}, {upper.target_qps:f})"


def _bisect(phases: PhaseRunner, lower: PerformanceVerdict, upper: EffectiveSettings) -> PerformanceVerdict:
    with phases.performance_set(upper) as loaded:
        while not phases.broken and not _finished(lower.settings, upper):
            low = lower.settings.target_qps
            middle = _at(upper, low + (upper.target_qps - low) / 2)
            phases.note(
                "FindPeakPerformanceBinarySearch: Testing the mid value of bounds "
                f"{_bounds(lower.settings, upper)}: {middle.target_qps:f}"
            )
            verdict = _probe(phases, middle, loaded)
            if _passes(verdict):
                lower = verdict
            else:
                upper = middle
    return lower


def _finished(lower: EffectiveSettings, upper: EffectiveSettings) -> bool:
    scale = 10**upper.requested.server_find_peak_qps_decimals_of_precision
    close = upper.target_qps <= lower.target_qps * (1 + upper.requested.server_find_peak_relative_precision)
    return close or math.floor(lower.target_qps * scale) + 1 >= math.floor(upper.target_qps * scale)


def _probe_with_load(phases: PhaseRunner, settings: EffectiveSettings) -> PerformanceVerdict:
    with phases.performance_set(settings) as loaded:
        return _probe(phases, settings, loaded)


def _probe(phases: PhaseRunner, settings: EffectiveSettings, loaded: LoadableSet) -> PerformanceVerdict:
    most_slow_share = None
    if settings.requested.server_find_peak_early_stopping and not settings.requested.use_token_latencies:
        most_slow_share = 1 - settings.target_latency_percentile
    return phases.performance(settings, loaded, most_slow_share)


def _idle(verdict: PerformanceVerdict) -> bool:
    """Whether queries hardly ever met another one: by Little's law the rate times the mean latency are in flight."""
    if verdict.samples is None:
        return False
    return verdict.settings.target_qps * verdict.samples.mean / 1e9 < _IDLE


def _passes(verdict: PerformanceVerdict) -> bool:
    if verdict.settings.requested.server_find_peak_early_stopping and not verdict.early_stopping.met:
        return False
    return verdict.perf_constraints_met
