"""Shows plans: a table for the terminal, JSON, and a figure."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlperf_jax.planning.plan import SCHEMA_VERSION, Plan
from mlperf_jax.planning.topology import Topology

_PARTS = ("parameters", "optimizer", "frozen", "cache", "other_state", "batch", "activations", "code")
"""Of a device's memory, as `Plan.hbm` calls them."""


def describe(plan: Plan, where: Topology, unit: str) -> str:
    """Everything about one strategy, in lines for people."""
    mesh = ",".join(f"{axis}:{size}" for axis, size in plan.mesh.items())
    of = f", {plan.program}," if plan.program else ""
    lines = [f"{plan.strategy}{of} on {where.name} (mesh {mesh}): {plan.verdict}"]
    if plan.reason:
        lines.append(f"  {plan.reason}")
    lines += _memory(plan, where)
    lines += _flops(plan)
    if plan.predicted:
        lines += _collectives(plan) + _times(plan, unit) + _operations(plan)
    elif plan.roofline:
        lines.append(
            f"  compute at its peak    {seconds(plan.roofline['compute'])} a step; "
            "without the compiler that is all that can be said of time"
        )
    lines += _replicated(plan)
    if plan.repeated:
        lines.append(f"  repeated work          {plan.repeated}")
    return "\n".join(lines)


def telling(plan: Plan) -> str:
    """What the programs of a model that answers token by token come to together."""
    found = plan.telling
    if not found:
        return f"{plan.strategy}: a program does not fit, so nothing is told"
    return (
        f"{plan.strategy}: prompts of {found['prompt']:,} tokens and answers of {found['answer']:,}, {found['slots']} slots: "
        f"{seconds(found['reading'])} to read a prompt, {seconds(found['step'])} a step; "
        f"{found['tokens_per_s']:,.0f} tokens/s, {found['tokens_per_s_per_chip']:,.0f} a chip; "
        f"there is room for {found['most_slots']:,} slots"
    )


def _memory(plan: Plan, where: Topology) -> list[str]:
    hbm = plan.hbm
    parts = ", ".join(f"{name.replace('_', ' ')} {size(hbm[name])}" for name in _PARTS if name in hbm)
    lines = [f"  HBM per device         {parts}"]
    if "total" in hbm:
        share = hbm["total"] / hbm["capacity"]
        lines.append(
            f"                         total {size(hbm['total'])} of {size(hbm['capacity'])} ({share:.0%})"
        )
    if where.chip.devices > 1:
        lines.append(f"                         ({where.chip.devices} devices a chip)")
    return lines


def _flops(plan: Plan) -> list[str]:
    flops = plan.flops
    text = f"model {_count(flops['model'])}, in the program {_count(flops['program'])}"
    if flops["program"] and "executed" in flops:
        text += f", executed {_count(flops['executed'])} ({flops['executed'] / flops['program']:.2f}x)"
    text += f", rematerialised {_count(flops['rematerialised'])}"
    return [f"  FLOPs per device       {text}"]


def _collectives(plan: Plan) -> list[str]:
    lines = [
        f"  {row['kind']:<22} over {'+'.join(row['axes']) or 'nothing'} ({row['group']} devices): "
        f"{row['count']} a step, {size(row['bytes'])}, {seconds(row['seconds'])} at best"
        for row in plan.collectives
    ]
    return lines or ["  collectives            none"]


def _rate(per_second: float) -> str:
    """Whole numbers, but two figures of a small one: a large model has less than a row a second and chip."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def _times(plan: Plan, unit: str) -> list[str]:
    roofline, predicted = plan.roofline, plan.predicted
    lines = [
        f"  roofline               compute {seconds(roofline['compute'])}, HBM {seconds(roofline['hbm'])}, "
        f"network {seconds(roofline['network'])}: bound by {roofline['bound']}, "
        f"MFU at most {predicted['mfu_bound']:.1%}",
        f"  predicted step         {seconds(predicted['step'])}, {seconds(predicted['waiting'])} of it waiting "
        f"for the network; {_rate(predicted['throughput'])} {unit}/s, "
        f"{_rate(predicted['throughput_per_chip'])} a chip, MFU {predicted['mfu']:.1%}",
    ]
    if training := plan.training:
        lines.append(
            f"  time to train          {training['total_minutes']:.2f} min: {training['epochs']:.2f} epochs, "
            f"{training['steps']:,} steps {training['minutes']:.2f} min, {training['evaluations']} evaluations "
            f"about {training['evaluation_minutes']:.2f} min ({training['source']})"
        )
    if loops := plan.compiler.get("unknown_loops"):
        lines.append(f"  loops of unknown length, counted once: {', '.join(loops)}")
    if usual := plan.compiler.get("usual_loops"):
        said = ", ".join(f"{name} {times}" for name, times in usual.items())
        lines.append(f"  loops that data end, counted as often as they usually run: {said}")
    return lines


def _operations(plan: Plan) -> list[str]:
    lines = ["  dearest operations"]
    for row in plan.operations[:6]:
        times = f" x{row['times']}" if row["times"] > 1 else ""
        lines.append(
            f"    {row['share']:>6.1%} {seconds(row['seconds']):>9}{times}  {row['opcode']:<12} "
            f"{row['source'] or row['name']}"
        )
    return lines


def _replicated(plan: Plan) -> list[str]:
    if not plan.replicated:
        return []
    total, first = sum(row["bytes"] for row in plan.replicated), plan.replicated[0]
    return [
        f"  stayed whole           {len(plan.replicated)} tensors, {size(total)} on every device; "
        f"the largest {first['name']} {tuple(first['shape'])}, {size(first['bytes'])}"
    ]


def size(count: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _count(number: float) -> str:
    for letter in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{letter and ' '}{letter}"
        number /= 1000
    return f"{number:,.4g} T"


def seconds(time: float) -> str:
    """Seconds for people."""
    if time >= 1:
        return f"{time:.2f} s"
    return f"{time * 1e3:.2f} ms" if time >= 1e-4 or not time else f"{time * 1e6:.1f} us"


def table(plans: Sequence[Plan]) -> str:
    """One row per strategy, to compare them."""
    header = ("strategy", "verdict", "HBM/device", "of", "step", "throughput", "MFU", "bound by", "to train")
    rows = [header]
    for plan in plans:
        p = plan.predicted
        rows.append(
            (
                f"{plan.strategy} {plan.program}".strip(),
                plan.verdict,
                size(plan.hbm["total"]) if "total" in plan.hbm else "-",
                size(plan.hbm["capacity"]),
                seconds(p["step"]) if p else "-",
                f"{p['throughput']:,.0f}/s" if p else "-",
                f"{p['mfu']:.1%}" if p else "-",
                plan.roofline.get("bound", "-") if p else "-",
                f"{plan.training['total_minutes']:.2f} min" if plan.training else "-",
            )
        )
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text, every column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def record(plans: Sequence[Plan], where: Topology, facts: dict[str, Any]) -> dict[str, Any]:
    """What is saved: the topology, the chip's figures with their source, `facts` and every plan."""
    chip = dataclasses.asdict(where.chip)
    del chip["target_config"], chip["kinds"]
    return {
        "schema_version": SCHEMA_VERSION,
        "what": "prediction for devices that are not there; not measured",
        "topology": {
            "name": where.name,
            "chips": where.num_chips,
            "devices": where.num_devices,
            "chip": chip,
        },
        **facts,
        "plans": [dataclasses.asdict(plan) for plan in plans],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    os.replace(file.name, path)


def write_figure(path: Path, plans: Sequence[Plan], title: str) -> None:
    """Draws HBM by kind, and the times of roofline and prediction, for every strategy (SVG or PNG)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    memory, times = figure.subplots(1, 2)
    names = [f"{plan.strategy} {plan.program}".strip() for plan in plans]
    bottom = [0.0] * len(plans)
    for part in _PARTS:
        values = [plan.hbm.get(part, 0.0) / 2**30 for plan in plans]
        memory.bar(names, values, bottom=bottom, label=part.replace("_", " "))
        bottom = [b + v for b, v in zip(bottom, values, strict=True)]
    capacity = plans[0].hbm["capacity"] / 2**30
    memory.axhline(capacity, color="black", linestyle="--", linewidth=1, label="capacity")
    for i, plan in enumerate(plans):
        if plan.verdict != "fits":
            memory.text(i, bottom[i], plan.verdict, ha="center", va="bottom")
    memory.set_ylabel("GiB per device")
    memory.legend(fontsize="small")
    bars = ("compute", "hbm", "network", "predicted")
    for n, bar in enumerate(bars):
        values = [
            (p.predicted.get("step", 0.0) if bar == "predicted" else p.roofline.get(bar, 0.0)) * 1e3
            for p in plans
        ]
        places = [i + (n - 1.5) * 0.2 for i in range(len(plans))]
        times.bar(places, values, width=0.2, label=bar if bar == "predicted" else f"roofline: {bar}")
    times.set_xticks(range(len(plans)), names)
    times.set_ylabel("ms per step")
    times.legend(fontsize="small")
    figure.suptitle(title)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a matplotlib figure atomically, in the format that the path's suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=path.suffix, delete=False) as file:
        figure.savefig(file.name)
    os.replace(file.name, path)
