"""How programs that are served are compiled."""

from __future__ import annotations

import jax

from mlperf_jax.parallel.layout import Layout

_LITTLE = 1e7
"""FLOPs of a program that a CPU's core has done in a fraction of a millisecond."""


def compile_served(lowered: jax.stages.Lowered, layout: Layout | None) -> jax.stages.Compiled:
    """Compiles for a layout, None for one device of any kind."""
    return lowered.compile(compiler_options=compiler_options(lowered, layout) if layout else None)


def compiler_options(lowered: jax.stages.Lowered, layout: Layout) -> dict[str, str | bool]:
    """XLA's for a program that is served.

    XLA:CPU gives whatever reads much memory to several threads, and takes all of a table for read where a few rows are
    gathered. To wake them takes longer than little work does (benchmarks/NOTES.md, "Serving").
    """
    options: dict[str, str | bool] = {**layout.compiler_options}
    if layout.mesh.devices.flat[0].platform == "cpu":
        cost = lowered.cost_analysis()
        if cost and cost.get("flops", _LITTLE) < _LITTLE:
            options["xla_disable_hlo_passes"] = "cpu-parallel-task-assigner"
    return options
