"""Runs sharding strategies side by side on the devices that are there: what `mlperf_jax.compare` does.

First every strategy makes one step from the same state on the same batch, and must agree with the
first one (dp): fp32 runs of two layouts part by themselves after a few steps, so only the first step
says whether a layout computes the same thing. Then all are timed in turns, a few steps each, so that
what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.parallel import mesh, unsplit
from mlperf_jax.parallel.chips import Chip, find_chip
from mlperf_jax.parallel.layout import Strategy
from mlperf_jax.planning import compilation, cost_network, cost_time, hlo
from mlperf_jax.planning.topology import Topology
from mlperf_jax.training.engine import Engine
from mlperf_jax.workload import Bucketed, State, TrainedWorkload

STEPS_PER_TURN = 5
WARM_UP_STEPS = 2
MOST_IDLE_STEPS = 4
"""Steps with a learning rate of zero that a schedule may begin with."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far the first step may be from dp's, relative: the loss, and the gradients as a whole."""

    loss: float
    gradient: float


TOLERANCES = {"float64": Tolerance(1e-9, 1e-9), "float32": Tolerance(1e-5, 1e-4)}


@dataclasses.dataclass
class Measured:
    """What was measured of one strategy.

    Attributes:
        strategy, mesh: its name, and the size of every mesh axis.
        agreement: relative differences of the first step from dp's, `loss` and `gradient`, and `passed`.
        step_seconds: `median`, `low` and `high` quartile, `turns`; of a step, input not counted.
        throughput: examples/s at the median.
        memory: bytes per device: `state` from the shardings, `arguments`, `temporaries` and `total` from the
            compiler, `peak` where the device counts it.
        collectives: rows as in a plan.
        repeated: work that devices repeat, in one sentence; "" for none.
        loss: after the first and after the last step.
        loss_difference: of the last step's from dp's, relative.
        predicted_step: seconds, from the compiled program and the chip's peaks.
        compile_seconds: of the train step.
    """

    strategy: str
    mesh: dict[str, int]
    agreement: dict[str, Any] = dataclasses.field(default_factory=dict)
    step_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    throughput: float = 0.0
    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    collectives: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    repeated: str = ""
    loss: dict[str, float] = dataclasses.field(default_factory=dict)
    loss_difference: float = 0.0
    predicted_step: float | None = None
    compile_seconds: float = 0.0


class _Runner:
    """A strategy with its compiled programs, its state and its copy of the batch."""

    def __init__(self, workload: TrainedWorkload, strategy: Strategy, asked_mesh: dict[str, int]) -> None:
        layout = mesh.make_layout(strategy, asked_mesh)
        self.engine = Engine(workload, layout)
        self.engine.compile("init", "train_step")
        self.state: State = {}
        self.batch: Any = None
        self.bucket = ""
        self.losses: list[Any] = []
        self.turns: list[float] = []

    def start(self, seed: int, batch: Bucketed) -> None:
        """Begins at the first step, with the batch whose rows of this process are `batch`."""
        self.state = self.engine.init(seed)
        self.bucket = batch.bucket
        self.batch = self.engine.place(batch.batch, self.engine.buckets[batch.bucket])

    def step(self) -> None:
        self.state, metrics = self.engine.train(self.state, self.batch, steps=1, bucket=self.bucket)
        self.losses.append(metrics["loss"])

    def turn(self, steps: int) -> None:
        """Times a few steps as one."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        jax.block_until_ready(self.state)
        self.turns.append((time.perf_counter() - start) / steps)


def compare(
    workload: TrainedWorkload,
    check: TrainedWorkload | None,
    strategies: Sequence[Strategy],
    *,
    steps: int,
    seed: int = 0,
    asked: Sequence[dict[str, int]] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Measured]:
    """Measures strategies, dp first.

    Args:
        workload: what to run.
        check: the same in fp32 or float64, where `workload`'s own precision is too coarse to tell a
            wrong layout from rounding; None where it is not.
        strategies: the first is what the others are held against.
        steps: timed steps of each.
        seed: of the parameters and the batch.
        asked: sizes of mesh axes for each strategy.
        say: is told what is going on.

    Several processes call this together; each measures, and all come to the same verdicts.
    """
    asked = asked or [{}] * len(strategies)
    runners, results = [], []
    for strategy, sizes in zip(strategies, asked, strict=True):
        say(f"compiling {strategy.name}")
        runner = _Runner(workload, strategy, sizes)
        runners.append(runner)
        results.append(Measured(strategy.name, dict(runner.engine.layout.mesh.shape)))
    batches = _first_batches(runners, seed)
    _agree(results, runners, check, batches, seed, asked, say)
    for runner, batch in zip(runners, batches, strict=True):
        runner.start(seed, batch)
        for _ in range(WARM_UP_STEPS):
            runner.step()
        jax.block_until_ready(runner.state)
    done = 0
    while done < steps:
        turn = min(STEPS_PER_TURN, steps - done)
        say(f"timing, step {done + turn} of {steps}")
        for runner in runners:
            runner.turn(turn)
        done += turn
    here = _topology()
    for result, runner in zip(results, runners, strict=True):
        _fill(result, runner, workload, here)
    for result in results:
        result.loss_difference = _relative(result.loss["last"], results[0].loss["last"])
    return results


def _first_batches(runners: list[_Runner], seed: int) -> list[Any]:
    """The first batch for each strategy: of several processes each has the rows that its devices hold."""
    made: dict[tuple[int, int], Any] = {}
    batches = []
    for runner in runners:
        rows = runner.engine.rows.start, runner.engine.rows.stop
        if rows not in made:
            made[rows] = first_batch(runner.engine, seed)
        batches.append(made[rows])
    return batches


def first_batch(engine: Engine, seed: int) -> Bucketed:
    """This process's rows of the first global batch of a run, as numpy arrays, and its bucket."""
    workload = engine.workload
    state = {"seed": np.uint32(seed), "step": np.int32(0)}
    _, batches = workload.data(engine, state, next(iter(workload.blocks())), 0)
    batch = next(batches)
    return batch if isinstance(batch, Bucketed) else Bucketed("", batch)


def _agree(
    results: list[Measured],
    runners: list[_Runner],
    check: TrainedWorkload | None,
    batches: list[Any],
    seed: int,
    asked: Sequence[dict[str, int]],
    say: Callable[[str], None],
) -> None:
    reference = None
    for result, runner, batch, sizes in zip(results, runners, batches, asked, strict=True):
        say(f"checking the first step of {result.strategy}")
        checked = _Runner(check, runner.engine.layout.strategy, sizes) if check else runner
        loss, changes = first_step(checked.engine, seed, batch)
        reference = reference or (loss, changes)
        tolerance = TOLERANCES["float64" if checked.engine.workload.policy.needs_x64 else "float32"]
        difference = {"loss": _relative(loss, reference[0]), "gradient": _distance(changes, reference[1])}
        passed = difference["loss"] <= tolerance.loss and difference["gradient"] <= tolerance.gradient
        result.agreement = difference | {"passed": passed, "allowed": dataclasses.asdict(tolerance)}


def first_step(engine: Engine, seed: int, batch: Bucketed) -> tuple[float, list[np.ndarray]]:
    """The loss of the first step from the seed, and what the first step that changes anything changes.

    That is what the optimizer's state, which starts at zero, takes up of the gradients; for an optimizer
    without any it is the parameters. A schedule that starts at zero changes neither in its first step,
    so the next one, from the same parameters, says as much.
    """
    state = engine.init(seed)
    placed = engine.place(batch.batch, engine.buckets[batch.bucket])
    before = _floats(state)
    loss = None
    for _ in range(MOST_IDLE_STEPS + 1):
        state, metrics = engine.train(state, placed, steps=1, bucket=batch.bucket)
        loss = float(metrics["loss"]) if loss is None else loss
        after = _floats(state)
        for part in ("opt_state", "params"):
            changes = [a - b for a, b in zip(after[part], before[part], strict=True)]
            if any(np.any(change) for change in changes):
                return loss, changes
    raise UserError(
        f"The first {MOST_IDLE_STEPS + 1} steps change no parameter, so there is nothing to compare."
    )


def _floats(state: State) -> dict[str, list[np.ndarray]]:
    return {
        part: [
            np.array(_whole(x), np.float64)
            for x in jax.tree.leaves(state.get(part, {}))
            if np.issubdtype(x.dtype, np.floating)
        ]
        for part in ("opt_state", "params")
    }


def _whole(x: jax.Array) -> np.ndarray:
    """An array with the parts that other processes hold."""
    if x.is_fully_addressable:
        return jax.device_get(x)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)


def _distance(mine: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """Of two lists of arrays as one long vector each, relative to the second."""
    apart = sum(float(np.sum(np.square(a - b))) for a, b in zip(mine, reference, strict=True))
    length = sum(float(np.sum(np.square(b))) for b in reference)
    return float(np.sqrt(apart / length)) if length else float(np.sqrt(apart))


def _relative(mine: float, reference: float) -> float:
    return abs(mine - reference) / abs(reference) if reference else abs(mine)


def _fill(result: Measured, runner: _Runner, workload: TrainedWorkload, here: Topology) -> None:
    """Sums up what was measured, and what the compiled program says."""
    turns = sorted(runner.turns)
    median = statistics.median(turns)
    quarters = statistics.quantiles(turns, n=4) if len(turns) > 1 else (median, median, median)
    result.step_seconds = {"median": median, "low": quarters[0], "high": quarters[2], "turns": len(turns)}
    result.throughput = workload.batch_size / median
    result.loss = {"first": float(runner.losses[0]), "last": float(runner.losses[-1])}
    result.compile_seconds = runner.engine.compile_seconds["train_step"]
    text, memory = compilation.text_and_memory(runner.engine.compiled("train_step"))
    result.memory = {
        "state": sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(runner.state)),
        "arguments": memory.arguments,
        "temporaries": memory.temporaries,
        "total": memory.total - memory.code,
    }
    if peak := (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):
        result.memory["peak"] = peak
    module = hlo.parse(text)
    network = cost_network.Network(here, runner.engine.layout.mesh)
    collectives = cost_network.collectives(module, network)
    result.collectives = cost_network.by_kind_and_axis(collectives)
    result.repeated = unsplit.repeated(runner.engine.layout, runner.engine.state)
    result.predicted_step = cost_time.timeline(module, here.chip, collectives).seconds


def _topology() -> Topology:
    """The devices that are there, as a topology. A CPU's peaks are measured now."""
    devices = jax.devices()
    chip = find_chip(devices[0].device_kind) or _measure_chip(len(devices))
    if chip.platform == "tpu":
        shape = tuple(len(set(axis)) for axis in zip(*(d.coords for d in devices), strict=True))
    else:
        processes = jax.process_count()
        shape = (processes, len(devices) // processes)
    return Topology(f"{chip.name}:{'x'.join(map(str, shape))}", chip, shape)


def _measure_chip(devices: int) -> Chip:
    """What each of the devices reaches in matrix products and copies when all work at once.

    Virtual devices share the machine's cores, so their peaks are shares too.
    """
    line = jax.make_mesh((devices,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(line, jax.sharding.PartitionSpec("all"))
    n = 512
    a = jax.device_put(np.ones((devices, n, n), np.float32), split)
    product = _best_seconds(jax.jit(lambda x: x @ x), a)
    long = jax.device_put(np.ones((devices, 1 << 20), np.float32), split)
    copy = _best_seconds(jax.jit(lambda x: x + 1), long)
    return Chip(
        jax.devices()[0].device_kind,
        ("cpu",),
        bf16=2 * n**3 / product,
        hbm_bytes=0.0,
        hbm_bandwidth=2 * long.nbytes / devices / copy,
        source="measured here: fp32 matrix products and copies on all devices at once",
    )


def _best_seconds(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    jax.block_until_ready(function(x))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(x))
        times.append(time.perf_counter() - start)
    return min(times)
