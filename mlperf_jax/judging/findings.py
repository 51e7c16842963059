"""What judging finds, and how it is told."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
ERROR, WARNING = "error", "warning"
_LONGEST = 400  # characters of a text: logs of others may hold anything


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or must be known.

    Attributes:
        path: the file or folder.
        rule: its short name, the same for all findings of a kind.
        text: what is wrong, with the figures.
        mend: what to do about it.
        severity: "error", or "warning" for what does not forbid a result.
        line: number of the line, from 1; None where it is about the whole file.
    """

    path: Path
    rule: str
    text: str
    mend: str
    severity: str = ERROR
    line: int | None = None

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
        return len(self.findings) - self.errors


def make_report(findings: Iterable[Finding], training: int, inference: int) -> Report:
    """A report without repetition, in order of files and lines, errors of a line first."""
    unique = sorted(
        set(findings), key=lambda f: (str(f.path), f.line or 0, f.severity != ERROR, f.rule, f.text)
    )
    return Report(tuple(unique), training, inference)


def to_text(report: Report, root: Path) -> str:
    """The report for people, with paths below `root`, and at its end what it adds up to."""
    lines = []
    for finding in report.findings:
        lines.append(f"{_below(finding, root)}: {finding.severity} [{finding.rule}] {one_line(finding.text)}")
        lines.append(f"    {one_line(finding.mend)}")
    checked = f"{report.training} training log(s) and {report.inference} LoadGen run(s) judged"
    rules = Counter(f.rule for f in report.findings if f.severity == ERROR)
    most = ", ".join(f"{rule} {count}" for rule, count in rules.most_common(6))
    verdict = f"{report.errors} error(s), {report.warnings} warning(s)" + (f" ({most})" if most else "")
    return "\n".join([*lines, f"{checked}: {verdict}."])


def to_json(report: Report, root: Path) -> dict[str, Any]:
    """The report for machines."""
    return {
        "schema_version": SCHEMA_VERSION,
        "root": str(root),
        "training_logs": report.training,
        "loadgen_runs": report.inference,
        "errors": report.errors,
        "warnings": report.warnings,
        "findings": [
            {**dataclasses.asdict(finding), "path": str(finding.path), "text": one_line(finding.text)}
            for finding in report.findings
        ],
    }


def _below(finding: Finding, root: Path) -> str:
    try:
        path = str(finding.path.relative_to(root)) or "."
    except ValueError:
        path = str(finding.path)
    return one_line(path if finding.line is None else f"{path}:{finding.line}")


def made_up(labels: Any) -> list[str]:
    """Those of a result's labels by which its data or model are no real ones."""
    said = map(str, labels if isinstance(labels, list) else ())
    return [label for label in said if re.search(r"\b(fake|synthetic|random|mini)\b", label, re.IGNORECASE)]


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def listed(names: Sequence[Any], most: int = 5) -> str:
    """The first of `names`, and how many more there are."""
    shown = ", ".join(map(str, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
