"""What people see while a run goes: one line, and TensorBoard's curves."""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self, TextIO

from mlperf_jax.goals import Goal, shown
from mlperf_jax.rounds.published_curves import Beside


def model_flops_utilization(
    throughput: float, flops_per_sample: float | None, peak_flops: float | None, num_devices: int
) -> float | None:
    """Model FLOPs utilization (MFU): what part of the chips' peak the model's own arithmetic is.

        MFU = FLOPs per sample * samples/s / (peak FLOP/s per device * devices)

    FLOPs per sample are those that the model needs in forward and backward pass (a multiply-add is
    two), whatever is recomputed besides (PaLM, arXiv:2204.02311, appendix B).

    Args:
        throughput: samples/s of the whole run.
        flops_per_sample: None if unknown.
        peak_flops: FLOP/s of one device in the compute dtype; None if unknown.
        num_devices: how many devices share the work.

    Returns:
        A fraction, or None if something is unknown.
    """
    if not flops_per_sample or not peak_flops:
        return None
    return flops_per_sample * throughput / (peak_flops * num_devices)


class Progress:
    """One line on `stream`: rewritten in place on a terminal, else printed every `interval` seconds.

    Throughput is that of the last steps since the last evaluation; where they waited for input for a tenth of
    their time or more, the line says so. Telling a step costs next to nothing: lines and curves are written at
    most so often as people look.

    Args:
        total_steps: the most steps that the run can take; it may reach its target before.
        batch_size: global batch size.
        num_train: examples in an epoch.
        goals: what is to be reached.
        unit: what throughput counts, "images".
        flops_per_sample, peak_flops, num_devices: as `model_flops_utilization` takes them.
        started: when `run_start` was, in seconds since 1970; by default now. A resumed run's time so
            far counts from its first start.
        first_step: the step that this process begins from.
        stream: where the line goes; None for nowhere (processes other than 0).
        tensorboard_dir: where TensorBoard's events go; None for nowhere. What an earlier process
            wrote there after `first_step` is purged from the curves.
        interval: seconds between lines where they cannot be rewritten.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        batch_size: int,
        num_train: int,
        goals: Sequence[Goal],
        unit: str = "samples",
        flops_per_sample: float | None = None,
        peak_flops: float | None = None,
        num_devices: int = 1,
        started: float | None = None,
        first_step: int = 0,
        stream: TextIO | None = None,
        tensorboard_dir: str | os.PathLike[str] | None = None,
        interval: float = 10.0,
    ) -> None:
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._num_train = num_train
        self._goals = goals
        self._unit = unit
        self._flops = (flops_per_sample, peak_flops, num_devices)
        self._began = time.time()  # of this process, for its speed
        self._started = self._began if started is None else started
        self._first_step = first_step
        self._waited = 0.0  # for input, seconds
        self._recent: collections.deque[tuple[float, int, float]] = collections.deque(maxlen=_WINDOW)
        self._stream = stream
        self._in_place = stream is not None and stream.isatty()
        self._next_line = _Every(_REWRITE_SECONDS if self._in_place else interval)
        self._next_point = _Every(_CURVE_SECONDS)
        self._open = False  # whether the line on the terminal still lacks its end
        self._figures: Mapping[str, float] | None = None
        self._curves: _Curves | None = None
        if tensorboard_dir is not None:
            with self._until_full():
                self._curves = _Curves(tensorboard_dir, first_step)

    def waited(self, seconds: float) -> None:
        """Tells that the run has waited for input."""
        self._waited += seconds

    def step(self, step: int, loss: float) -> None:
        """Tells that `step` steps are done, and the loss of the last."""
        now = time.time()
        self._recent.append((now, step, self._waited))
        line = self._stream is not None and self._next_line.due(now)
        point = self._curves is not None and self._next_point.due(now)
        if not line and not point:
            return
        throughput = self._throughput()
        mfu = None if throughput is None else model_flops_utilization(throughput, *self._flops)
        if point:
            curves = {"train/loss": loss, "train/throughput": throughput, "train/mfu": mfu}
            self._draw(step, {tag: value for tag, value in curves.items() if value is not None})
        if line:
            parts = [
                *self._where(step),
                f"loss {loss:.4f}",
                *([] if throughput is None else [f"{throughput:.1f} {self._unit}/s"]),
                *self._waiting(),
                *([] if mfu is None else [f"MFU {mfu:.1%}"]),
                *([] if self._figures is None else [shown(self._goals, self._figures)]),
                # The first step also waited for data: it says nothing of the others.
                *self._times(step, now, estimate=throughput is not None),
            ]
            self._show(" | ".join(parts), lasting=False)

    def evaluated(self, step: int, figures: Mapping[str, float], published: Beside | None = None) -> None:
        """Tells what an evaluation found, and where published runs were; its line stays. Figures become curves of their names."""
        now = time.time()
        self._figures = figures
        self._draw(step, {f"eval/{tag}": value for tag, value in figures.items()}, flush=True)
        parts = [
            *self._where(step),
            f"eval {shown(self._goals, figures)}",
            *([] if published is None else [f"published runs: {published.range}"]),
            *self._times(step, now),
        ]
        if self._stream is not None:
            self._show(" | ".join(parts), lasting=True)
        self._recent.clear()  # the time of the evaluation is not the next steps'
        self._recent.append((now, step, self._waited))

    def close(self) -> None:
        """Ends the line and TensorBoard's file."""
        if self._open and self._stream is not None:
            print(file=self._stream, flush=True)
            self._open = False
        if self._curves is not None:
            with contextlib.suppress(OSError):
                self._curves.flush()
            self._curves = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _throughput(self) -> float | None:
        """Samples/s over the remembered steps, None while there are too few."""
        (begin, first, _), (end, last, _) = self._recent[0], self._recent[-1]
        return (last - first) * self._batch_size / (end - begin) if end > begin else None

    def _waiting(self) -> list[str]:
        """How much of the remembered steps' time went by waiting for input, if that is worth a word."""
        (begin, _, before), (end, _, waited) = self._recent[0], self._recent[-1]
        share = (waited - before) / (end - begin) if end > begin else 0.0
        return [f"waiting for input {min(share, 1):.0%} of the time"] if share >= _MUCH_WAITING else []

    def _where(self, step: int) -> list[str]:
        epoch = step * self._batch_size / self._num_train
        return [f"step {step}/{self._total_steps}", f"epoch {epoch:.2f}"]

    def _times(self, step: int, now: float, *, estimate: bool = True) -> list[str]:
        parts = [f"{_duration(now - self._started)} so far"]
        done = step - self._first_step
        if estimate and done > 0 and step < self._total_steps:
            left = (now - self._began) / done * (self._total_steps - step)
            parts.append(f"at most {_duration(left)} left")
        return parts

    def _draw(self, step: int, values: Mapping[str, float], *, flush: bool = False) -> None:
        if self._curves is None:
            return
        with self._until_full():
            self._curves.add(step, values)
            if flush:
                self._curves.flush()

    @contextlib.contextmanager
    def _until_full(self) -> Iterator[None]:
        """Goes on without curves where the disk is full: the log and the checkpoints are what counts."""
        try:
            yield
        except OSError as error:
            self._curves = None
            if self._stream is not None:
                self._show(f"TensorBoard's curves end here ({error.strerror})", lasting=True)

    def _show(self, line: str, *, lasting: bool) -> None:
        if self._in_place:
            # A line longer than the terminal would wrap, and its first part could not be rewritten.
            line = line[: max(shutil.get_terminal_size().columns - 1, 20)]
            print(f"\r{line}\x1b[K", end="\n" if lasting else "", file=self._stream, flush=True)
            self._open = not lasting
        else:
            print(line, file=self._stream, flush=True)


_WINDOW = 50  # steps that throughput is taken over
_MUCH_WAITING = 0.1
_REWRITE_SECONDS = 0.2
_CURVE_SECONDS = 1.0


class _Curves:
    """A file of TensorBoard's events.

    tensorboardX's own `SummaryWriter` has a thread that ends where the disk is full, and whoever draws then
    waits for ever.

    Args:
        folder: where the file goes.
        first_step: what an earlier process drew after it is purged.

    Raises:
        OSError: nothing can be written.
    """

    def __init__(self, folder: str | os.PathLike[str], first_step: int = 0) -> None:
        self._events, self._summary, writer = _tensorboard()
        os.makedirs(folder, exist_ok=True)
        # The suffix keeps apart the files of two processes that start within one second.
        self._writer = writer(os.path.join(folder, "events"), filename_suffix=f".{os.getpid()}.{first_step}")
        session = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.write_event(self._events.Event(step=first_step + 1, session_log=session))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        points = [self._summary.Value(tag=tag, simple_value=float(value)) for tag, value in values.items()]
        summary = self._summary(value=points)
        self._writer.write_event(self._events.Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Puts what was added on the disk."""
        self._writer.flush()


def _tensorboard() -> tuple[Any, Any, Any]:
    """tensorboardX's events, summaries and writer of them, without PyTorch, which it imports where it can."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.proto.summary_pb2 import Summary
    finally:
        if absent:
            del sys.modules["torch"]
    return event_pb2, Summary, EventsWriter


class _Every:
    """Says at most every `seconds` that it is time, the first time at once."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = float("-inf")

    def due(self, now: float) -> bool:
        """Whether it is time; asking counts as doing."""
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


def _duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 3 h 07 min."""
    if seconds < 59.95:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
