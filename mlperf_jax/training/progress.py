"""What people see while a run goes: one line, and TensorBoard's curves."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from typing import Self, TextIO


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

    Args:
        total_steps: the most steps that the run can take; it may reach its target before.
        steps_per_epoch: training samples / global batch size.
        target: the quality to reach.
        metric: the quality's name, "top-1 accuracy".
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
        steps_per_epoch: float,
        target: float,
        metric: str,
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
        self._steps_per_epoch = steps_per_epoch
        self._target = target
        self._metric = metric
        self._flops = (flops_per_sample, peak_flops, num_devices)
        self._here = time.time()  # of this process, for its speed
        self._started = self._here if started is None else started
        self._first_step = first_step
        self._stream = stream
        self._in_place = stream is not None and stream.isatty()
        self._interval = interval
        self._printed = float("-inf")
        self._open = False  # whether the line on the terminal still lacks its end
        self._quality: float | None = None
        self._writer = None
        if tensorboard_dir is not None:
            from tensorboardX import SummaryWriter

            # The suffix keeps apart the files of two processes that start within one second.
            self._writer = SummaryWriter(
                str(tensorboard_dir),
                purge_step=first_step + 1,
                filename_suffix=f".{os.getpid()}.{first_step}",
            )

    def update(
        self, step: int, *, loss: float, throughput: float, scalars: Mapping[str, float] | None = None
    ) -> None:
        """Tells how training goes.

        Args:
            step: steps done.
            loss: of the last step.
            throughput: samples/s lately, evaluation not included.
            scalars: more curves, e.g. {"learning_rate": 0.1}.
        """
        mfu = model_flops_utilization(throughput, *self._flops)
        curves = {"loss": loss, "throughput": throughput, **(scalars or {})}
        if mfu is not None:
            curves["mfu"] = mfu
        for name, value in curves.items():
            self._scalar(f"train/{name}", value, step)
        parts = [
            f"step {step}/{self._total_steps}",
            f"epoch {step / self._steps_per_epoch:.2f}",
            f"loss {loss:.4f}",
            f"{throughput:.1f} samples/s",
            *([] if mfu is None else [f"MFU {mfu:.1%}"]),
            *([] if self._quality is None else [self._quality_part()]),
            *self._times(step),
        ]
        self._show(" | ".join(parts), lasting=False)

    def evaluated(self, step: int, quality: float) -> None:
        """Tells an evaluation's result; its line stays."""
        self._quality = quality
        self._scalar("eval/quality", quality, step)
        parts = [
            f"step {step}/{self._total_steps}",
            f"epoch {step / self._steps_per_epoch:.2f}",
            f"eval {self._quality_part()}",
            *self._times(step),
        ]
        self._show(" | ".join(parts), lasting=True)
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Ends the line and TensorBoard's file."""
        if self._open and self._stream is not None:
            print(file=self._stream, flush=True)
            self._open = False
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _quality_part(self) -> str:
        return f"{self._metric} {self._quality:.4f} of {self._target:.4f}"

    def _times(self, step: int) -> list[str]:
        now = time.time()
        parts = [f"{_duration(now - self._started)} so far"]
        done = step - self._first_step
        if done > 0 and step < self._total_steps:
            left = (now - self._here) / done * (self._total_steps - step)
            parts.append(f"at most {_duration(left)} left")
        return parts

    def _scalar(self, tag: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(tag, float(value), step)

    def _show(self, line: str, *, lasting: bool) -> None:
        if self._stream is None:
            return
        if self._in_place:
            # A line longer than the terminal would wrap, and its first part could not be rewritten.
            line = line[: max(shutil.get_terminal_size().columns - 1, 20)]
            print(f"\r{line}\x1b[K", end="\n" if lasting else "", file=self._stream, flush=True)
            self._open = not lasting
        elif lasting or time.monotonic() - self._printed >= self._interval:
            print(line, file=self._stream, flush=True)
            self._printed = time.monotonic()


def _duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 3 h 07 min."""
    if seconds < 59.95:
        return f"{max(seconds, 0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
