"""What `benchmarks.run` measures besides rows: parts, each of some cases that are measured by themselves.

A part is a module with CASES, a list of names, and `measure_case(case, run)`, which gives what the record keeps of it.
How that is shown is said in `mlperf_jax.reporting.measured`.
"""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType

from benchmarks.speed.measure import Say
from benchmarks.speed.side import Spec

PARTS = ("input", "loadgen", "server", "start", "scaling")


@dataclasses.dataclass(frozen=True)
class Run:
    """How a part is measured.

    Attributes:
        spec: of workers, without `side`, `folder` and `workload`.
        rounds: of everything that is compared.
        seconds: that a turn takes at least.
        say: is told what is going on.
    """

    spec: Spec
    rounds: int
    seconds: float
    say: Say


def find(part: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{part}")
