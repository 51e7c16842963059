"""What single runs came to: time, quality, how they ended. For the terminal and the page."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlperf_jax.reporting.markup import readable
from mlperf_jax.reporting.tables import amount, figure
from mlperf_jax.results.own_runs import OwnRun, read_own_run
from mlperf_jax.rounds.collect import Result
from mlperf_jax.rounds.inference_logs import InferenceRun
from mlperf_jax.rounds.qualities import figures
from mlperf_jax.rounds.scoring import goals_of, reached
from mlperf_jax.rounds.training_logs import RunLog
from mlperf_jax.rounds.training_rules import LOCAL

_LONGEST = 120  # characters of a cell in the terminal


@dataclasses.dataclass(frozen=True)
class RunLine:
    """One run. minutes: "" where it has none. quality: its last figures beside their targets."""

    name: str
    minutes: str
    quality: str
    ended: str


def run_lines(result: Result) -> list[RunLine]:
    """The runs of a result, in order."""
    return [
        RunLine(
            log.path.name,
            "" if log.minutes is None else f"{figure(log.minutes)} min",
            _quality(log, result),
            ending(log, result, read_own_run(log)),
        )
        for log in result.logs
    ]


def ending(log: RunLog, result: Result, own: OwnRun | None) -> str:
    """How a run ended, or how far it is."""
    if log.clock:
        return log.clock
    if log.minutes is None:
        return own.state if own and own.state else "log ends early"
    word = "converged" if reached(log, result.rules, result.round) else "did not converge"
    return f"{word}, resumed" if log.resumed else word


def _quality(log: RunLog, result: Result) -> str:
    if not log.evaluations:
        return "not evaluated yet"
    last = log.evaluations[-1]
    goals = goals_of(log, result.rules, result.round)
    if not goals:
        return f"quality {last.quality:.4g}"
    found = figures(goals, last.found)
    return ", ".join(f"{goal.metric} {found[goal.name]:.4g} of {goal.target:.4g}" for goal in goals)


def to_text(results: Sequence[Result]) -> str:
    """Every run of ours, a line each under its folder; of others' only where they have one result to show.

    Others' runs are in the page: a round has thousands.
    """
    shown = results if len(results) == 1 else [result for result in results if result.round == LOCAL]
    return "\n".join(line for result in shown for line in _lines(result))


def _lines(result: Result) -> Iterator[str]:
    lines = run_lines(result)
    yield f"{result.title} on {readable(result.system)}, {shown_path(result.path)}"
    yield from columns([(line.name, line.minutes or "-", line.quality, line.ended) for line in lines], "  ")


def inference_text(runs: Sequence[InferenceRun]) -> str:
    """LoadGen's runs, a line each: model, system, scenario, mode, figure, verdict, quality, folder."""
    rows = [
        (
            run.model,
            run.system,
            run.scenario,
            run.mode.removesuffix("Only"),
            inference_value(run),
            verdict_of(run),
            "; ".join(run.accuracy),
            shown_path(run.path),
        )
        for run in runs
    ]
    return "\n".join(columns(rows))


def inference_value(run: InferenceRun) -> str:
    if run.value is None:
        return "accuracy only" if run.mode == "AccuracyOnly" else "none"
    return f"{amount(run.value)} {run.unit}, {run.metric}"


def verdict_of(run: InferenceRun) -> str:
    if run.valid is None:
        return ""
    if run.valid and not run.errors:
        return "VALID"
    # LoadGen calls a run valid that logged errors, and its checker lets that pass; people should know.
    return f"VALID, with {run.errors} error(s) in the log" if run.valid else f"INVALID {run.reason}".strip()


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> Iterator[str]:
    """Rows of texts, of strangers too, as lines whose columns stand below each other; an empty column is left out."""
    shown = [
        [cell if len(cell) <= _LONGEST else f"{cell[: _LONGEST - 1]}…" for cell in map(readable, row)]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width]
        yield f"{indent}{'  '.join(cells)}".rstrip()


def shown_path(path: Path) -> str:
    """A path as people typed it, or nearly: below the working directory without that."""
    below = os.path.relpath(path)
    return readable(str(path) if below.startswith("..") else below)
