"""Speed of every workload beside PyTorch, on the device that is here: train and predict steps, in turns.

    python -m benchmarks.run                              every row, in about ten minutes on two cores
    python -m benchmarks.run --only=resnet50,dlrm         some; the others of this machine stay as they are recorded
    python -m benchmarks.run --platform=gpu --only=dlrm --config.data.table_fraction=0.01
    python -m benchmarks.run --part=input,scaling         what lies around the step: input, loadgen, server, start, scaling
    python -m benchmarks.run --page                       measures nothing, writes README.md and its pictures from the record anew

A row is a workload that has a peer, `benchmarks/peers/<workload>.py`. Data is synthetic, models start from the same random
weights on both sides. A part has cases, and takes two to four minutes. Writes benchmarks/run.json and, from it, benchmarks/README.md and its pictures, after each row or case.
Exit status: 0 every row is measured, 1 one is not, 2 something to mend (one sentence says what).
"""

from __future__ import annotations

import datetime
import glob
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers, records
from benchmarks.speed import measure, page
from benchmarks.speed.parts import PARTS, Run, find
from benchmarks.speed.side import Spec
from mlperf_jax import cli, common_flags
from mlperf_jax import config as configs
from mlperf_jax import platform as platforms
from mlperf_jax.errors import UserError
from mlperf_jax.reporting import measured

HERE = Path(__file__).parent
ROWS = "rows"

FLAGS = cli.define(
    cli.text("part", f"Of rows, {', '.join(PARTS)}, by commas.", "rows"),
    cli.text("only", "Rows, or cases of the one part, by commas; default all."),
    cli.choice(
        "platform", platforms.PLATFORMS, "Where to run it; default the accelerator that is here, else cpu."
    ),
    common_flags.PRESET,
    cli.text("peers", "Of eager and compile, by commas; none for ours alone.", "eager,compile"),
    cli.integer("rounds", "Of each program.", 5, least=2),
    cli.number("seconds", "That a turn of the slowest side takes.", 0.4, least=0.0),
    cli.integer("seed", "Of weights and data.", 1),
    cli.text("out", "Where run.json and README.md go; default benchmarks/."),
    cli.switch("page", "Measure nothing, only write README.md and its pictures from run.json."),
    cli.HELP,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return cli.run(_command, arguments, interrupted="rows that were measured are kept")


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments, doc=__doc__)
    out = Path(FLAGS.out) if FLAGS.out else HERE
    if FLAGS.page:
        page.write(out, page.read(out))
        return 0
    parts = _parts()
    platform = FLAGS.platform or platform_here()
    spec = {
        "platform": platform,
        "preset": FLAGS.preset or configs.default_preset(platform),
        "overrides": overrides,
        "seed": FLAGS.seed,
    }
    missing = 0
    for part in parts:
        missing += (
            _measure_rows(spec, out, arguments) if part == ROWS else _measure_part(part, spec, out, arguments)
        )
    return 1 if missing else 0


def _parts() -> list[str]:
    asked = FLAGS.part.split(",")
    for part in asked:
        if part not in (ROWS, *PARTS):
            raise UserError(f"--part={part} is none of {', '.join((ROWS, *PARTS))}.")
    if FLAGS.only and len(asked) > 1:
        raise UserError("--only names rows or cases of one part; give one --part with it.")
    return asked


def _measure_rows(spec: Spec, out: Path, arguments: Sequence[str]) -> int:
    """Measures and records rows; how many are not measured."""
    rows = _chosen(peers.names(), "has no peer")
    sides = _sides(spec["platform"])

    def one(workload: str, say: measure.Say) -> measure.Record:
        return measure.measure(
            _on_a_chip(spec, workload) | {"workload": workload},
            sides,
            rounds=FLAGS.rounds,
            seconds=FLAGS.seconds,
            say=say,
        ) | {"preset": spec["preset"]}

    def keep(record: measure.Record, workload: str, row: measure.Record) -> None:
        record["systems"].setdefault(row.pop("system"), {})[workload] = row
        print("\n".join(page.in_short(workload, row)), flush=True)

    return _each(rows, one, keep, out, arguments)


def _measure_part(part: str, spec: Spec, out: Path, arguments: Sequence[str]) -> int:
    """As `_measure_rows`, of a part's cases."""
    module = find(part)
    cases = _chosen(module.CASES, f"is no case of {part}")
    with measure.folders(["here"]) as folders:
        here = {"side": "training", "folder": folders["here"]}
        with measure.workers({"here": spec | here}) as workers:
            system = workers["here"].ask("here")

    def one(case: str, say: measure.Say) -> measure.Record:
        start = time.time()
        found = module.measure_case(case, Run(spec, FLAGS.rounds, FLAGS.seconds, say))
        return {**found, "device": system["device"], "seconds": time.time() - start}

    def keep(record: measure.Record, case: str, row: measure.Record) -> None:
        record["parts"].setdefault(system["system"], {}).setdefault(part, {})[case] = row
        for panel in measured.panels({part: {case: row}}):
            print("\n".join(" | ".join(cells) for cells in panel.table[1:]), flush=True)

    return _each(cases, one, keep, out, arguments)


def _each(
    names: Sequence[str],
    one: Callable[[str, measure.Say], measure.Record],
    keep: Callable[[measure.Record, str, measure.Record], None],
    out: Path,
    arguments: Sequence[str],
) -> int:
    """Measures one after the other, and writes the record after each; how many are not measured.

    Args:
        names: of rows or cases.
        one: measures one of them, and says what it does.
        keep: puts what was found into the record.
        out: the folder of record and page.
        arguments: of the command.
    """
    missing = 0
    progress = _Progress(names)
    for name in names:
        progress.row(name)
        facts, load = _facts(arguments), os.getloadavg()
        try:
            row = one(name, progress.say)
        except measure.Failed as failed:
            missing += 1
            print(f"benchmarks.run: {name} is not measured: {failed}.", file=sys.stderr)
            continue
        row |= facts | {"load_before": load, "load_after": os.getloadavg()}
        record = page.read(out)
        keep(record, name, row)
        page.write(out, record)
    return missing


def platform_here() -> str:
    """By what the system shows, without starting anything."""
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        return "tpu"
    return "gpu" if glob.glob("/dev/nvidia[0-9]*") else "cpu"


def _chosen(known: Sequence[str], otherwise: str) -> Sequence[str]:
    """Of the rows or cases there are, those that are asked for."""
    asked = FLAGS.only.split(",") if FLAGS.only else known
    for name in asked:
        if name not in known:
            raise UserError(f"--only={name} {otherwise}; there are {', '.join(known)}.")
    return asked


def _sides(platform: str) -> list[str]:
    """The peers to measure, as far as they can be here."""
    sides = [side for side in FLAGS.peers.split(",") if side != "none"]
    for side in sides:
        if side not in measure.SIDES[1:]:
            raise UserError(f"--peers={side} is none of eager, compile and none.")
    if sides and importlib.util.find_spec("torch") is None:
        print(
            "benchmarks.run: there is no PyTorch, so ours is measured alone; "
            "pip install -e '.[parity]' -c constraints.txt brings it.",
            file=sys.stderr,
        )
        return []
    return [] if platform == "tpu" else sides


def _on_a_chip(spec: dict[str, Any], workload: str) -> dict[str, Any]:
    """Of a closed preset the share of one accelerator, as the peer's file has it; what the user says stands."""
    if spec["preset"] != "closed" or importlib.util.find_spec("torch") is None:
        return spec
    return spec | {"overrides": [*peers.find(workload).on_a_chip, *spec["overrides"]]}


def _facts(arguments: Sequence[str]) -> dict[str, Any]:
    packages = ["jax", "jaxlib", *(["torch"] if importlib.util.find_spec("torch") else [])]
    return {
        "command": shlex.join(["python", "-m", "benchmarks.run", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "machine": records.machine_in_words(),
        "python": records.machine()["python"],
        "versions": records.versions(*packages),
    }


def _commit() -> str:
    """The commit that is checked out, with a + where files differ from it; "" outside of git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    written = ("run.json", "README.md", "run_*.svg")  # by this command
    own = [f":(top,exclude)benchmarks/{name}" for name in written]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *own)
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


class _Progress:
    """Says on the standard error what is going on, and how long the rest may take by the rows so far."""

    def __init__(self, rows: Sequence[str]) -> None:
        self.rows, self.start, self.done = list(rows), time.monotonic(), -1

    def row(self, workload: str) -> None:
        self.workload, self.done = workload, self.done + 1

    def say(self, text: str) -> None:
        spent = time.monotonic() - self.start
        left = len(self.rows) - self.done
        about = f", about {spent / self.done * left / 60:.0f} min left" if self.done else ""
        where = f"{self.workload} ({self.done + 1} of {len(self.rows)})"
        print(f"{spent:4.0f} s  {where}: {text}{about}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # workers are ended on the way
    sys.exit(main())
