"""Kills of one of four processes at random moments, and partners that do not come or do not fit."""

from __future__ import annotations

import functools
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.faults.fault import PATIENCE_SECONDS, TINY, Fault, environment, qualities, run, unlike

PROCESSES = 4
KILLS = 10
BOUND_SECONDS = 30  # within which all others must have ended
_LATEST_SECONDS = 12.0  # of a kill after all processes are connected
_JOIN_SECONDS = 3
_IMPATIENT = (
    "import sys; from mlperf_jax.parallel import distributed; "
    f"distributed.JOIN_SECONDS = {_JOIN_SECONDS}; "
    "from mlperf_jax.main import main; sys.exit(main(sys.argv[1:]))"
)
FOUR = (*TINY, "--config.max_epochs=12", "--results_dir=results")


class Together:
    """Processes of one run, with what they write."""

    def __init__(self, folder: Path, flags: Sequence[Sequence[str]], *, impatient: bool = False) -> None:
        start = ["-c", _IMPATIENT] if impatient else ["-P", "-m", "mlperf_jax.main"]
        self._files = [open(folder / f"said.{i}", "w+") for i in range(len(flags))]  # noqa: SIM115
        self.processes = [
            subprocess.Popen(
                [sys.executable, *start, *own], cwd=folder, env=environment(folder), stdout=file, stderr=file
            )
            for own, file in zip(flags, self._files, strict=True)
        ]

    def said(self, i: int) -> str:
        self._files[i].seek(0)
        return self._files[i].read()

    def wait(self, seconds: float = PATIENCE_SECONDS) -> list[int | None]:
        """The statuses; None of one that has not ended in time, and is killed."""
        end = time.monotonic() + seconds
        statuses: list[int | None] = []
        for process in self.processes:
            try:
                statuses.append(process.wait(max(end - time.monotonic(), 0.01)))
            except subprocess.TimeoutExpired:
                statuses.append(None)
        return statuses

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *_: object) -> None:
        for process, file in zip(self.processes, self._files, strict=True):
            process.kill()
            process.wait()
            file.close()


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _flags(count: int, common: Sequence[str], own: dict[int, Sequence[str]] | None = None) -> list[list[str]]:
    address = f"--coordinator=127.0.0.1:{_port()}"
    return [
        [*common, address, f"--num_processes={count}", f"--process_id={i}", *(own or {}).get(i, ())]
        for i in range(count)
    ]


def kills(folder: Path, random: random.Random) -> Iterator[Fault]:
    """All in one results folder, which each start continues; then the run is finished, and held against another."""
    killed = folder / "killed"
    killed.mkdir(parents=True)
    for _ in range(KILLS):
        victim, moment = random.randrange(PROCESSES), random.uniform(0, _LATEST_SECONDS)
        what = f"process {victim} of {PROCESSES} killed {moment:.1f} s after all were connected"
        yield Fault("kills", what, functools.partial(_kill, killed, victim, moment))
    yield Fault(
        "kills", "the same command after them: the figures", functools.partial(_finish, folder, killed)
    )


def _kill(folder: Path, victim: int, moment: float) -> str:
    with Together(folder, _flags(PROCESSES, FOUR)) as run:
        end = time.monotonic() + PATIENCE_SECONDS
        while not all(f"[Gloo] Rank {i} is connected" in run.said(i) for i in range(PROCESSES)):
            if time.monotonic() > end or any(p.poll() is not None for p in run.processes):
                return f"they did not connect: {run.said(0)[-300:]}"
            time.sleep(0.05)
        time.sleep(moment)
        if run.processes[victim].poll() is not None:
            return "the run was over before the kill"
        run.processes[victim].kill()
        statuses = run.wait(BOUND_SECONDS)
        for i, status in enumerate(statuses):
            if i != victim and status is None:
                return f"process {i} had not ended after {BOUND_SECONDS} s"
            if i != victim and (why := unlike(status or 0, run.said(i), stack=True)):
                return f"process {i}: {why}"
    return ""


def _finish(folder: Path, killed: Path) -> str:
    other = folder / "undisturbed"
    other.mkdir()
    for place in (killed, other):
        with Together(place, _flags(PROCESSES, FOUR)) as run:
            if (statuses := run.wait()) != [1] * PROCESSES:
                return f"statuses {statuses}: {run.said(0)[-300:]}"
    found, expected = qualities(killed / "results"), qualities(other / "results")
    return "" if found == expected else f"{found} and undisturbed {expected}"


def partners(folder: Path, random: random.Random) -> Iterator[Fault]:
    """Each must end all that are there with a sentence, soon after the time that they wait."""
    cases: dict[str, list[list[str]]] = {
        "one of three does not come": [f for i, f in enumerate(_flags(3, FOUR)) if i != 1],
        "process 0 does not come": _flags(2, FOUR)[1:],
        "two with one id": [*_flags(2, FOUR)[1:] * 2],
        "another number of processes": _flags(2, FOUR, {1: ["--num_processes=3"]}),
        "an id that is too large": _flags(2, FOUR, {1: ["--process_id=2"]}),
        "another seed": _flags(2, FOUR, {1: ["--seed=2"]}),
        "another batch": _flags(2, FOUR, {1: ["--config.batch_size=64"]}),
        "a name that nobody has": [f for f in _flags(2, FOUR, {1: ["--coordinator=nobody.invalid:1"]})],
    }
    for address in ("foo:bar", "foo", "foo:", ":1", "foo:0", "foo:70000", "::1"):
        cases[f"--coordinator={address}"] = _flags(2, FOUR, {1: [f"--coordinator={address}"]})[1:]
    for n, (what, flags) in enumerate(cases.items()):
        place = folder / f"case_{n}"
        yield Fault("partners", what, functools.partial(_refused, place, flags))
    yield Fault(
        "partners", "strangers at the port first", functools.partial(_strangers, folder / "strangers")
    )


def _refused(folder: Path, flags: list[list[str]]) -> str:
    folder.mkdir(parents=True)
    with Together(folder, flags, impatient=True) as run:
        for i, status in enumerate(run.wait(120)):
            if status is None:
                return f"process {i} had not ended"
            if why := unlike(status, run.said(i)):
                return f"process {i}: {why}"
    return ""


def _strangers(folder: Path) -> str:
    folder.mkdir(parents=True)
    flags = _flags(2, [*FOUR, "--config.max_epochs=1"])
    port = int(flags[0][-3].rpartition(":")[2])
    with Together(folder, flags[:1]) as first:
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, b""):
            end = time.monotonic() + 60
            while time.monotonic() < end and first.processes[0].poll() is None:
                try:
                    with socket.create_connection(("127.0.0.1", port)) as stranger:
                        stranger.sendall(said)
                    break
                except OSError:
                    time.sleep(0.05)
        second = run(folder, "main", *flags[1])
        statuses = [*first.wait(), second.returncode]
        return "" if statuses == [1, 1] else f"statuses {statuses}: {first.said(0)[-300:]}"
