"""loadgen_py beside the official LoadGen, with a system under test that does nothing: `benchmarks.loadgen_speed`, fewer repeats."""

from __future__ import annotations

from typing import Any

from benchmarks import loadgen_speed
from benchmarks.speed import measure
from benchmarks.speed.parts import Run

CASES = [name for name in loadgen_speed.MEASUREMENTS if name != "server_peak"]  # that takes minutes


def measure_case(case: str, run: Run) -> dict[str, Any]:
    """Of each figure and variant the quartiles over interleaved rounds, each in a process of its own."""
    variants = loadgen_speed.MEASUREMENTS[case][1]
    rounds: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for index in range(run.rounds):
        for variant in variants:
            run.say(f"round {index + 1} of {run.rounds}, {variant}")
            rounds[variant].append(loadgen_speed.once(case, variant))
    return {
        "figures": {
            figure: {
                variant: measure.told([found[figure] for found in those]) for variant, those in rounds.items()
            }
            for figure in rounds[variants[0]][0]
        }
    }
