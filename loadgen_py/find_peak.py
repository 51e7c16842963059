"""The peak search of Server: the highest rate at which the latency bound holds.

The base rate must pass; it is multiplied by (1 + step) until a rate fails, and the two are
bisected to the asked number of decimals (`FindPeakPerformance`, official `loadgen.cc`). With
`server_find_peak_early_stopping` a base rate that fails is divided by (1 + step) until one passes, or
until the system is idle nearly all the time and misses the bound even so.

A probe that passes has shown with 99 % confidence that the bound holds (early stopping); one that fails may
only have met a stall of the machine. So with `server_find_peak_early_stopping` a failure is believed where the search
would end by it, and only if the same rate fails once more, later: if it passes, the search goes on from
there to the next rate that failed. Where a share p of n probes meets a stall, these decide with 1 - (1 - p^2)^n
instead of 1 - (1 - p)^n, for the price of one probe where there is none.
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
    lower, failed = _passing_base(phases, base)
    if phases.broken:
        return lower
    if not _passes(lower):
        phases.fail(
            "FindPeakPerformance: Initial lower bound does not satisfy performance constraints, msg: "
            + (lower.perf_advice or "early stopping is not satisfied")
        )
        return lower
    while not phases.broken:
        lower = _narrowed(phases, lower, failed)
        if phases.broken or not base.requested.server_find_peak_early_stopping:
            break
        upper = failed.pop()
        phases.note(f"FindPeakPerformance: Testing {upper.target_qps:f} a second time")
        again = _probe_with_load(phases, upper)
        if not _passes(again):
            break
        lower = again
    return lower


def _narrowed(
    phases: PhaseRunner, lower: PerformanceVerdict, failed: list[EffectiveSettings]
) -> PerformanceVerdict:
    """The highest rate that passes below the lowest that failed, which is searched upwards if none has.

    Args:
        lower: what passed.
        failed: higher rates, the lowest last; those that fail here are added.
    """
    step = 1 + lower.settings.requested.server_find_peak_qps_boundary_step_size
    while not failed and not phases.broken:
        next_settings = _at(lower.settings, lower.settings.target_qps * step)
        phases.note(f"FindBoundaries: Checking fields {_bounds(lower.settings, next_settings)}")
        verdict = _probe_with_load(phases, next_settings)
        if _passes(verdict):
            lower = verdict
        else:
            failed.append(next_settings)
    if failed:
        phases.note(f"FindPeakPerformance: Found boundaries: {_bounds(lower.settings, failed[-1])}")
        lower = _bisect(phases, lower, failed)
        phases.note(f"FindPeakPerformance: Found peak performance field: {lower.settings.target_qps:f}")
    return lower


def _passing_base(
    phases: PhaseRunner, base: EffectiveSettings
) -> tuple[PerformanceVerdict, list[EffectiveSettings]]:
    """(the verdict at the base rate, or at the first lower one that passes if it may be lowered, the
    settings that did not pass, the lowest rate last)."""
    lower, failed = _probe_with_load(phases, base), []
    step = 1 + base.requested.server_find_peak_qps_boundary_step_size
    idle = 0  # probes that failed so, one after the other
    while base.requested.server_find_peak_early_stopping and not _passes(lower) and not phases.broken:
        upper = lower.settings
        if upper.target_qps < _LOWEST_QPS:
            break
        idle = idle + 1 if _idle(lower) else 0
        if idle == 2:
            phases.note(
                f"FindPeakPerformance: {upper.target_qps:f} leaves the system idle, a lower base is no faster"
            )
            break
        if idle:
            phases.note(f"FindPeakPerformance: Testing {upper.target_qps:f} a second time")
            lower = _probe_with_load(phases, upper)
            continue
        failed.append(upper)
        phases.note(f"FindPeakPerformance: {upper.target_qps:f} does not pass, trying a lower base")
        lower = _probe_with_load(phases, _at(upper, upper.target_qps / step))
    return lower, failed


def _at(settings: EffectiveSettings, qps: float) -> EffectiveSettings:
    return dataclasses.replace(settings, target_qps=qps)


def _bounds(lower: EffectiveSettings, upper: EffectiveSettings) -> str:
    return f"[{lower.target_qps:f}, {upper.target_qps:f})"


def _bisect(
    phases: PhaseRunner, lower: PerformanceVerdict, failed: list[EffectiveSettings]
) -> PerformanceVerdict:
    """The highest rate that passes between `lower` and the last of `failed`; those that fail are added to them."""
    with phases.performance_set(failed[-1]) as loaded:
        while not phases.broken and not _finished(lower.settings, failed[-1]):
            low, upper = lower.settings.target_qps, failed[-1]
            middle = _at(upper, low + (upper.target_qps - low) / 2)
            phases.note(
                "FindPeakPerformanceBinarySearch: Testing the mid value of bounds "
                f"{_bounds(lower.settings, upper)}: {middle.target_qps:f}"
            )
            verdict = _probe(phases, middle, loaded)
            if _passes(verdict):
                lower = verdict
            else:
                failed.append(middle)
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
