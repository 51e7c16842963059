"""Judges one training log by what the rules say and the official checkers do not look at."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlperf_jax.judging.findings import ERROR, WARNING, Finding, listed, warning
from mlperf_jax.rounds import evaluation_schedule, own_runs
from mlperf_jax.rounds.training_logs import Event, number
from mlperf_jax.rounds.training_rules import Benchmark

# Between processes that write one log.
_CLOCK_SLACK_MS = 1000
_MOST_OF_A_KIND = 10  # findings told one by one
_EVALS = ("eval_accuracy", "eval_error")
# Evaluated after the run, from its checkpoints.
_EVALUATED_LATER = ("minigo", "stable_diffusion")
# (begin, end): intervals that may not end before they begin.
_INTERVALS = (
    ("init_start", "init_stop"),
    ("run_start", "run_stop"),
    ("epoch_start", "epoch_stop"),
    ("block_start", "block_stop"),
    ("eval_start", "eval_stop"),
)
_EPOCHS_AHEAD = {"dlrm": 1}  # its evaluations are called 1.05, 1.10 and so on
_MOST_EPOCHS = 20_000  # what is logged as more than this counts samples, as 3D U-Net does under either name
_SHARE = 0.03  # of the interval between two evaluations: what one may be off
_COUNT_SLACK = 1e-4  # relative: epochs are logged rounded
# What the official rcp_checker takes a whole line for as soon as it holds one of these words.
_RCP_WORDS = ("eval_accuracy", "eval_error", "global_batch_size", "submission_benchmark", "train_samples")
# Samples of the data sets that closed runs train on and evaluate with, where logs give the data's own size.
_DATA = {
    "resnet": ((1_281_167,), (50_000,)),
    "maskrcnn": ((117_266, 118_287), (5_000,)),
    "dlrm_dcnv2": ((4_195_197_692,), (89_137_319,)),
    "unet3d": ((168,), (42,)),
}


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a log is judged with.

    Attributes:
        path: the log.
        events: all of it, in order.
        benchmark, round_name: whose rules hold; "local" for runs of our own.
        closed: whether the result claims to be of the closed division.
        own: of a run of ours, its config, status and so on by file; empty for anybody else's.
    """

    path: Path
    events: Sequence[Event]
    benchmark: Benchmark
    round_name: str
    closed: bool
    own: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def all(self, *keys: str) -> list[Event]:
        return [event for event in self.events if event.key in keys]

    def first(self, key: str) -> Event | None:
        return next((event for event in self.events if event.key == key), None)

    def number(self, key: str) -> float | None:
        event = self.first(key)
        return None if event is None else number(event.value)

    def finding(self, event: Event | None, rule: str, text: str, mend: str, severity: str = ERROR) -> Finding:
        return Finding(self.path, rule, text, mend, severity, event.line if event else None)

    @property
    def strict(self) -> str:
        """Severity of what only a closed result may not have."""
        return ERROR if self.closed else WARNING


def judge(log: Judged) -> Iterator[Finding]:
    """All findings on one log."""
    yield from _clock(log)
    yield from _evaluations(log)
    yield from _quality(log)
    yield from _samples(log)
    yield from _resumed(log)
    yield from _compilation(log)
    yield from _counts(log)
    yield from _words(log)


def read_own(path: Path) -> dict[str, dict[str, Any]]:
    """config.json, status.json and so on of a run of ours, by file; empty for anybody else's."""
    folder = own_runs.run_folder(path)
    if folder is None:
        return {}
    return {name: own_runs.read_object(folder / f"{name}.json") for name in ("config", "status", "devices")}


def _clock(log: Judged) -> Iterator[Finding]:
    mend = "Run again: a time that runs backwards measures nothing."
    latest: Event | None = None
    later = log.benchmark.key in _EVALUATED_LATER
    count = 0
    for event in log.events:
        if later and event.key.startswith("eval_"):
            continue
        if latest and event.time_ms < latest.time_ms - _CLOCK_SLACK_MS:
            count += 1
            back = (latest.time_ms - event.time_ms) / 1e3
            text = f"{event.key} is {back:.1f} s before {latest.key} in line {latest.line}."
            if count <= _MOST_OF_A_KIND:
                yield log.finding(event, "time-backwards", text, mend)
        elif latest is None or event.time_ms > latest.time_ms:
            latest = event
    if count > _MOST_OF_A_KIND:
        yield log.finding(
            None, "time-backwards", f"{count} events of this log are before earlier lines.", mend
        )
    for begin_key, end_key in _INTERVALS:
        begin: Event | None = None
        for event in log.all(begin_key, end_key):
            if event.key == begin_key:
                begin = event
            elif begin and event.time_ms < begin.time_ms:
                text = f"{end_key} is {begin.time_ms - event.time_ms:g} ms before {begin_key} in line {begin.line}."
                yield log.finding(event, "time-backwards", text, mend)
    stop = log.first("run_stop")
    if stop and not later:
        for event in log.all(*_EVALS):
            if event.time_ms > stop.time_ms:
                text = f"{event.key} is later than run_stop in line {stop.line}."
                yield log.finding(
                    event, "evaluated-after-stop", text, "Stop the clock after the last evaluation."
                )


def _done(event: Event) -> float | None:
    return next(
        (n for n in (number(event.metadata.get(k)) for k in ("samples_count", "epoch_num")) if n is not None),
        None,
    )


def _evaluations(log: Judged) -> Iterator[Finding]:
    batch = int(log.number("global_batch_size") or 0)
    wanted = _own_schedule(log) or (
        evaluation_schedule.find_schedule(log.benchmark.key, log.round_name, batch) if log.closed else None
    )
    evaluations = [event for event in log.all(*_EVALS) if _done(event) is not None]
    if wanted is None or not evaluations:
        return
    done = [_done(event) for event in evaluations]
    train = log.number("train_samples") or 0
    if wanted.unit == "epoch" and train and done[0] > _MOST_EPOCHS:
        done = [samples / train for samples in done]
    # Several metrics or processes may log one evaluation each.
    kept = [i for i, at in enumerate(done) if i == 0 or at != done[i - 1]]
    step = batch * wanted.per_sample if wanted.unit == "samples" else batch / train if train else 0.0
    slack = 1.5 * step + _SHARE * wanted.interval
    for i, text in evaluation_schedule.breaches(wanted, [done[i] for i in kept], slack):
        mend = "Evaluate as the rules say, neither more nor less often."
        yield log.finding(evaluations[kept[i]], "evaluation-schedule", f"{text}.", mend)


def _own_schedule(log: Judged) -> evaluation_schedule.Every | None:
    """What the config of a mini run of ours says; a closed one goes by the rules."""
    config = log.own.get("config", {}).get("config")
    if log.closed or not isinstance(config, dict):
        return None
    every, first = number(config.get("eval_every_epochs")), number(config.get("eval_offset_epochs"))
    if per_epoch := number(config.get("evals_per_epoch")):
        every, first = 1 / per_epoch, 1 / per_epoch + _EPOCHS_AHEAD.get(log.benchmark.key, 0)
    if not every:
        return None
    return evaluation_schedule.Every(
        every, f"every {every:g} epochs (the run's config)", (first, first) if first else None
    )


def _quality(log: Judged) -> Iterator[Finding]:
    stop, evaluations = log.first("run_stop"), log.all(*_EVALS)
    if stop is None:
        mend = "Let the run end; the same command continues it."
        yield log.finding(None, "unfinished", "the log has no run_stop: the run has no end.", mend)
        return
    target, event = _target(log)
    status = str(stop.metadata.get("status", "")).lower()
    if status == "success" and target is not None and evaluations:
        values = [value for e in evaluations if (value := number(e.value)) is not None]
        lower = log.benchmark.lower_is_better
        best = (min if lower else max)(values, default=math.nan)
        if not (best <= target if lower else best >= target):
            text = f"run_stop says success, and the best quality is {best:g} where {target:g} is the target."
            yield log.finding(
                stop, "under-target", text, "Train to the target, or let the run count as aborted."
            )
        elif log.benchmark.key not in _EVALUATED_LATER:
            last = number(evaluations[-1].value)
            if last is None or not (last <= target if lower else last >= target):
                text = (
                    f"run_stop says success, and the last quality is {last} where {target:g} is the target."
                )
                yield log.finding(
                    stop, "under-target", text, "Stop at the evaluation that reaches the target."
                )
    elif status != "success":
        text = f"the run missed its target (run_stop says {status or 'nothing'}) and counts as slower than any other."
        yield log.finding(
            stop, "not-converged", text, "The rules allow one such run (3D U-Net four).", WARNING
        )
    wanted = log.benchmark.target(log.round_name)
    if event is not None and log.closed and wanted is not None:
        told = number(event.value)
        if told is not None and (
            told > wanted if log.benchmark.lower_is_better else told < wanted * (1 - 1e-9)
        ):
            scaled = wanted / 100 if wanted > 1.5 and told <= 1 else wanted
            if told < scaled * (1 - 1e-9) or log.benchmark.lower_is_better:
                text = f"the run's own target is {told:g}; closed runs have {scaled:g}."
                yield log.finding(event, "target", text, "Train to the rules' target, or submit to open.")


def _target(log: Judged) -> tuple[float | None, Event | None]:
    """The target in the log's unit, and the event that names it."""
    for key in ("quality_target", "eval_target"):
        event = log.first(key)
        if event is not None and number(event.value) is not None:
            return number(event.value), event
    target = log.benchmark.target(log.round_name) if log.closed else None
    values = [number(event.value) or 0.0 for event in log.all(*_EVALS)]
    if target and not log.benchmark.lower_is_better and target > 1.5 and max(values, default=0) <= 1:
        target /= 100  # BLEU as a share
    return (None if log.benchmark.key in _EVALUATED_LATER else target), None


def _samples(log: Judged) -> Iterator[Finding]:
    """Samples that were left out, or counted twice: blocks must join, and agree with what was evaluated."""
    blocks = [event for event in log.all("block_start") if number(event.metadata.get("epoch_count"))]
    for before, event in itertools.pairwise(blocks):
        first, count = (number(before.metadata.get(k)) for k in ("first_epoch_num", "epoch_count"))
        at = number(event.metadata.get("first_epoch_num"))
        if first is None or at is None or not _own(log):
            continue  # others count epochs of a block in their own ways
        gap = at - (first + count)
        if abs(gap) > _COUNT_SLACK * max(at, 1):
            what = "are left out" if gap > 0 else "count twice"
            text = f"{abs(gap):.4g} epochs between line {before.line} and this {what}."
            yield log.finding(
                event, "samples", text, "Train every block once, each where the last one ended."
            )
    yield from _tracked(log)
    yield from _unpaired(log)


def _own(log: Judged) -> bool:
    return log.first("run_labels") is not None


def _tracked(log: Judged) -> Iterator[Finding]:
    """What our runs say of every block they trained, against steps, epochs and batch size."""
    batch, train = log.number("global_batch_size"), log.number("train_samples")
    if not _own(log) or not batch or log.first("resumed") or not log.all("tracked_stats"):
        return
    total, last_step = 0.0, 0.0
    for event in log.all("tracked_stats", *_EVALS):
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
    return (epochs - _EPOCHS_AHEAD.get(log.benchmark.key, 0)) * train


def _unpaired(log: Judged) -> Iterator[Finding]:
    """Evaluations and blocks that were begun twice or not ended."""
    if not _own(log):
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


def _resumed(log: Judged) -> Iterator[Finding]:
    if event := log.first("resumed"):
        text = "the run was stopped and resumed: by the rules it has no time, and counts for nothing."
        yield log.finding(event, "resumed", text, "Make another run without a stop.", log.strict)


def _compilation(log: Judged) -> Iterator[Finding]:
    """Compilation belongs between init_start and run_start, where half an hour of it is free."""
    event = log.first("compile_time")
    begin, start = log.first("init_start"), log.first("run_start")
    seconds = log.number("compile_time")
    if event is None or seconds is None:
        if _own(log) and start is not None:
            mend = "Log compile_time before run_start."
            text = "nothing says how long compilation took, nor whether the clock ran."
            yield log.finding(start, "compile-time", text, mend, WARNING)
        return
    if start and event.line > start.line:
        text = f"{seconds:.1f} s of compilation are logged after run_start in line {start.line}: inside the clock."
        yield log.finding(
            event, "compile-time", text, "Compile before run_start; up to 30 minutes do not count."
        )
    elif begin and seconds * 1e3 > event.time_ms - begin.time_ms + _CLOCK_SLACK_MS:
        spent = (event.time_ms - begin.time_ms) / 1e3
        text = (
            f"{seconds:.1f} s of compilation are claimed and only {spent:.1f} s have passed since init_start."
        )
        yield log.finding(event, "compile-time", text, "Log the time that compilation took.")
    stop = log.first("init_stop")
    if stop and start and start.time_ms - stop.time_ms > _CLOCK_SLACK_MS:
        gap = (start.time_ms - stop.time_ms) / 1e3
        text = f"{gap:.1f} s between init_stop and run_start belong to neither."
        yield log.finding(
            start, "compile-time", text, "Start the clock where initialization ends.", log.strict
        )


def _counts(log: Judged) -> Iterator[Finding]:
    """Logged numbers against what the run was made with."""
    config = log.own.get("config", {}).get("config")
    status = log.own.get("status", {})
    wanted: dict[str, tuple[Any, str]] = {}
    if isinstance(config, dict):
        for key, name in (
            ("global_batch_size", "batch_size"),
            ("gradient_accumulation_steps", "gradient_accumulation_steps"),
            ("quality_target", "target"),
        ):
            wanted[key] = (config.get(name), f"config.json has {name}")
        sizes = re.search(r"([\d,]+) train and ([\d,]+) eval", str(config.get("data_description", "")))
        if sizes:
            for key, digits in zip(("train_samples", "eval_samples"), sizes.groups(), strict=True):
                wanted[key] = (digits.replace(",", ""), "the data of config.json has")
    if "seed" in status:
        wanted["seed"] = (status["seed"], "status.json has seed")
    for key, (value, words) in wanted.items():
        event, want = log.first(key), number(value)
        told = number(event.value) if event else None
        if event is None and want is not None:
            text = f"{key} is not logged, and {words} {want:,.10g}."
            yield log.finding(None, "count", text, "Log what the run had.")
        elif event and want is not None and told != want:
            text = f"{key} is logged as {event.value}, and {words} {want:,.10g}."
            yield log.finding(event, "count", text, "Log what the run had.")
    yield from _data_sizes(log)
    state = status.get("state")
    stop = log.first("run_stop")
    if stop and state in ("success", "aborted") and stop.metadata.get("status") != state:
        text = f"run_stop says {stop.metadata.get('status')!r}, and status.json {state!r}."
        yield log.finding(stop, "count", text, "Restore the log.")
    labels = log.first("run_labels")
    made_up = [
        label
        for label in (labels.value if labels and isinstance(labels.value, list) else [])
        if re.search(r"\b(fake|synthetic|random|mini)\b", str(label), re.IGNORECASE)
    ]
    if made_up and log.closed:
        text = f"a closed result of what says of itself: {listed(made_up)}"
        yield log.finding(labels, "made-up-data", text, "Closed needs the benchmark's own data and model.")


def _data_sizes(log: Judged) -> Iterator[Finding]:
    if not log.closed or log.benchmark.key not in _DATA:
        return
    # Whoever pads or cuts his last batch logs a little more or less.
    batch = log.number("global_batch_size") or 0
    for key, sizes in zip(("train_samples", "eval_samples"), _DATA[log.benchmark.key], strict=True):
        event = log.first(key)
        told = number(event.value) if event else None
        if told is not None and all(abs(told - size) > max(batch, 0.01 * size) for size in sizes):
            text = f"{key} is {told:,.0f}, and the benchmark's data set has {' or '.join(f'{s:,}' for s in sizes)}."
            yield log.finding(event, "count", text, "Closed runs use the whole data set; log its size.")


def _words(log: Judged) -> Iterator[Finding]:
    """Lines that the official rcp_checker would mistake for another event."""
    for event in log.events:
        said = f"{event.key} {event.value} {event.metadata}"
        word = next((w for w in _RCP_WORDS if w in said and not event.key.startswith(w)), None)
        if word and _own(log):
            text = f"the official rcp_checker takes {event.key} for {word}, whose name it holds."
            yield log.finding(
                event, "official-rcp-words", text, f"Log it without the word {word}.", log.strict
            )


def unreadable(path: Path, why: str) -> Finding:
    return Finding(path, "unreadable", why, "Restore the log, or leave it out.")


def damaged(path: Path, lines: Sequence[int]) -> Iterator[Finding]:
    """Lines that claim to be events and are none."""
    for line in lines[:20]:
        yield Finding(
            path, "damaged-line", "claims to be an MLPerf event and is none.", "Restore the line.", line=line
        )
    if len(lines) > 20:
        yield warning(path, "damaged-line", f"{len(lines) - 20} more such lines.", "Restore the log.")
