"""Judges what a training log counts: samples, and the numbers that it says the run was made with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from mlperf_jax.judging.findings import ERROR, WARNING, Finding, listed, made_up
from mlperf_jax.judging.training_log import EPOCHS_AHEAD, Judged
from mlperf_jax.rounds.log_lines import Event
from mlperf_jax.rounds.objects import number
from mlperf_jax.rounds.qualities import EVALS

_COUNT_SLACK = 1e-4  # relative: epochs are logged rounded
# Samples of the data sets that closed runs train on and evaluate with, where logs give the data's own size.
_DATA = {
    "resnet": ((1_281_167,), (50_000,)),
    "maskrcnn": ((117_266, 118_287), (5_000,)),
    "dlrm_dcnv2": ((4_195_197_692,), (89_137_319,)),
    "unet3d": ((168,), (42,)),
    "llama2_70b_lora": ((3_901,), (173,)),  # packed sequences
}


def judge(log: Judged) -> Iterator[Finding]:
    """All findings on what one log counts."""
    yield from _samples(log)
    yield from _tracked(log)
    yield from _unpaired(log)
    yield from _made_up(log)
    yield from _data_sizes(log)


def _samples(log: Judged) -> Iterator[Finding]:
    """Samples that were left out, or counted twice: blocks must join, and agree with what was evaluated."""
    blocks = [event for event in log.all("block_start") if number(event.metadata.get("epoch_count"))]
    for before, event in itertools.pairwise(blocks):
        first, count = (number(before.metadata.get(k)) for k in ("first_epoch_num", "epoch_count"))
        at = number(event.metadata.get("first_epoch_num"))
        if first is None or count is None or at is None or not log.ours:
            continue  # others count epochs of a block in their own ways
        gap = at - (first + count)
        if abs(gap) > _COUNT_SLACK * max(at, 1):
            what = "are left out" if gap > 0 else "count twice"
            text = f"{abs(gap):.4g} epochs between line {before.line} and this {what}."
            yield log.finding(
                event, "samples", text, "Train every block once, each where the last one ended."
            )


def _tracked(log: Judged) -> Iterator[Finding]:
    """What our runs say of every block they trained, against steps, epochs and batch size."""
    batch, train = log.number("global_batch_size"), log.number("train_samples")
    if not log.ours or not batch or log.first("resumed") or not log.all("tracked_stats"):
        return
    total, last_step = 0.0, 0.0
    for event in log.all("tracked_stats", *EVALS):
        if event.key != "tracked_stats":
            at = _samples_done(log, event, train)
            if at is not None and abs(at - total) > max(0.5, _COUNT_SLACK * total):
                text = f"{at:,.0f} samples are said to be trained on, and the blocks before add up to {total:,.0f}."
                yield log.finding(
                    event, "samples", text, "Log the epochs and train_samples that the run had."
                )
                return
            continue
        value = event.value if isinstance(event.value, dict) else {}
        samples, step = number(value.get("samples")), number(event.metadata.get("step"))
        if samples is None or step is None:
            continue
        if abs((step - last_step) * batch - samples) > 0.5:
            text = (
                f"steps {last_step:g} to {step:g} at global_batch_size {batch:g} are {(step - last_step) * batch:,.0f} "
                f"samples, and {samples:,.0f} were trained on."
            )
            yield log.finding(event, "samples", text, "Log the batch size and the steps that the run had.")
        total, last_step = total + samples, step


def _samples_done(log: Judged, evaluation: Event, train: float | None) -> float | None:
    """Samples that an evaluation says were trained on; None where it does not."""
    samples, epochs = (number(evaluation.metadata.get(name)) for name in ("samples_count", "epoch_num"))
    if samples is not None or epochs is None or not train:
        return samples
    return (epochs - EPOCHS_AHEAD.get(log.benchmark.key, 0)) * train


def _unpaired(log: Judged) -> Iterator[Finding]:
    """Evaluations and blocks that were begun twice or not ended."""
    if not log.ours:
        return
    stop = log.first("run_stop")
    mend = "Begin and end every block and evaluation once."
    for begin, end in (("block_start", "block_stop"), ("eval_start", "eval_stop")):
        open_: Event | None = None
        for event in log.all(begin, end):
            if (event.key == begin) == (open_ is not None):
                text = f"{event.key} without {'an end of the one before' if event.key == begin else begin}."
                yield log.finding(event, "samples", text, mend)
            open_ = event if event.key == begin else None
        if open_ and stop and stop.metadata.get("status") == "success":  # another may end within
            yield log.finding(open_, "samples", f"{begin} without {end}.", mend)


def _made_up(log: Judged) -> Iterator[Finding]:
    labels = log.first("run_labels")
    invented = made_up(labels.value) if labels else []
    if invented and log.closed:
        text = f"a closed result of what says of itself: {listed(invented)}"
        yield log.finding(labels, "made-up-data", text, "Closed needs the benchmark's own data and model.")


def _data_sizes(log: Judged) -> Iterator[Finding]:
    if not log.closed or log.benchmark.key not in _DATA:
        return
    # Whoever pads or cuts his last batch logs a little more or less.
    batch = log.number("global_batch_size") or 0
    # Most logs of Mask R-CNN, of v0.7 to v3.1, have 1 here, and as train_samples the most iterations that were allowed.
    iterations = log.benchmark.key == "maskrcnn" and log.number("eval_samples") == 1
    for key, sizes in zip(("train_samples", "eval_samples"), _DATA[log.benchmark.key], strict=True):
        event = log.first(key)
        told = number(event.value) if event else None
        if told is not None and all(abs(told - size) > max(batch, 0.01 * size) for size in sizes):
            text = f"{key} is {told:,.0f}, and the benchmark's data set has {' or '.join(f'{s:,}' for s in sizes)}."
            severity = WARNING if iterations else ERROR
            yield log.finding(
                event, "count", text, "Closed runs use the whole data set; log its size.", severity
            )
