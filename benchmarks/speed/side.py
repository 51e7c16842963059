"""One side of a row, ours or PyTorch's: programs that are called so many times, and what that took."""

from __future__ import annotations

import abc
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TRAIN, ONE, MANY = "train", "predict_one", "predict_many"
PROGRAMS = (TRAIN, ONE, MANY)
"""A step of training, answers to one sample, and to the largest batch that is served."""

Spec = dict[str, Any]
"""What a worker is started with: `side`, `workload`, `preset`, `platform`, `overrides`, `folder`, `seed`."""


def cpu_seconds() -> float:
    """Of this process, all its threads and the children it waited for, user and system."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


class Side(abc.ABC):
    """Every method gives what can be written as JSON.

    Attributes:
        spec: what the worker was started with.
        runs: program -> a function that calls it so many times, and returns when all is done.
        at_start: bytes of the process once its libraries were imported.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec, self.folder = spec, Path(spec["folder"])
        self.runs: dict[str, Callable[[int], None]] = {}
        self.at_start = resident("VmRSS")

    @abc.abstractmethod
    def prepare(self) -> dict[str, Any]:
        """Makes the model, its first state and its batches; what there is to know of it."""

    @abc.abstractmethod
    def compile(self, program: str) -> None:
        """Makes `runs[program]`, so that nothing is left to compile; a first training step notes `first_loss`."""

    @property
    @abc.abstractmethod
    def device_peak(self) -> int:
        """The most bytes of the accelerator's memory in use so far; 0 on a CPU."""

    def ready(self, program: str) -> dict[str, Any]:
        start = time.perf_counter()
        self.compile(program)
        return {"compile_seconds": time.perf_counter() - start}

    def turn(self, program: str, calls: int) -> dict[str, Any]:
        """Seconds of a call, wall and CPU, and the most memory meanwhile.

        One call before is not counted: it brings back what other sides pushed out of the caches. One that takes a
        turn by itself is long enough not to need it.
        """
        run = self.runs[program]
        if calls > 1:
            run(1)
        _forget_peak()
        cpu, start = cpu_seconds(), time.perf_counter()
        run(calls)
        wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        peak = self.device_peak or resident("VmHWM") - self.at_start
        return {"wall": wall / calls, "cpu": cpu / calls, "peak": peak}


def resident(entry: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM), as Linux counts them; 0 elsewhere."""
    try:
        lines: Sequence[str] = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(entry)), 0)


def _forget_peak() -> None:
    """Lets VmHWM begin at what is in memory now (man 5 proc, clear_refs)."""
    if os.path.exists("/proc/self/clear_refs"):
        Path("/proc/self/clear_refs").write_text("5")
