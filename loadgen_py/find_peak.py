"""The peak search of Server: the highest rate at which the latency bound holds.

The base rate must pass; it is multiplied by (1 + step) until a rate fails, and the two are
bisected to the asked number of decimals (`FindPeakPerformance`, official `loadgen.cc`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from loadgen_py.schedule import LoadableSet
from loadgen_py.settings import EffectiveSettings
from loadgen_py.statistics import Verdict

if TYPE_CHECKING:
    from loadgen_py.run import Run


def find_peak(run: Run, base: EffectiveSettings) -> None:
    """Searches, and reports the verdict at the highest rate that passed."""
    run.note(
        f"FindPeakPerformance: Check validity of the base settings field: {base.target_qps:f}"
    )
    lower = _probe_with_load(run, base)
    if run.broken:
        return run.report(lower)
    if not _passes(lower):
        run.fail(
            "FindPeakPerformance: Initial lower bound does not satisfy performance constraints, msg: "
            + (lower.perf_advice or "early stopping is not satisfied")
        )
        return run.report(lower)

    step = 1 + base.requested.server_find_peak_qps_boundary_step_size
    while True:
        upper_settings = dataclasses.replace(lower.settings, target_qps=lower.settings.target_qps * step)
        run.note(
            "FindBoundaries: Checking fields "
            f"[{lower.settings.target_qps:f}, {upper_settings.target_qps:f})"
        )
        upper = _probe_with_load(run, upper_settings)
        if run.broken or not _passes(upper):
            break
        lower = upper
    run.note(
        f"FindPeakPerformance: Found boundaries: [{lower.settings.target_qps:f}, {upper.settings.target_qps:f})"
    )
    peak = _bisect(run, lower, upper.settings)
    run.note(f"FindPeakPerformance: Found peak performance field: {peak.settings.target_qps:f}")
    run.report(peak)


def _bisect(run: Run, lower: Verdict, upper: EffectiveSettings) -> Verdict:
    loaded = run.performance_set(upper)
    run.load(loaded)
    scale = 10**upper.requested.server_find_peak_qps_decimals_of_precision
    while not run.broken and math.floor(lower.settings.target_qps * scale) + 1 < math.floor(upper.target_qps * scale):
        low = lower.settings.target_qps
        middle = dataclasses.replace(upper, target_qps=low + (upper.target_qps - low) / 2)
        run.note(
            "FindPeakPerformanceBinarySearch: Testing the mid value of bounds "
            f"[{low:f}, {upper.target_qps:f}): {middle.target_qps:f}"
        )
        verdict = _probe(run, middle, loaded)
        if _passes(verdict):
            lower = verdict
        else:
            upper = middle
    run.unload(loaded)
    return lower


def _probe_with_load(run: Run, settings: EffectiveSettings) -> Verdict:
    loaded = run.performance_set(settings)
    run.load(loaded)
    verdict = _probe(run, settings, loaded)
    run.unload(loaded)
    return verdict


def _probe(run: Run, settings: EffectiveSettings, loaded: LoadableSet) -> Verdict:
    most_slow_share = None
    if settings.requested.server_find_peak_early_stopping and not settings.requested.use_token_latencies:
        most_slow_share = 1 - settings.target_latency_percentile
    return run.measure(settings, loaded, most_slow_share)


def _passes(verdict: Verdict) -> bool:
    if verdict.settings.requested.server_find_peak_early_stopping and not verdict.early_stopping.met:
        return False
    return verdict.perf_constraints_met
