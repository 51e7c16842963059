"""What judging finds, and how it is told."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
ERROR, WARNING, NOTE = "error", "warning", "note"
_LONGEST = 400  # characters of a text: logs of others may hold anything
_FIGURE = re.compile(r"\d+([.,]\d+)*(e[-+]?\d+)?")
_MOST_LINES, _MOST_FILES = 3, 4  # named where a finding repeats itself


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or must be known.

    Attributes:
        path: the file or folder.
        rule: its short name, the same for all findings of a kind.
        text: what is wrong, with the figures.
        mend: what to do about it.
        severity: "error", "warning" for what does not forbid a result, or "note" where nothing is wrong.
        line: number of the line, from 1; None where it is about the whole file.
        also: other lines of the file of which the same was found, but for its figures.
    """

    path: Path
    rule: str
    text: str
    mend: str
    severity: str = ERROR
    line: int | None = None
    also: tuple[int, ...] = ()

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """What findings have in common that repeat each other: all but the place and the figures."""
        return self.rule, self.severity, _FIGURE.sub("#", self.text), self.mend

    @property
    def place(self) -> str:
        return str(self.path) if self.line is None else f"{self.path}:{self.line}"


def warning(path: Path, rule: str, text: str, mend: str, line: int | None = None) -> Finding:
    """A finding that does not forbid a result."""
    return Finding(path, rule, text, mend, WARNING, line)


def one_line(text: Any) -> str:
    """`text` of an outsider as one printable line of bounded length."""
    words = " ".join(str(text).split())
    printable = "".join(c if c.isprintable() else "?" for c in words)
    return printable if len(printable) <= _LONGEST else printable[: _LONGEST - 1] + "…"


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings of a command. training, inference: how many logs, and LoadGen runs, were judged."""

    findings: tuple[Finding, ...]
    training: int = 0
    inference: int = 0

    @property
    def errors(self) -> int:
        return sum(finding.severity == ERROR for finding in self.findings)

    @property
    def warnings(self) -> int:
        return sum(finding.severity == WARNING for finding in self.findings)


def make_report(findings: Iterable[Finding], training: int, inference: int) -> Report:
    """A report in order of files and lines, errors of a line first; what repeats itself in a file is one finding."""
    unique = sorted(
        set(findings), key=lambda f: (str(f.path), f.line or 0, f.severity != ERROR, f.rule, f.text)
    )
    repeated: dict[tuple[Any, ...], list[Finding]] = {}
    for finding in unique:
        repeated.setdefault((finding.path, *finding.kind), []).append(finding)
    return Report(tuple(_one(same) for same in repeated.values()), training, inference)


def _one(same: Sequence[Finding]) -> Finding:
    """The first of several findings in one file that differ by their figures, with the lines of the others."""
    lines = dict.fromkeys(f.line for f in same[1:] if f.line is not None and f.line != same[0].line)
    return dataclasses.replace(same[0], also=tuple(lines)) if lines else same[0]


def to_text(report: Report, root: Path) -> str:
    """The report for people, with paths below `root`, and at its end what it adds up to.

    What repeats itself in several files of a folder is told once, of the first, with the names of the others.
    """
    lines = []
    told: dict[tuple[Any, ...], list[Finding]] = {}
    for finding in report.findings:
        told.setdefault((finding.path.parent, *finding.kind), []).append(finding)
    for first, *others in told.values():
        lines.append(f"{_below(first, root)}: {first.severity} [{first.rule}] {one_line(first.text)}")
        if first.also or others:
            lines.append(f"    {_elsewhere(first, others)}")
        lines.append(f"    {one_line(first.mend)}")
    checked = f"{report.training} training log(s) and {report.inference} LoadGen run(s) judged"
    rules = Counter(f.rule for f in report.findings if f.severity == ERROR)
    most = ", ".join(f"{rule} {count}" for rule, count in rules.most_common(6))
    verdict = f"{report.errors} error(s), {report.warnings} warning(s)" + (f" ({most})" if most else "")
    return "\n".join([*lines, f"{checked}: {verdict}."])


def _elsewhere(first: Finding, others: Sequence[Finding]) -> str:
    """Where else the same was found: lines of the same file, and files beside it."""
    places = []
    if first.also:
        places.append(f"in line {listed(first.also, _MOST_LINES)}")
    if others:
        names = [one_line(f.path.name if f.line is None else f"{f.path.name}:{f.line}") for f in others]
        places.append(f"in {listed(names, _MOST_FILES)}")
    count = len(first.also) + sum(1 + len(f.also) for f in others)
    return f"So it is at {plural(count, 'other place')}: {'; '.join(places)}."


def to_json(report: Report, root: Path) -> dict[str, Any]:
    """The report for machines."""
    return {
        "schema_version": SCHEMA_VERSION,
        "root": str(root),
        "training_logs": report.training,
        "loadgen_runs": report.inference,
        "errors": report.errors,
        "warnings": report.warnings,
        "findings": [_to_json(finding) for finding in report.findings],
    }


def _to_json(finding: Finding) -> dict[str, Any]:
    told = {**dataclasses.asdict(finding), "path": str(finding.path), "text": one_line(finding.text)}
    if not told["also"]:
        del told["also"]
    return told


def _below(finding: Finding, root: Path) -> str:
    try:
        path = str(finding.path.relative_to(root)) or "."
    except ValueError:
        path = str(finding.path)
    return one_line(path if finding.line is None else f"{path}:{finding.line}")


def made_up(labels: Any) -> list[str]:
    """Those of a result's labels by which its data or model are no real ones."""
    said = map(str, labels if isinstance(labels, list | tuple) else ())
    return [label for label in said if re.search(r"\b(fake|synthetic|random|mini)\b", label, re.IGNORECASE)]


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def listed(names: Sequence[Any], most: int = 5) -> str:
    """The first of `names`, and how many more there are."""
    shown = ", ".join(map(str, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
