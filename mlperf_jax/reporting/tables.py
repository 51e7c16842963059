"""The table that MLPerf shows, as data, as CSV and as text for a terminal."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mlperf_jax.errors import UserError
from mlperf_jax.reporting.markup import readable
from mlperf_jax.results.folders import replace_file
from mlperf_jax.rounds import training_rules
from mlperf_jax.rounds.collect import Result
from mlperf_jax.rounds.descriptions import CATEGORIES
from mlperf_jax.rounds.scoring import winners

CSV_COLUMNS = (
    "round",
    "division",
    "category",
    "submitter",
    "system",
    "benchmark",
    "runs",
    "converged",
    "score_minutes",
    "speedup",
)
_MORE_COLUMNS = (
    "reason",
    "submitter_name",
    "system_name",
    "benchmark_name",
    "accelerator",
    "accelerators",
    "processor",
    "processors",
    "software",
    "spread",
    "mean_minutes",
    "normalization",
    "labels",
    "path",
)
_DIVISIONS = {
    "closed": "Closed division",
    "open": "Open division",
    "unknown": "Division not stated",
    "mini": "Mini: not MLPerf's data or model",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A benchmark, told apart where one name stands for two models (SSD, later RetinaNet)."""

    key: str
    title: str


@dataclasses.dataclass
class Row:
    """A system with its results by column."""

    results: dict[Column, Result]

    @property
    def one(self) -> Result:
        """Any of its results: what is not of a benchmark is the same in all."""
        return next(iter(self.results.values()))


@dataclasses.dataclass
class Group:
    """The rows of one category. `leading`: of results, "fastest" or "tied" in their column and round."""

    division: str
    category: str
    columns: list[Column]
    rows: list[Row]
    leading: dict[Path, str]

    @property
    def title(self) -> str:
        category = "category not stated" if self.category == "unknown" else self.category
        return f"{_DIVISIONS[self.division]}, {category}"


def group_results(results: Sequence[Result]) -> list[Group]:
    """Sorts results into MLPerf's table: by division, then category, then a row per system."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        found.setdefault(("mini" if result.mini else result.division, result.category), []).append(result)
    order = list(_DIVISIONS), [*CATEGORIES, "unknown"]
    keys = sorted(found, key=lambda key: (order[0].index(key[0]), order[1].index(key[1])))
    return [_group(division, category, found[division, category]) for division, category in keys]


def _group(division: str, category: str, results: list[Result]) -> Group:
    columns: dict[Column, list[Result]] = {}
    rows: dict[tuple[object, ...], Row] = {}
    for result in results:
        column = Column(result.rules.key, result.title)
        columns.setdefault(column, []).append(result)
        what = result.description
        identity: tuple[object, ...] = (
            result.round,
            result.submitter,
            result.system,
            what.name,
            what.chips,
            what.software,
            result.labels,
        )
        row = rows.setdefault(identity, Row({}))
        while column in row.results:  # two of one name: both are shown
            row = rows.setdefault(identity := (*identity, "again"), Row({}))
        row.results[column] = result
    known = list(training_rules.BENCHMARKS)
    return Group(
        division,
        category,
        sorted(columns, key=lambda c: (known.index(c.key) if c.key in known else len(known), c.title)),
        sorted(rows.values(), key=_row_order),
        {path: word for column in columns.values() for path, word in _leading(column).items()},
    )


def _row_order(row: Row) -> tuple:
    one = row.one
    newest_first = (
        -training_rules.ROUNDS.index(one.round)
        if one.round in training_rules.ROUNDS
        else -len(training_rules.ROUNDS)
    )
    return newest_first, one.submitter.lower(), one.description.accelerators, one.system


def _leading(results: Iterable[Result]) -> dict[Path, str]:
    """Who is fastest of a column, round by round; those within the known variance of it are tied with it."""
    by_round: dict[str, list[Result]] = {}
    for result in results:
        by_round.setdefault(result.round, []).append(result)
    leading: dict[Path, str] = {}
    for those in by_round.values():
        first = winners([r.score.minutes for r in those], those[0].rules.variance)
        if len(those) > 1:
            leading |= {those[i].path: "fastest" if len(first) == 1 else "tied" for i in first}
    return leading


class References:
    """Minutes on the Pascal P100, by benchmark: those that are confirmed, and the user's own."""

    def __init__(self, given: Mapping[str, float] | None = None) -> None:
        self._given = dict(given or {})

    def minutes(self, result: Result) -> float | None:
        if result.mini:
            return None
        return self._given.get(result.rules.key, result.rules.p100_minutes)

    def speedup(self, result: Result) -> float | None:
        reference, minutes = self.minutes(result), result.score.minutes
        return reference / minutes if reference and minutes else None


def to_csv(results: Sequence[Result], references: References) -> str:
    """All results, one a line; numbers in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*CSV_COLUMNS, *_MORE_COLUMNS))
    for result in sorted(results, key=lambda r: (r.round, r.submitter, r.system, r.benchmark, str(r.path))):
        writer.writerow([_cell(value) for value in _csv_row(result, references)])
    return out.getvalue()


def _csv_row(result: Result, references: References) -> list[object]:
    score, what = result.score, result.description
    return [
        result.round,
        result.division,
        result.category,
        result.submitter,
        result.system,
        result.benchmark,
        score.runs,
        score.converged,
        score.minutes,
        references.speedup(result),
        score.reason,
        what.submitter,
        what.name,
        result.title,
        what.accelerator,
        what.accelerators,
        what.processor,
        what.processors,
        what.software,
        score.spread,
        score.mean_minutes,
        score.normalization,
        "; ".join(result.labels),
        str(result.path),
    ]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.9g}"
    told = readable(str(value))
    # A spreadsheet takes a text that begins so for a formula.
    return f"'{told}" if told[:1] in "=+-@\t\r" and told[:1] else told


def write_text(path: Path, content: str) -> None:
    """Writes a file at once or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        replace_file(path, content.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file.") from error


def to_text(groups: Sequence[Group], references: References, metric: str) -> str:
    """The tables for a terminal."""
    lines: list[str] = []
    for group in groups:
        head = ["round", "submitter", "system", "chips", *(c.title for c in group.columns)]
        body = [_text_row(row, group, references, metric) for row in group.rows]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines += [group.title, "  ".join(h.ljust(w) for h, w in zip(head, widths, strict=True)).rstrip()]
        lines += [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in body
        ] + [""]
    return "\n".join(lines).rstrip()


def _text_row(row: Row, group: Group, references: References, metric: str) -> list[str]:
    one = row.one
    cells = []
    for column in group.columns:
        result = row.results.get(column)
        cells.append("" if result is None else _text_cell(result, references, metric))
    told = [one.round, one.submitter, one.system, one.description.chips]
    return [readable(text)[:48] for text in told] + cells


def _text_cell(result: Result, references: References, metric: str) -> str:
    if result.score.minutes is None:
        return without_score(result)
    if metric == "speedup":
        speedup = references.speedup(result)
        return "no reference" if speedup is None else times(speedup)
    return figure(result.score.minutes)


def without_score(result: Result) -> str:
    """What stands where a score would: the mean of the runs that converged, and why it is none."""
    score = result.score
    if score.mean_minutes is None:
        return f"- ({score.reason})"
    return f"{figure(score.mean_minutes)} min, no score: {score.reason}"


def figure(minutes: float) -> str:
    """Minutes as MLPerf writes them: 0.472, 134.56, 10,402.1."""
    return f"{minutes:.3f}" if minutes < 1 else f"{minutes:.2f}" if minutes < 1000 else f"{minutes:,.1f}"


def times(speedup: float) -> str:
    """A speed-up as MLPerf writes it: 1.6×, 65.6×, 1,424.4×."""
    return f"{speedup:,.1f}×"


def amount(value: float) -> str:
    """A figure of inference: 14,577 or 0.2171."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
