"""Input pipelines beside bare decoding, and beside what the train step consumes."""

from __future__ import annotations

from typing import Any

from benchmarks.speed import measure
from benchmarks.speed.parts import Run
from benchmarks.speed.reading import BARE, PIPELINE
from benchmarks.speed.side import TRAIN

_SOURCES: dict[str, tuple[str, str, int, list[str]]] = {
    "resnet50 (closed)": ("resnet50", "closed", 256, ["--config.batch_size=64"]),
    "ssd_resnet34 (closed)": ("ssd_resnet34", "closed", 128, ["--config.batch_size=32"]),
    "dlrm (closed)": ("dlrm", "closed", 200_000, []),
    "llama31_8b (closed)": ("llama31_8b", "closed", 64, []),
    "resnet50 (mini)": ("resnet50", "mini", 0, []),
    "ssd_resnet34 (mini)": ("ssd_resnet34", "mini", 0, []),
    "dlrm (mini)": ("dlrm", "mini", 0, []),
    "llama31_8b (mini)": ("llama31_8b", "mini", 0, []),
}
"""Workload, preset, made-up train images (pairs, examples) of closed sets, and what a batch is at this size."""

CASES = list(_SOURCES)


def measure_case(case: str, run: Run) -> dict[str, Any]:
    """Seconds of a batch: of the pipeline and of bare decoding, in one thread; of the train step, where it can run here.

    Raises:
        Failed: a side cannot be measured.
    """
    workload, preset, fake, overrides = _SOURCES[case]
    spec = run.spec | {
        "workload": workload,
        "preset": preset,
        "fake": fake,
        "overrides": [*overrides, *run.spec["overrides"]],
    }
    sides = ["reading"] if fake else ["reading", "training"]
    with (
        measure.folders(sides) as folders,
        measure.workers({s: spec | {"side": s, "folder": folders[s]} for s in sides}) as workers,
    ):
        run.say("making its data")
        facts = workers["reading"].ask("prepare")
        workers["reading"].ask("ready", program=PIPELINE)
        programs = {name: (workers["reading"], name) for name in (PIPELINE, BARE)}
        if not fake:
            run.say("compiling its train step")
            workers["training"].ask("prepare")
            workers["training"].ask("ready", program=TRAIN)
            programs["step"] = (workers["training"], TRAIN)
        found = measure.in_turns(programs, rounds=run.rounds, seconds=run.seconds, say=run.say)
    return facts | {"programs": found}
