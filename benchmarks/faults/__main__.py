"""Tries faults, and counts how many were survived.

    python -m benchmarks.faults                                  all kinds, some minutes
    python -m benchmarks.faults --kinds=partners,disk --record=benchmarks/faults.json

kills: one of four processes killed at random moments. partners: such as do not come, or do not fit. disk: full, at
every place where a command writes. memory: limits of the address space, and numbers that no memory holds. flips: a bit
in what runs leave. parsers: damaged files. systems: systems under test that misbehave.

A fault is survived where a command ends in time with one sentence and status 2 (and, where it was training, the same
command then finishes with the figures of an undisturbed run), a reader refuses with the error that it promises, and
a run of the load generator is INVALID or refused. Exit status: 0 all were survived, 1 some were not.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.faults import processes, readers, shortages, systems
from benchmarks.faults.fault import Fault
from mlperf_jax import cli
from mlperf_jax.errors import UserError

KINDS: dict[str, Callable[[Path, random.Random], Iterator[Fault]]] = {
    "kills": processes.kills,
    "partners": processes.partners,
    "disk": shortages.disk,
    "memory": shortages.memory,
    "flips": readers.flips,
    "parsers": readers.parsers,
    "systems": systems.systems,
}
FLAGS = cli.define(
    cli.text("kinds", "Only these, separated by commas."),
    cli.text("record", "Write what was found to this JSON file."),
    cli.integer("seed", "Of moments, bits and damages."),
    cli.HELP,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run(_command, argv)


def _command(arguments: list[str]) -> int:
    cli.parse_flags(FLAGS, arguments)
    if FLAGS.help:
        print(cli.help_text(__doc__, FLAGS))
        return 0
    kinds = FLAGS.kinds.split(",") if FLAGS.kinds else list(KINDS)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"There is no kind {unknown[0]!r} of faults; there are {', '.join(KINDS)}.")
    rows = []
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix=f"faults-{kind}-") as folder:
            row = _try_kind(kind, Path(folder))
        rows.append(row)
        print(
            f"{kind:9} {row['tried']:5} tried {row['survived']:5} survived {row['seconds']:7.0f} s",
            flush=True,
        )
    total = {name: sum(row[name] for row in rows) for name in ("tried", "survived", "seconds")}
    print(f"{'all':9} {total['tried']:5} tried {total['survived']:5} survived {total['seconds']:7.0f} s")
    if FLAGS.record:
        _record(Path(FLAGS.record), rows)
    return int(total["survived"] < total["tried"])


def _record(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the rows, each with what it was found by; kinds that were tried apart keep theirs."""
    found_by = {
        "command": records.command("faults"),
        "machine": records.machine() | {"processor": records.machine_in_words()},
        "versions": records.versions("jax", "jaxlib", "orbax-checkpoint", "numpy"),
    }
    known = json.loads(path.read_text())["kinds"] if path.exists() else []
    by_kind = {row["kind"]: row for row in known} | {row["kind"]: {**row, **found_by} for row in rows}
    kinds = [by_kind[kind] for kind in KINDS if kind in by_kind]
    total = {name: sum(row[name] for row in kinds) for name in ("tried", "survived")}
    records.write(path, {"kinds": kinds, "total": total})


def _try_kind(kind: str, folder: Path) -> dict[str, Any]:
    begin, tried, lost = time.monotonic(), 0, []
    drawn = random.Random(f"{kind} {FLAGS.seed}")
    for fault in KINDS[kind](folder / "work", drawn):
        tried += 1
        try:
            why = fault.happens()
        except Exception as error:  # of the attempt: what it brought about went further than it looks
            why = f"{type(error).__name__}: {error}"
        if why:
            lost.append({"what": fault.what, "why": why[:400]})
            print(f"  not survived: {kind}, {fault.what}: {why[:400]}", file=sys.stderr, flush=True)
    seconds = round(time.monotonic() - begin, 1)
    return {
        "kind": kind,
        "tried": tried,
        "survived": tried - len(lost),
        "seconds": seconds,
        "not_survived": lost,
    }


if __name__ == "__main__":
    sys.exit(main())
