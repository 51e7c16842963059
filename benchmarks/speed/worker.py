"""A process that holds one side of a row and, while it waits for what to do, uses no CPU.

`python -m benchmarks.speed.worker SPEC` reads a JSON object a line, {"do": method, ...arguments}, and answers
each with another; what went wrong is an answer too, {"error": sentence}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

from benchmarks.speed.side import Side, cpu_seconds

_OURS = {
    "ours": ("ours", "Ours"),
    "training": ("training", "Training"),
    "reading": ("reading", "Reading"),
    "serving": ("serving", "Serving"),
}
"""Sides in jax: module and class. Any other is a peer."""


def main() -> None:
    spec = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    side: Side | None = None
    idle = cpu_seconds(), time.perf_counter()
    for line in sys.stdin:
        waited = {"wait_cpu": cpu_seconds() - idle[0], "wait_wall": time.perf_counter() - idle[1]}
        command = json.loads(line)
        try:
            side = side or _make(spec)
            answer: dict[str, Any] = getattr(side, command.pop("do"))(**command)
        except Exception as error:  # one program that fails must not end the others
            answer = {"error": _sentence(error)}
            print(f"{spec['side']}: {error!r}", file=sys.stderr, flush=True)
        print(json.dumps(answer | waited), file=answers, flush=True)
        idle = cpu_seconds(), time.perf_counter()


def _make(spec: dict[str, Any]) -> Side:
    from mlperf_jax import platform

    platform.keep_freed_memory()  # all sides alike: compared are computations, not who allocates how
    if spec["side"] in _OURS:
        platform.configure(spec["platform"], cpu_devices=spec.get("devices", 0))
        module, name = _OURS[spec["side"]]
        side: Side = getattr(importlib.import_module(f"benchmarks.speed.{module}"), name)(spec)
        return side
    os.environ["JAX_PLATFORMS"] = "cpu"  # our workload is asked for its numbers only
    from benchmarks.speed.torch_side import TorchSide

    return TorchSide(spec)


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


if __name__ == "__main__":
    main()
