"""Milliseconds of the host that one training step costs, with ResNet-50's tree of parameters.

    python benchmarks/python_cost.py --out=benchmarks/python_cost.json

ResNet-50's own topology and optimizer, with one channel instead of 64 and images of 32 pixels, so
that the tree (parameters, momentum, batch statistics) is the real one and there is next to nothing to
compute. Measured is what the training loop does for a step: placing a batch, calling the compiled
step, and looking at the loss of the step before. The device is waited for between the measurements.
`wall` is the time that passed, `thread` the CPU time of the thread that runs Python: on a machine
that is busy with other work only the second says what a step costs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

from mlperf_jax import config as configs
from mlperf_jax import platform as platforms

_PLATFORM = flags.DEFINE_enum("platform", "cpu", platforms.PLATFORMS, "Where to run it.")
_STEPS = flags.DEFINE_integer("steps", 500, "Steps that are measured.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

_BATCH, _SIZE = 2, 32


def build() -> Any:
    """The engine of ResNet-50 with one channel."""
    import numpy as np

    from input_pipelines.base import InMemoryDataset
    from mlperf_jax.parallel.mesh import single_device_layout
    from mlperf_jax.precision import resolve_policy
    from mlperf_jax.training.engine import Engine
    from mlperf_jax.workloads.image_classification import ResNet50

    class Thin(ResNet50):
        @functools.cached_property
        def dataset(self) -> InMemoryDataset:
            images, labels = np.zeros((64, _SIZE, _SIZE, 3), np.uint8), np.zeros(64, np.int32)
            examples: dict[str, np.ndarray] = {"image": images, "label": labels}
            return InMemoryDataset(examples, examples, fake=True, description="zeros")

    overrides = [f"batch_size={_BATCH}", f"eval_batch_size={_BATCH}", "model.width=1", "model.bn_span=0"]
    config = configs.resolve(
        configs.base_config("resnet50", "closed"),
        [
            f"--config.{override}"
            for override in (*overrides, f"model.image_size={_SIZE}", "model.num_classes=10")
        ],
    )
    policy = resolve_policy("auto", _PLATFORM.value)
    engine = Engine(Thin(config, policy, data_dir=Path()), single_device_layout())
    engine.compile()
    return engine


def measure(engine: Any, steps: int) -> dict[str, list[float]]:
    """Returns wall and thread milliseconds of each step."""
    import jax

    state = engine.init(0)
    batches = engine.workload.dataset.train_batches(seed=0, batch_size=_BATCH, start_step=0, rows=engine.rows)
    times: dict[str, list[float]] = {"wall": [], "thread": []}
    clocks: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "thread": time.thread_time}
    loss = None
    for _ in range(steps):
        batch = next(batches)
        began = {name: clock() for name, clock in clocks.items()}
        placed = engine.place(batch, engine.batch)
        state, metrics = engine.train(state, placed, steps=1)
        if loss is not None:
            float(loss)
        for name, clock in clocks.items():
            times[name].append(1e3 * (clock() - began[name]))
        loss = metrics["loss"]
        jax.block_until_ready((state, loss))
    batches.close()
    return times


def report(engine: Any, times: dict[str, list[float]]) -> dict[str, Any]:
    import jax

    from mlperf_jax.results import system

    def summary(values: list[float]) -> dict[str, float]:
        cuts = statistics.quantiles(values, n=10)
        return {"median": statistics.median(values), "p10": cuts[0], "p90": cuts[-1], "min": min(values)}

    leaves = {name: len(jax.tree.leaves(part)) for name, part in engine.state.items()}
    return {
        "schema_version": 1,
        "command": " ".join(["python", *sys.argv]),
        "machine": system.describe_devices(jax.devices())
        | {"cores": os.cpu_count(), "load_average_at_end": os.getloadavg(), "niceness": os.nice(0)},
        "versions": system.versions(),
        "policy": dataclasses.asdict(engine.workload.policy),
        "leaves": leaves,
        "steps": len(times["wall"]),
        "milliseconds_per_step": {name: summary(values) for name, values in times.items()},
    }


def main(argv: list[str]) -> None:
    platforms.configure(_PLATFORM.value)
    engine = build()
    measure(engine, 50)  # caches are filled
    result = report(engine, measure(engine, _STEPS.value))
    costs = result["milliseconds_per_step"]
    print(f"{sum(result['leaves'].values())} leaves, {result['steps']} steps: ", end="")
    print(
        ", ".join(
            f"{name} median {cost['median']:.2f} ms, min {cost['min']:.2f}" for name, cost in costs.items()
        )
    )
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
