"""The training run, told from `run_start` to `run_stop`.

The loop knows no workload: it asks for the batches of a block, dispatches steps, evaluates, and
stops at the target. On the host a step costs one call of a compiled function: the next batch is
placed while the devices work, and losses are looked at some steps later, when they are there anyway.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np

from mlperf_jax.errors import Stopped
from mlperf_jax.results import events
from mlperf_jax.training.checkpoints import Checkpoints, Position
from mlperf_jax.training.engine import Engine
from mlperf_jax.training.profile import Profile
from mlperf_jax.training.progress import Progress
from mlperf_jax.training.stop import StopSignal
from mlperf_jax.workload import Batch, Block, State


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: "success" where the target was reached, else "aborted".
        quality: of the last evaluation, nan if there was none.
        state: the trained state; None where a loss was not finite, since nothing is left to keep.
        step: steps done; where a loss was not finite, that step, counted from 1.
        reason: why it was aborted, "" on success.
    """

    status: str
    quality: float
    state: State | None
    step: int
    reason: str = ""


class NotFinite(Exception):
    """The loss of a step is NaN or infinite."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss of step {step} is {loss}")
        self.step, self.loss = step, loss


@dataclasses.dataclass
class Session:
    """What a run works with, so that its functions take one argument for it.

    Attributes:
        engine: the compiled workload.
        log: the MLPerf log.
        progress: what people see.
        checkpoints: None where nothing is to be kept.
        stop: whether the run was asked to stop.
        profile: the optional trace.
    """

    engine: Engine
    log: events.NullLog
    progress: Progress
    checkpoints: Checkpoints | None
    stop: StopSignal
    profile: Profile

    def save(self, state: State, step: int) -> None:
        """Saves a checkpoint in the background."""
        if self.checkpoints is None:
            return
        workload = self.engine.workload
        epoch, example = divmod(step * workload.batch_size, workload.num_train)
        self.checkpoints.save(state, Position(step, epoch, example, self.log.position()))

    def stop_here(self, state: State, step: int) -> NoReturn:
        """Saves a checkpoint and ends the run."""
        self.save(state, step)
        raise Stopped(f"Stopped at step {step}; the same command continues from there.", self.stop.status)


def train(session: Session, state: State, step: int) -> Outcome:
    """Trains from `step` to the target or to the last block.

    Args:
        session: what the run works with.
        state: at `step`; its memory is taken over.
        step: steps done already: 0, or where a checkpoint stands.

    Raises:
        Stopped: the run was asked to stop and has saved a checkpoint.
    """
    workload, log = session.engine.workload, session.log
    quality, first = math.nan, step
    try:
        for block in workload.blocks():
            if block.stop <= step:
                continue
            # Not before the first step: a start that saves nothing would leave no mark in the log.
            if step > first and session.stop.requested():
                session.stop_here(state, step)
            span = events.block_metadata(block.first_epoch + 1, block.epochs)
            if step <= block.start:
                log.start("block_start", metadata=span)
            state = _train_block(session, state, block, max(step, block.start))
            log.end("block_stop", metadata=span)
            step = block.stop
            quality = _evaluate(session, state, step)
            if quality >= workload.target:
                return Outcome("success", quality, state, step)
            session.save(state, step)
    except NotFinite as error:
        return Outcome("aborted", quality, None, error.step, str(error))
    return Outcome("aborted", quality, state, step, f"the target {workload.target} was not reached")


def _train_block(session: Session, state: State, block: Block, start: int) -> State:
    """The steps of a block; every loss is looked at before it ends."""
    engine = session.engine
    begin, waited = time.perf_counter(), 0.0
    state, batches = engine.workload.data(engine, state, block, start)
    pending: collections.deque[tuple[int, jax.Array]] = collections.deque()
    step = start
    for count, batch, wait in _dispatches(engine, batches, block.stop - start):
        session.profile.at(step)
        state, metrics = engine.train(state, batch, steps=count)
        step += count
        waited += wait
        pending.append((step, metrics["loss"]))
        while len(pending) > _IN_FLIGHT[engine.layout.mesh.devices.flat[0].platform]:
            _look(session.progress, *pending.popleft())
        if step < block.stop and session.stop.requested():
            while pending:
                _look(session.progress, *pending.popleft())
            session.stop_here(state, step)
    while pending:
        _look(session.progress, *pending.popleft())
    seconds = time.perf_counter() - begin
    samples = (block.stop - start) * engine.workload.batch_size
    events.log_stats(session.log, step=step, samples=samples, seconds=seconds, input_seconds=waited)
    return state


# Dispatches that may be under way at once. More than two hide no latency on a CPU, and its virtual
# devices share threads: many collectives in flight could wait for each other.
_IN_FLIGHT = {"cpu": 1, "gpu": 16, "tpu": 16}


def _dispatches(engine: Engine, batches: Iterator[Batch], steps: int) -> Iterator[tuple[int, Batch, float]]:
    """Groups host batches by dispatch and places them; the devices work on the last one meanwhile.

    Yields:
        How many steps it is, the batch on the devices (stacked for several steps), and the seconds
        spent waiting for input.
    """
    while steps:
        begin = time.perf_counter()
        count = engine.steps_per_dispatch if steps >= engine.steps_per_dispatch else 1
        group = list(itertools.islice(batches, count))
        if len(group) < count:
            raise ValueError(f"the data phase ended {steps - len(group)} batches short of its block")
        steps -= count
        if count == 1:
            placed = engine.place(group[0], engine.batch)
        else:
            placed = engine.place(jax.tree.map(lambda *rows: np.stack(rows), *group), engine.batches)
        yield count, placed, time.perf_counter() - begin


def _look(progress: Progress, step: int, losses: jax.Array) -> None:
    """Reads the losses of a finished dispatch that ended with `step`.

    Raises:
        NotFinite: one of them is NaN or infinite.
    """
    values = np.atleast_1d(jax.device_get(losses))
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise NotFinite(step - values.size + int(bad[0]) + 1, float(values[bad[0]]))
    progress.step(step, float(values[-1]))


def _evaluate(session: Session, state: State, step: int) -> float:
    """Measures the state and logs it; returns the quality."""
    workload = session.engine.workload
    done = events.eval_metadata(workload.eval_epoch(step))
    session.log.start("eval_start", metadata=done)
    result = workload.evaluate(session.engine, state)
    quality = float(result["quality"])
    session.log.event("eval_accuracy", quality, metadata=done)
    session.log.end("eval_stop", metadata=done)
    session.progress.evaluated(step, quality, result)
    return quality
