"""Shows what `compare` measured: a table, JSON and one figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from mlperf_jax.planning.compare import STEPS_PER_TURN, Measured
from mlperf_jax.planning.plan_report import columns, save_figure, seconds, size, write_json
from mlperf_jax.workload import TrainedWorkload

SCHEMA_VERSION = 1
LEAST_TURNS = 4  # for quartiles


def facts(
    name: str, preset: str, workload: TrainedWorkload, steps: int, overrides: list[str]
) -> dict[str, Any]:
    """What was run, and on what."""
    device = jax.devices()[0]
    return {
        "workload": name,
        "preset": preset,
        "batch_size": workload.batch_size,
        "unit": workload.unit,
        "policy": dataclasses.asdict(workload.policy),
        "steps": steps,
        "overrides": overrides,
        "devices": {"platform": device.platform, "kind": device.device_kind, "count": len(jax.devices())},
        "jax": jax.__version__,
    }


def text(results: Sequence[Measured], about: dict[str, Any]) -> str:
    """A table for the terminal, a row per strategy, and each one's collectives under it."""
    devices = about["devices"]
    head = (
        f"{about['workload']} ({about['preset']}), synthetic data, global batch {about['batch_size']:,} on "
        f"{devices['count']} x {devices['kind']}; {about['steps']} steps each, in turns. "
        "Not reviewed by MLCommons."
    )
    rows = [
        ("strategy", "mesh", "step", "quartiles", f"{about['unit']}/s", "memory/device", "state/device")
        + ("predicted", "first loss", "gradients", "last loss", "agrees")
    ]
    for r in results:
        s = r.step_seconds
        rows.append(
            (
                r.strategy,
                ",".join(f"{axis}:{n}" for axis, n in r.mesh.items()),
                seconds(s["median"]),
                f"{seconds(s['low'])} to {seconds(s['high'])}" if has_quartiles(r) else "-",
                f"{r.throughput:,.0f}",
                size(r.memory["total"]),
                size(r.memory["state"]),
                seconds(r.predicted_step) if r.predicted_step else "-",
                f"{r.agreement['loss']:.1e}",
                f"{r.agreement['gradient']:.1e}",
                f"{r.loss_difference:.1e}",
                "yes" if r.agreement["passed"] else "NO",
            )
        )
    lines = [head, "", columns(rows), ""]
    if not all(map(has_quartiles, results)):
        enough = LEAST_TURNS * STEPS_PER_TURN
        lines.append(f"{about['steps']} steps are too few for quartiles; --steps={enough} has them.")
    lines.append("Differences from dp are relative. Collectives a step:")
    for r in results:
        sent = [
            f"{c['count']} {c['kind']} over {'+'.join(c['axes'])}, {size(c['bytes'])}" for c in r.collectives
        ]
        lines.append(f"  {r.strategy}: {'; '.join(sent) or 'none'}")
    lines += [f"Repeated by {r.strategy}: {r.repeated}" for r in results if r.repeated]
    return "\n".join(lines)


def has_quartiles(result: Measured) -> bool:
    """Whether there are turns enough for quartiles to say something."""
    return result.step_seconds["turns"] >= LEAST_TURNS


def write(folder: Path, results: Sequence[Measured], about: dict[str, Any]) -> None:
    """Writes compare.json and compare.svg."""
    content = {"schema_version": SCHEMA_VERSION, "what": "measured, synthetic data", **about}
    write_json(folder / "compare.json", content | {"strategies": [dataclasses.asdict(r) for r in results]})
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    times, memory = figure.subplots(1, 2)
    names = [r.strategy for r in results]
    places = range(len(results))
    middle = [r.step_seconds["median"] * 1e3 for r in results]
    spread = [
        [m - r.step_seconds["low"] * 1e3 for m, r in zip(middle, results, strict=True)],
        [r.step_seconds["high"] * 1e3 - m for m, r in zip(middle, results, strict=True)],
    ]
    known = all(map(has_quartiles, results))
    label = "measured, quartiles" if known else "measured"
    times.bar(
        [p - 0.2 for p in places], middle, width=0.4, yerr=spread if known else None, capsize=3, label=label
    )
    predicted = [(r.predicted_step or 0.0) * 1e3 for r in results]
    times.bar([p + 0.2 for p in places], predicted, width=0.4, label="predicted")
    times.set_xticks(list(places), names)
    times.set_ylabel("ms per step")
    times.legend(fontsize="small")
    for shift, part in ((-0.2, "state"), (0.2, "total")):
        memory.bar(
            [p + shift for p in places], [r.memory[part] / 2**20 for r in results], width=0.4, label=part
        )
    memory.set_xticks(list(places), names)
    memory.set_ylabel("MiB per device")
    memory.legend(fontsize="small")
    devices = about["devices"]
    where = f"{devices['count']} x {devices['kind']}"
    figure.suptitle(f"{about['workload']} ({about['preset']}), batch {about['batch_size']:,}, {where}")
    save_figure(figure, folder / "compare.svg")
