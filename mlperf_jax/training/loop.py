"""The training run, told from `run_start` to `run_stop`.

The loop knows no workload: it asks for the batches of a block, dispatches steps, evaluates, and
stops at the target. On the host a step costs one call of a compiled function: the next batch is
placed while the devices work, and losses are looked at some steps later, when they are there anyway.

An evaluation may leave the host something to compute while training goes on (`Workload.evaluate`). Its
state is saved first, so that the run can end with it; at most one is under way, and none is lost: a
run that is told to stop waits for it, and one that is killed evaluates the saved state again.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import NoReturn

import jax
import numpy as np

from mlperf_jax.errors import Stopped
from mlperf_jax.goals import Goal, Quality, quality, reached
from mlperf_jax.results import events
from mlperf_jax.training.checkpoints import Checkpoints, Position
from mlperf_jax.training.engine import Engine
from mlperf_jax.training.profile import Profile
from mlperf_jax.training.progress import Progress
from mlperf_jax.training.stop import StopSignal
from mlperf_jax.workload import Batch, Block, Bucketed, Evaluation, Notes, State, TrainedWorkload


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: "success" where the goals were reached, else "aborted".
        quality: of the last evaluation, NaN if there was none.
        state: the trained state; None where a loss was not finite, since nothing is left to keep, and
            where the state that reached the target is the newest checkpoint and training had gone on.
        step: steps done by that state; where a loss was not finite, that step, counted from 1.
        reason: why it was aborted, "" on success.
    """

    status: str
    quality: Quality
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
        notes: the MLPerf log, and the folder beside it.
        progress: what people see.
        checkpoints: None where nothing is to be kept.
        stop: whether the run was asked to stop.
        profile: the optional trace.
        frozen: fingerprint of what no step changes, which checkpoints leave out.
    """

    engine: Engine
    notes: Notes
    progress: Progress
    checkpoints: Checkpoints | None
    stop: StopSignal
    profile: Profile
    frozen: str = ""

    def save(
        self, state: State, step: int, *, evaluated: bool = True, log_position: int | None = None
    ) -> None:
        """Saves a checkpoint in the background.

        Args:
            state: at `step`.
            step: global steps done.
            evaluated: False where an evaluation of this state is not yet in the log.
            log_position: bytes of the log that stand for what was done; by default all there are.
        """
        if self.checkpoints is None:
            return
        workload = self.engine.workload
        epoch, example = divmod(step * workload.batch_size, workload.num_train)
        logged = self.notes.log.position() if log_position is None else log_position
        position = Position(step, epoch, example, logged, evaluated, self.frozen)
        self.checkpoints.save(self.engine.saved(state), position)

    def stop_here(self, state: State, step: int) -> NoReturn:
        """Saves a checkpoint and ends the run, when it is on disk."""
        self.save(state, step)
        if self.checkpoints is not None:
            self.checkpoints.wait()
        raise Stopped(f"Stopped at step {step}; the same command continues from there.", self.stop.status)


def train(session: Session, state: State, step: int, *, evaluated: bool = True) -> Outcome:
    """Trains from `step` to the target or to the last block.

    Args:
        session: what the run works with.
        state: at `step`; its memory is taken over.
        step: steps done already: 0, or where a checkpoint stands.
        evaluated: False where the checkpoint's state is still to be evaluated.

    Raises:
        Stopped: the run was asked to stop and has saved a checkpoint.
    """
    workload, log = session.engine.workload, session.notes.log
    evaluations = _Evaluations(session)
    first = step
    try:
        if not evaluated:
            evaluations.begin(state, step)
        for block in workload.blocks():
            if block.stop <= step:
                continue
            if evaluations.reached:
                break
            # Not before the first step: a start that saves nothing would leave no mark in the log.
            if step > first and session.stop.requested():
                if evaluations.finish():
                    break
                session.stop_here(state, step)
            if step <= block.start:
                log.start("block_start", metadata=_block_metadata(workload, block, block.stop))
            state, step = _train_block(session, evaluations, state, block, max(step, block.start))
            log.end("block_stop", metadata=_block_metadata(workload, block, step))
            if evaluations.finish():
                break
            evaluations.begin(state, step)
            if not evaluations.reached and not evaluations.under_way:
                session.save(state, step)
    except NotFinite as error:
        if not evaluations.finish():
            return Outcome("aborted", evaluations.quality, None, error.step, str(error))
        return Outcome("success", evaluations.quality, None, evaluations.step)  # that step took its memory
    if evaluations.finish():
        kept = state if step == evaluations.step else None
        return Outcome("success", evaluations.quality, kept, evaluations.step)
    return Outcome("aborted", evaluations.quality, state, step, _missed(workload.goals))


def _missed(goals: Sequence[Goal]) -> str:
    if len(goals) == 1:
        return f"the target {goals[0].target} was not reached"
    return (
        f"the targets {', '.join(f'{goal.metric} {goal.target}' for goal in goals)} were not reached together"
    )


def _block_metadata(workload: TrainedWorkload, block: Block, stop: int) -> dict[str, float]:
    """What MLPerf's log has of a block that ends with step `stop`: epochs, or samples."""
    if workload.counts_samples:
        return events.block_metadata(0, (stop - block.start) * workload.batch_size, "samples")
    epochs = block.epochs if stop == block.stop else workload.epochs(stop) - block.first_epoch
    return events.block_metadata(block.first_epoch + 1, epochs)


class _Evaluations:
    """The evaluations of a run, of which the last may be under way while training goes on.

    Attributes:
        quality: of the last one that is over, NaN before.
        step: steps done by the state that was evaluated last.
        reached: whether that is known to have reached the goals.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._future: Future[Evaluation] | None = None
        self._asked = 0
        self._goals = session.engine.workload.goals
        self.quality, self.step, self.reached = quality(self._goals, {}), 0, False

    @property
    def under_way(self) -> bool:
        return self._future is not None

    def begin(self, state: State, step: int) -> None:
        """Measures the state, and logs that as far as it is known already."""
        session = self._session
        self.step, self._asked = step, 0
        position = session.notes.log.position()
        session.notes.log.start("eval_start", metadata=self._metadata())
        found = session.engine.workload.evaluate(session.engine, state, session.notes)
        if isinstance(found, Future):
            self._future = found
            session.save(state, step, evaluated=False, log_position=position)
        else:
            self._note(found)

    def ready(self) -> bool:
        """Whether the one under way is over; to be asked after each dispatch, by every process alike."""
        if self._future is None or jax.process_count() == 1:
            return self._future is not None and self._future.done()
        from jax.experimental import multihost_utils

        self._asked += 1
        if self._asked % _DISPATCHES_TO_AGREE:
            return False
        return bool(multihost_utils.broadcast_one_to_all(np.int32(self._future.done())))

    def finish(self) -> bool:
        """Waits for the one under way, if any; returns whether the last one reached the target."""
        if self._future is not None:
            future, self._future = self._future, None
            self._note(future.result())
        return self.reached

    def _note(self, found: Evaluation) -> None:
        log, done = self._session.notes.log, self._metadata()
        published = self._session.engine.workload.published_runs(self.step)
        self.quality = quality(self._goals, found)
        self.reached = reached(self._goals, found)
        log.event("eval_accuracy", self.quality, metadata=done)
        if published is not None:
            events.log_published_runs(log, published)
        log.end("eval_stop", metadata=done)
        self._session.progress.evaluated(self.step, found, published)

    def _metadata(self) -> dict[str, float]:
        workload = self._session.engine.workload
        if workload.counts_samples:
            done = self.step * workload.batch_size
            called = events.eval_metadata(done) if workload.samples_are_epochs else {}
            return events.eval_metadata(done, "samples") | called
        return events.eval_metadata(workload.eval_epoch(self.step))


# Several processes must stop after the same step. Agreeing on whether an evaluation is over holds up the
# devices, so they do it now and then.
_DISPATCHES_TO_AGREE = 16


def _train_block(
    session: Session, evaluations: _Evaluations, state: State, block: Block, start: int
) -> tuple[State, int]:
    """The steps of a block; every loss is looked at before it ends.

    It ends early where an earlier evaluation turns out to have reached the target.

    Returns:
        The state, and the steps done by it.
    """
    engine = session.engine
    begin, waited = time.perf_counter(), 0.0
    state, batches = engine.workload.data(engine, state, block, start, session.notes)
    pending: collections.deque[tuple[int, jax.Array]] = collections.deque()
    step = start
    for count, bucket, batch, wait in _dispatches(engine, batches, block.stop - start):
        session.profile.at(step)
        state, metrics = engine.train(state, batch, steps=count, bucket=bucket)
        step += count
        waited += wait
        session.progress.waited(wait)
        pending.append((step, metrics["loss"]))
        while len(pending) > _IN_FLIGHT[engine.layout.mesh.devices.flat[0].platform]:
            _look(session.progress, *pending.popleft())
        if step < block.stop and evaluations.ready() and evaluations.finish():
            break
        if step < block.stop and session.stop.requested():
            while pending:
                _look(session.progress, *pending.popleft())
            if evaluations.finish():
                break
            session.stop_here(state, step)
    while pending:
        _look(session.progress, *pending.popleft())
    seconds = time.perf_counter() - begin
    samples = (step - start) * engine.workload.batch_size
    events.log_stats(session.notes.log, step=step, samples=samples, seconds=seconds, input_seconds=waited)
    return state, step


# Dispatches that may be under way at once. More than two hide no latency on a CPU, and its virtual
# devices share threads: many collectives in flight could wait for each other.
_IN_FLIGHT = {"cpu": 1, "gpu": 16, "tpu": 16}


def _dispatches(
    engine: Engine, batches: Iterator[Batch | Bucketed], steps: int
) -> Iterator[tuple[int, str, Batch, float]]:
    """Groups host batches by dispatch and places them; the devices work on the last one meanwhile.

    A dispatch holds batches of one bucket.

    Yields:
        How many steps it is, the bucket, the batch on the devices (stacked for several steps), and the
        seconds spent waiting for input.
    """
    waiting: list[Bucketed] = []
    while steps:
        begin = time.perf_counter()
        wanted = engine.steps_per_dispatch if steps >= engine.steps_per_dispatch else 1
        for batch in itertools.islice(batches, max(wanted - len(waiting), 0)):
            waiting.append(batch if isinstance(batch, Bucketed) else Bucketed("", batch))
        if len(waiting) < wanted:
            raise ValueError(f"the data phase ended {steps - len(waiting)} batches short of its block")
        bucket = waiting[0].bucket
        if wanted > 1 and all(other.bucket == bucket for other in waiting):
            group, waiting = waiting, []
            stacked = jax.tree.map(lambda *rows: np.stack(rows), *(batch for _, batch in group))
            placed = engine.place(stacked, engine.stacks[bucket])
        else:
            wanted = 1
            placed = engine.place(waiting.pop(0).batch, engine.buckets[bucket])
        steps -= wanted
        yield wanted, bucket, placed, time.perf_counter() - begin


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
