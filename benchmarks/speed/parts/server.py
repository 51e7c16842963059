"""Server: latency against throughput, from a tenth of the highest rate that meets the bound almost up to it."""

from __future__ import annotations

from typing import Any

from benchmarks.speed import measure
from benchmarks.speed.parts import Run

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
_SECONDS = 2.0  # of a probe of the search, and of a rate
_SERVED = {
    "resnet50": ("resnet50", 1),
    "resnet50 on 2 devices": ("resnet50", 2),
    "dlrm": ("dlrm", 1),
}
"""Workload, and devices, each with a copy of the model."""

CASES = list(_SERVED)


def measure_case(case: str, run: Run) -> dict[str, Any]:
    """The highest rate, and p50, p90 and p99 in seconds at shares of it.

    Raises:
        Failed: it cannot be served, or no rate meets the bound.
    """
    workload, devices = _SERVED[case]
    with measure.folders([case]) as folders:
        spec = run.spec | {
            "side": "serving",
            "workload": workload,
            "devices": devices,
            "folder": folders[case],
        }
        with measure.workers({case: spec | {"server_seconds": _SECONDS}}) as workers:
            run.say("making and compiling it")
            facts = workers[case].ask("prepare")
            workers[case].ask("ready", program="Server")
            run.say("searching its highest rate")
            found = workers[case].ask("peak")
            if not found["peak"]:
                raise measure.Failed(f"no rate meets its bound of {1000 * found['bound']:g} ms")
            points = []
            for share in SHARES:
                run.say(f"at {share:.0%} of it")
                rate = share * found["peak"]
                points.append({"share": share, "rate": rate, **workers[case].ask("load", rate=rate)})
    return facts | found | {"points": points}
