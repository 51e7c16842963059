"""A row: three workers, one at work at a time, in turns; and what is made of their rounds."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.side import PROGRAMS, Spec

SIDES = ("ours", "eager", "compile")
LONGEST_SECONDS = 420.0
"""After which a worker is given up: unattended, a compiler that does not end must not hold up the other rows."""
_MOST_CALLS = 2000

Say = Callable[[str], None]
Record = dict[str, Any]


class Failed(Exception):
    """Why a side has no figure, in one sentence."""


class Worker:
    """A process with one side (`benchmarks.speed.worker`)."""

    def __init__(self, spec: Spec) -> None:
        command = [sys.executable, "-m", "benchmarks.speed.worker", json.dumps(spec)]
        self._said = Path(spec["folder"]) / f"{spec['side']}.log"
        # On a busy machine OpenMP's threads spin at barriers for those that were taken off a core: PyTorch's step was
        # charged with fifteen times its CPU seconds. Passive they sleep.
        cores = str(len(os.sched_getaffinity(0)))
        threads = {"OMP_NUM_THREADS": cores, "MKL_NUM_THREADS": cores, "OMP_WAIT_POLICY": "PASSIVE"}
        memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # an accelerator's is shared with the peers
        with self._said.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # with the compilers that it starts it is one group, and ends as one
                env=os.environ | threads | memory,
            )
        self.waits: list[tuple[float, float]] = []

    def start(self, do: str, **arguments: Any) -> None:
        """Gives it something to do, and does not wait."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # told by `finish`
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()

    def finish(self) -> Record:
        """What it answers.

        Raises:
            Failed: that it could not, or it has ended.
        """
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], LONGEST_SECONDS)
        if not ready:
            self.end()
            raise Failed(f"it took more than {LONGEST_SECONDS / 60:.0f} minutes")
        line = self._process.stdout.readline()
        if not line:
            last = self._said.read_text().strip().splitlines()[-1:]
            raise Failed(
                f"its process ended with status {self._process.wait()} {' '.join(last)[:160]}".strip()
            )
        answer = json.loads(line)
        self.waits.append((answer.pop("wait_cpu"), answer.pop("wait_wall")))
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def ask(self, do: str, **arguments: Any) -> Record:
        self.start(do, **arguments)
        return self.finish()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def workers(specs: Mapping[str, Spec]) -> Iterator[dict[str, Worker]]:
    """A process for each of some specs, by name, each with its `side`; all end together."""
    there: dict[str, Worker] = {}
    try:
        for name, spec in specs.items():
            there[name] = Worker(spec)
        yield there
    finally:
        for worker in there.values():
            worker.end()


@contextlib.contextmanager
def folders(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """An empty folder for each name; all are gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        made = {name: Path(scratch) / str(index) for index, name in enumerate(names)}
        for path in made.values():
            path.mkdir()
        yield {name: str(path) for name, path in made.items()}


def in_turns(
    programs: Mapping[str, tuple[Worker, str]], *, rounds: int, seconds: float, say: Say
) -> dict[str, Record]:
    """Programs of workers one after the other, each round beginning with another, a turn of at least so many seconds each.

    Args:
        programs: by name, the worker and what it calls its program; it is compiled.

    Returns:
        Of each: `wall` and `cpu`, seconds of a call, as `told`.

    Raises:
        Failed: one of them cannot.
    """
    calls = {}
    for name, (worker, program) in programs.items():
        took = worker.ask("turn", program=program, calls=1)["wall"]
        calls[name] = min(max(math.ceil(seconds / max(took, 1e-9)), 1), _MOST_CALLS)
    turns: dict[str, list[Record]] = {name: [] for name in programs}
    order = list(programs)
    for index in range(rounds):
        say(f"round {index + 1} of {rounds}")
        start = index % len(order)
        for name in order[start:] + order[:start]:
            worker, program = programs[name]
            turns[name].append(worker.ask("turn", program=program, calls=calls[name]))
    return {
        name: {figure: told([turn[figure] for turn in those]) for figure in ("wall", "cpu")}
        for name, those in turns.items()
    }


def measure(spec: Spec, peers: Sequence[str], *, rounds: int, seconds: float, say: Say) -> Record:
    """Measures a row.

    Args:
        spec: of the workers, without `side` and `folder`.
        peers: of `SIDES`, those that are there besides ours.
        rounds: of each program.
        seconds: that the slowest side's turn shall take at least.
        say: is told what is going on.

    Raises:
        Failed: our side cannot be measured.
    """
    start = time.time()
    row: Record = {"programs": {}, "not_measured": {}}
    with (
        tempfile.TemporaryDirectory() as folder,
        workers({side: spec | {"folder": folder, "side": side} for side in ("ours", *peers)}) as sides,
    ):
        say("making it")
        row |= sides["ours"].ask("prepare")
        made = _all(row, sides, "prepare", "everything", only=peers)
        sides = {side: worker for side, worker in sides.items() if side == "ours" or side in made}
        programs = [program for program in PROGRAMS if program in row["sizes"]]
        compiled = {}
        for program in programs:
            say(f"compiling {program}")
            compiled[program] = _all(row, sides, "ready", program, program=program)
        agreement = _all(row, sides, "agreement", "agreement", only=list(made))
        for program in programs:
            there = {side: sides[side] for side in compiled[program]}
            turns = _rounds(row, there, program, rounds, seconds, say)
            row["programs"][program] = summary(
                turns, compiled[program], agreement, program, row["sizes"][program]
            )
        say("its roofline")
        row |= sides["ours"].ask("costs")
        row["waiting_cores"] = max(_waiting(worker) for worker in sides.values())
    return row | {"seconds": time.time() - start}


def _all(
    row: Record,
    workers: dict[str, Worker],
    do: str,
    what: str,
    only: Sequence[str] | None = None,
    **arguments: Any,
) -> dict[str, Record]:
    """All sides at once, where nothing is measured; a peer that fails has no figure for `what`."""
    sides = [side for side in workers if only is None or side in only]
    for side in sides:
        workers[side].start(do, **arguments)
    answers = {}
    for side in sides:
        with _noting(row, side, what):
            answers[side] = workers[side].finish()
    return answers


@contextlib.contextmanager
def _noting(row: Record, side: str, what: str) -> Iterator[None]:
    """Notes why a peer cannot; where we cannot, there is no row."""
    try:
        yield
    except Failed as failed:
        if side == "ours":
            raise
        row["not_measured"].setdefault(side, {}).setdefault(what, str(failed))


def _rounds(
    row: Record, workers: Mapping[str, Worker], program: str, rounds: int, seconds: float, say: Say
) -> dict[str, list[Record]]:
    """Turns of equally many calls, one side after the other; each round begins with another side."""
    turns: dict[str, list[Record]] = {}
    # So many calls that a turn of the slowest is long enough, by a first turn that does not count.
    slowest = 0.0
    for side, worker in workers.items():
        with _noting(row, side, program):
            slowest = max(slowest, worker.ask("turn", program=program, calls=1)["wall"])
            turns[side] = []
    calls = min(max(math.ceil(seconds / slowest), 1), _MOST_CALLS)
    for index in range(rounds):
        say(f"{program}, round {index + 1} of {rounds}, {calls} calls a turn")
        order = [side for side in turns if len(turns[side]) == index]
        start = index % len(order)
        for side in order[start:] + order[:start]:
            with _noting(row, side, program):
                turns[side].append(workers[side].ask("turn", program=program, calls=calls) | {"calls": calls})
    return {side: those for side, those in turns.items() if len(those) == rounds}


def _waiting(worker: Worker) -> float:
    """CPU seconds a second while others were at work."""
    cpu, wall = (sum(wait[i] for wait in worker.waits[1:]) for i in (0, 1))
    return cpu / wall if wall else 0.0


def summary(
    turns: Mapping[str, Sequence[Record]],
    compiled: Mapping[str, Record],
    agreement: Mapping[str, Record],
    program: str,
    size: int,
) -> Record:
    """What a program's rounds say: of each side, and of each peer over ours, round by round."""
    found: Record = {"size": size, "sides": {}, "ratios": {}}
    for side, those in turns.items():
        figures = {name: quartiles([turn[name] for turn in those]) for name in ("wall", "cpu")}
        found["sides"][side] = {
            **figures,
            "per_second": size / figures["wall"]["median"],
            "peak": max(turn["peak"] for turn in those),
            "compile_seconds": compiled[side]["compile_seconds"],
            "rounds": list(those),
        }
    for side in turns:
        if side == "ours":
            continue
        ratios = {
            name: quartiles([t[name] / o[name] for t, o in zip(turns[side], turns["ours"], strict=True)])
            for name in ("wall", "cpu")
        }
        found["ratios"][side] = ratios | {"apart": agreement.get(side, {}).get(program)}
    return found


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """`median`, and `low` and `high`, between which the middle half lies."""
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high}


def told(values: Sequence[float]) -> Record:
    """The quartiles of what rounds found, and what each did."""
    return {**quartiles(values), "rounds": list(values)}
