"""What a train step takes against its size, and the exponents of power laws through that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks.speed import fits, measure
from benchmarks.speed.parts import Run
from benchmarks.speed.side import TRAIN, Spec


@dataclasses.dataclass(frozen=True)
class _Sweep:
    """Attributes:
    workload, preset: what is trained.
    variable: what grows, for people.
    values: of it.
    change: what a value changes of a worker's spec.
    """

    workload: str
    preset: str
    variable: str
    values: tuple[float, ...]
    change: Callable[[Any], Spec]


def _config(**keys: str) -> Callable[[Any], Spec]:
    """Config overrides from patterns of the value."""

    def change(value: Any) -> Spec:
        return {
            "overrides": [
                f"--config.{key.replace('__', '.')}={pattern.format(value)}" for key, pattern in keys.items()
            ]
        }

    return change


_SWEEPS = {
    "batch of resnet50": _Sweep(
        "resnet50", "mini", "batch", (16, 32, 64, 128, 256), _config(batch_size="{}")
    ),
    "batch of dlrm": _Sweep("dlrm", "mini", "batch", (256, 1024, 4096, 16384), _config(batch_size="{}")),
    "devices of resnet50": _Sweep(
        "resnet50", "mini", "devices", (1, 2), lambda count: {"devices": count, "overrides": []}
    ),
    "table rows of dlrm": _Sweep(
        "dlrm",
        "closed",
        "table rows",
        (1e-4, 1e-3, 4e-3, 1e-2),
        _config(
            data__table_fraction="{}",
            batch_size="2048",
            model__width="16",
            model__bottom="(64,32,16)",
            model__top="(128,64,1)",
            data__num_train="8192",
            evals_per_epoch="1",
        ),
    ),
    "length of llama31_8b": _Sweep(
        "llama31_8b",
        "mini",
        "tokens of a row",
        (128, 256, 512, 1024),
        _config(data__length="{}", batch_size="2", eval_batch_size="2"),
    ),
}

CASES = list(_SWEEPS)


def measure_case(case: str, run: Run) -> dict[str, Any]:
    """Seconds of a step by size, all sizes in turns; and the power laws of their wall and CPU time.

    Raises:
        Failed: one cannot be measured.
    """
    sweep = _SWEEPS[case]
    names = [str(value) for value in sweep.values]
    with (
        measure.folders(names) as folders,
        measure.workers(
            {
                name: _spec(sweep, value, run.spec) | {"folder": folders[name]}
                for name, value in zip(names, sweep.values, strict=True)
            }
        ) as workers,
    ):
        sizes = {}
        for name, value in zip(names, sweep.values, strict=True):
            run.say(f"compiling for {sweep.variable} {name}")
            workers[name].ask("prepare")
            workers[name].ask("ready", program=TRAIN)
            # Of fractions of tables it is the rows that are counted.
            rows = sweep.variable == "table rows"
            sizes[name] = workers[name].ask("table_rows")["table_rows"] if rows else value
        programs = {name: (worker, TRAIN) for name, worker in workers.items()}
        found = measure.in_turns(programs, rounds=run.rounds, seconds=run.seconds, say=run.say)
    points = [{"at": sizes[name], **found[name]} for name in names]
    return {
        "variable": sweep.variable,
        "preset": sweep.preset,
        "points": points,
        "fits": {figure: _fit(points, figure) for figure in ("wall", "cpu")},
    }


def _spec(sweep: _Sweep, value: float, base: Spec) -> Spec:
    change = sweep.change(value)
    own = {"side": "training", "workload": sweep.workload, "preset": sweep.preset}
    return base | own | change | {"overrides": [*change["overrides"], *base["overrides"]]}


def _fit(points: list[dict[str, Any]], figure: str) -> dict[str, float]:
    """Through all rounds of all sizes."""
    pairs = [(point["at"], seconds) for point in points for seconds in point[figure]["rounds"]]
    sizes, times = zip(*pairs, strict=True)
    return fits.power_law(sizes, times)
