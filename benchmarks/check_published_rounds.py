"""Judges published rounds with what `python -m mlperf_jax.check` does, and counts its findings by rule.

    python -m benchmarks.check_published_rounds --out=benchmarks/published_checks training_results_v1.0@50619b5 ...

Each tree may be followed by "@" and the commit of mlcommons/<its name> that it is of. Writes OUT.json and the table of
OUT.md; what these have of other rounds, and what stands around the table, is kept.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import records
from mlperf_jax.judging.findings import ERROR, to_text
from mlperf_jax.judging.tree import judge_tree
from mlperf_jax.results.folders import replace_file

_OUT = flags.DEFINE_string("out", None, "Record to write, without its suffix.", required=True)


def judge(tree: str) -> dict[str, Any]:
    """What checking a tree takes, says and finds. tree: PATH[@COMMIT]."""
    path, _, commit = tree.partition("@")
    root = Path(path).absolute()
    before, begun = os.times(), time.perf_counter()
    report = judge_tree(root)
    answer = to_text(report, root)
    seconds, after = time.perf_counter() - begun, os.times()
    found: dict[str, dict[str, Counter]] = {}
    for one in report.findings:
        kind = found.setdefault(one.severity, {}).setdefault(one.rule, Counter())
        kind["findings"] += 1
        kind["places"] += 1 + len(one.also)
    return {
        "round": root.name.removeprefix("training_results_"),
        "repository": f"mlcommons/{root.name}",
        "commit": commit,
        "logs": report.training,
        "cpu_seconds": round(after.user + after.system - before.user - before.system, 1),
        "elapsed_seconds": round(seconds, 1),
        "answer_bytes": len(answer.encode()),
        "answer_lines": answer.count("\n") + 1,
        "errors": report.errors,
        "warnings": report.warnings,
        "found": found,
    }


def main(trees: list[str]) -> None:
    json_path = Path(f"{_OUT.value}.json")
    rounds = {}
    if json_path.is_file():
        rounds = {one["round"]: one for one in json.loads(json_path.read_text())["rounds"]}
    for tree in trees[1:]:
        one = judge(tree)
        rounds[one["round"]] = one
        print(
            one["round"],
            one["errors"],
            "errors",
            one["cpu_seconds"],
            "s",
            one["answer_bytes"],
            "bytes",
            flush=True,
        )
    record: dict[str, Any] = {
        "schema_version": 1,
        "command": "python -m benchmarks.check_published_rounds --out=OUT TREE@COMMIT...",
        "machine": records.machine() | {"cpu": records.machine_in_words()},
        "versions": records.versions("mlperf-logging", "numpy", "scipy"),
        "rounds": [rounds[name] for name in sorted(rounds)],
    }
    replace_file(json_path, (json.dumps(record, indent=1) + "\n").encode())
    text_path = Path(f"{_OUT.value}.md")
    text = text_path.read_text() if text_path.is_file() else ""
    replace_file(text_path, _with_table(text, _table(record["rounds"])).encode())


def _with_table(text: str, table: list[str]) -> str:
    """`text` with its first table replaced by another; at its end where it has none."""
    lines = text.splitlines()
    at = next((i for i, line in enumerate(lines) if line.startswith("|")), len(lines))
    after = itertools.dropwhile(lambda line: line.startswith("|"), lines[at:])
    return "\n".join([*lines[:at], *table, *after]) + "\n"


def _table(rounds: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| round | logs | CPU time | elapsed | answer | errors | warnings | errors by rule: findings (places) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in rounds:
        kinds = sorted(one["found"].get(ERROR, {}).items(), key=lambda kind: -kind[1]["findings"])
        told = ", ".join(f"{rule} {n['findings']:,} ({n['places']:,})" for rule, n in kinds)
        lines.append(
            f"| {one['round']} ({one['commit'][:7]}) | {one['logs']:,} | {one['cpu_seconds']} s | "
            f"{one['elapsed_seconds']} s | {one['answer_bytes'] / 1000:.0f} kB | {one['errors']:,} | "
            f"{one['warnings']:,} | {told} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(app.run(main))
