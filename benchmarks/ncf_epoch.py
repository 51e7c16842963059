"""What an epoch of NCF costs at MovieLens-20M's size, on made-up ratings: the host's part beside the step.

    python -m benchmarks.ncf_epoch --out=benchmarks/ncf_epoch.json

The host's part is measured as the loop has it: batches of positions from `train_batches`, one after the other. The
step is that of the closed model on the device that is there, at two sizes of a batch, and once more without the
model: making examples alone. Medians of rounds, with the CPU time that each took.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

import input_pipelines
from benchmarks import records
from input_pipelines.ratings import movielens_20m
from mlperf_jax import making
from mlperf_jax.parallel import mesh
from mlperf_jax.training.engine import Engine
from mlperf_jax.workload import TrainedWorkload

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Holds the made-up set; by default a temporary folder.")
_RATINGS = flags.DEFINE_integer("ratings", movielens_20m.RATINGS, "Made-up ratings.")
_BATCHES = flags.DEFINE_multi_integer("batch", [2048, 65536], "Examples of a batch.")
_EXAMPLES = flags.DEFINE_integer("examples", 1 << 18, "Trained on in a round.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often each is measured.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def timed(run: Callable[[], None], examples: int) -> dict[str, Any]:
    """Examples a second of `run`, by the clock and by CPU time, in the median of rounds."""
    rates = []
    for _ in range(_ROUNDS.value):
        began, cpu = time.perf_counter(), time.process_time()
        run()
        rates.append((examples / (time.perf_counter() - began), examples / (time.process_time() - cpu)))
    clock, cpu_rates = zip(*rates, strict=True)
    return {
        "examples_per_second": statistics.median(clock),
        "examples_per_cpu_second": statistics.median(cpu_rates),
    }


def measure(data_dir: Path, batch_size: int) -> dict[str, Any]:
    """Rates of feeding, of making examples and of whole steps at one size of a batch."""
    changes = [f"--config.data.fake={_RATINGS.value}", f"--config.batch_size={batch_size}"]
    recipe = making.choose("ncf", "closed", "cpu", changes, kind=TrainedWorkload)
    workload: Any = recipe.make(data_dir)
    engine = Engine(workload, mesh.single_device_layout())
    engine.compile("init", "train_step")
    state = engine.init(1)
    steps = max(_EXAMPLES.value // batch_size, 1)
    drawn = jax.jit(workload.examples)
    batches = [workload.dataset.read_train(i * batch_size, (i + 1) * batch_size, 1) for i in range(steps)]
    placed = [engine.place(batch, engine.batch) for batch in batches]
    whole = {name: state[name] for name in ("interactions", "seed")}

    def feed(count: int) -> None:
        with contextlib.closing(
            workload.dataset.train_batches(
                seed=1, batch_size=batch_size, start_step=0, rows=slice(0, batch_size)
            )
        ) as read:
            for _ in itertools.islice(read, count):
                pass

    def make_examples() -> None:
        for batch in placed:
            jax.block_until_ready(drawn(whole, batch))

    def train() -> None:
        nonlocal state
        for batch in placed:
            state, _ = engine.train(state, batch, steps=1)
        jax.block_until_ready(state)

    make_examples()
    fed = 20 * steps
    return {
        "batch": batch_size,
        "host": timed(lambda: feed(fed), fed * batch_size),
        "examples_made": timed(make_examples, steps * batch_size),
        "step": timed(train, steps * batch_size),
        "fed_bytes_per_example": 8,
        "state_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        "choices_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state["interactions"])),
    }


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = Path(_DATA_DIR.value or scratch)
        began = time.process_time()
        print(input_pipelines.prepare("movielens_20m", data_dir, fake=_RATINGS.value))
        prepared = time.process_time() - began
        found = [measure(data_dir, batch_size) for batch_size in _BATCHES.value]
    record = {
        "schema_version": 1,
        "command": records.command("ncf_epoch"),
        "machine": records.machine_in_words(),
        **records.machine(),
        "versions": records.versions("jax", "numpy"),
        "device": jax.devices()[0].device_kind,
        "prepare_cpu_seconds": prepared,
        "measured": found,
        "peak_resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    records.show(record, indent=1)
    records.write(_OUT.value, record)


if __name__ == "__main__":
    sys.exit(app.run(main))
