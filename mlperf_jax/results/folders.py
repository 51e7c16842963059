"""Where results go, and which run a command continues or begins.

    RESULTS/systems/<system>.json
    RESULTS[/mini]/results/<system>/<benchmark>/result_<i>.txt     what a submission holds
    RESULTS[/mini]/runs/<system>/<benchmark>/run_<i>/              everything else about run i
        config.json versions.json devices.json status.json checkpoints/ tensorboard/ lost_<n>.txt

An unfinished run is continued by the same command, a finished one is never touched again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

from mlperf_jax.errors import UserError
from mlperf_jax.nested import flatten, plain
from mlperf_jax.regular import read_regular
from mlperf_jax.results.events import move_lost, read_events

PICTURES = "pictures"
"""The folder of a run's drawn examples, PNG files, inside its own."""

SCHEMA_VERSION = 1
PRESETS = ("mini", "closed")
FINISHED = ("success", "aborted")
STATES = ("running", "stopped", "failed", *FINISHED)


def check_name(what: str, name: str) -> str:
    """`name` if it can name a folder.

    Raises:
        UserError: it cannot; `what` is what the sentence says before "name", as "system".
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", name):
        raise UserError(
            f"The {what} name {name!r} cannot name a folder; use letters, digits, '.', '_', '+' and '-'."
        )
    return name


def write_json(path: str | os.PathLike[str], obj: Mapping[str, Any]) -> None:
    """Writes `obj` with its `schema_version`; a reader sees the old file or the new, never half.

    Raises:
        UserError: the file cannot be written, with the system's reason.
    """
    text = json.dumps({"schema_version": SCHEMA_VERSION, **plain(obj)}, indent=2, allow_nan=False)
    write_bytes(Path(path), f"{text}\n".encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file; a reader sees the old one or the new, never half.

    Raises:
        UserError: the file cannot be written, with the system's reason.
    """
    with _naming(path):
        replace_file(path, content)


def replace_file(path: Path, content: bytes) -> None:
    """As `write_bytes`, for who has words of his own for what the system says (OSError)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's own mode keeps out everybody else
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
        UserError: the file is missing or damaged, or of a schema that this version does not know.
    """
    with _naming(path):
        raw = read_regular(Path(path))
    try:
        obj = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged (not JSON: {error}); restore it or move it away.") from None
    version = obj.get("schema_version") if isinstance(obj, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version {version!r} and this version of mlperf_jax reads "
            f"{SCHEMA_VERSION}; use the version that wrote it, or another --results_dir."
        )
    return obj


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the system's errors into sentences that name the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; mend that or use another --results_dir."
        ) from error


@dataclasses.dataclass
class Run:
    """One run: its files, and its status as last written.

    Attributes:
        index: `i` of run_<i> and result_<i>.txt.
        folder: the run's own folder.
        log_path: the MLPerf log.
        status: what status.json holds: `state`, `seed`, `created`, `updated`, `starts`, and whatever
            `update` was given.
    """

    index: int
    folder: Path
    log_path: Path
    status: dict[str, Any]

    @property
    def seed(self) -> int:
        return self.status["seed"]

    @property
    def finished(self) -> bool:
        return self.status["state"] in FINISHED

    @property
    def resuming(self) -> bool:
        """Whether an earlier process has worked on this run."""
        return self.status.get("starts", 1) > 1

    @property
    def checkpoint_dir(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def tensorboard_dir(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config the run was begun with."""
        return read_json(self.folder / "config.json")["config"]

    def update(self, state: str | None = None, **values: Any) -> None:
        """Writes status.json anew, with `values` added.

        Raises:
            ValueError: there is no such state.
        """
        if state is not None and state not in STATES:
            raise ValueError(f"{state!r} is none of {STATES}")
        changed = {"state": state} if state else {}
        self.status = {**self.status, **changed, **values, "updated": _now()}
        write_json(self.folder / "status.json", self.status)


class Runs:
    """The runs of one benchmark on one system under one preset.

    Args:
        results_dir: RESULTS, made when the first run begins.
        preset: "mini" or "closed"; they share no folder.
        system: a name for the machine, part of paths.
        benchmark: MLPerf's name, e.g. "resnet".

    Attributes:
        root: RESULTS[/mini], what the preset has for itself.

    Raises:
        UserError: a name cannot be a folder's.
    """

    def __init__(self, results_dir: str | os.PathLike[str], preset: str, system: str, benchmark: str) -> None:
        if preset not in PRESETS:
            raise UserError(f"There is no preset {preset!r}; use {' or '.join(PRESETS)}.")
        for what, name in (("system", system), ("benchmark", benchmark)):
            check_name(what, name)
        self.results_dir = Path(results_dir)
        self.system_path = self.results_dir / "systems" / f"{system}.json"
        self.root = self.results_dir / "mini" if preset == "mini" else self.results_dir
        self.logs = self.root / "results" / system / benchmark
        self.folder = self.root / "runs" / system / benchmark
        self._lock: int | None = None

    def all(self) -> list[Run]:
        """Every run that has a folder, by index."""
        return [self.open(i) for i in self._indices(self.folder, r"run_(\d+)")]

    def open(self, index: int) -> Run:
        """Run `index` as it stands on disk (no lock: for reading, and for processes other than 0)."""
        folder = self.folder / f"run_{index}"
        status = read_json(folder / "status.json")
        if status.get("state") not in STATES or not isinstance(status.get("seed"), int):
            raise UserError(f"{folder / 'status.json'} holds no state and seed; move {folder} away.")
        return Run(index, folder, self.logs / f"result_{index}.txt", status)

    def next(
        self,
        config: Mapping[str, Any],
        *,
        seed: int | None = None,
        versions: Mapping[str, Any] | None = None,
        devices: Mapping[str, Any] | None = None,
        may_differ: Collection[str] = (),
    ) -> Run:
        """The run to work on: the unfinished one if there is one, else a new one.

        Takes the folder's lock, which lasts until `close` or the end of the process.

        Args:
            config: the resolved config. An unfinished run is continued only under the same; one that has
                nothing to continue from (its config could not be compiled, or it failed before its first
                checkpoint) takes over the new one.
            seed: the seed asked for (None: any).
            versions, devices: what the run's folder records of software and machine.
            may_differ: dotted keys (with all below them) that a continued run may have otherwise,
                such as the layout.

        Raises:
            UserError: another process is at work here, the config differs from the unfinished
                run's, or a file cannot be read or written.
        """
        self._acquire()
        for run in self.all():
            _settle(run)
            if not run.finished:
                asked = {"config": plain(config), "seed": seed}
                differences = _differences(run, asked, may_differ) if _has_started(run) else []
                if differences and not _failed_at_once(run):
                    _refuse(run, differences)
                if differences:
                    move_lost(run.log_path, run.log_path.read_bytes(), 0, run.folder)
                if not _has_started(run):
                    self._replace_config(run, config, seed)
                run.update("running", starts=run.status.get("starts", 1) + 1)
                break
        else:
            run = self._create(config, seed)
        write_json(run.folder / "versions.json", versions or {})
        write_json(run.folder / "devices.json", devices or {})
        return run

    def choose_seed(self, base: int | None) -> int:
        """A seed no earlier run here has: the first free one from `base` up, or of the system's entropy."""
        used = {run.seed for run in self.all()}
        if base is None:
            # 31 bits: a non-negative int32, which every random generator takes.
            return next(s for s in iter(lambda: secrets.randbits(31), None) if s not in used)
        while base in used:
            base += 1
        return base

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create(self, config: Mapping[str, Any], seed: int | None) -> Run:
        taken = self._indices(self.folder, r"run_(\d+)") + self._indices(self.logs, r"result_(\d+)\.txt")
        index = max(taken, default=-1) + 1
        status = {"state": "running", "seed": self.choose_seed(seed), "starts": 1, "created": _now()}
        run = Run(index, self.folder / f"run_{index}", self.logs / f"result_{index}.txt", status)
        with _naming(run.folder):
            self.logs.mkdir(parents=True, exist_ok=True)
            # Filled beside its place and moved there: a run that exists has its config.
            building = Path(tempfile.mkdtemp(dir=self.folder, prefix=".new_run_"))
            try:
                building.chmod(0o755)
                write_json(building / "config.json", {"config": config, "seed": seed})
                write_json(building / "status.json", {**status, "updated": status["created"]})
                os.replace(building, run.folder)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
        return run

    def _replace_config(self, run: Run, config: Mapping[str, Any], seed: int | None) -> None:
        if read_json(run.folder / "config.json").get("seed") != seed:
            run.status["seed"] = self.choose_seed(seed)
        write_json(run.folder / "config.json", {"config": config, "seed": seed})

    def _indices(self, folder: Path, pattern: str) -> list[int]:
        names = os.listdir(folder) if folder.is_dir() else []
        return sorted(int(m[1]) for m in map(re.compile(pattern).fullmatch, names) if m)

    def _acquire(self) -> None:
        if self._lock is not None:
            return
        with _naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(
                f"Another process is running in {self.folder}; wait for it, or use another --results_dir."
            ) from None
        except OSError:
            pass  # a file system without locks (some network ones): one run at a time is the user's care
        self._lock = handle


def _settle(run: Run) -> None:
    """Mends a status that a killed process left behind its own log: the log's run_stop is the truth."""
    if run.finished or not run.log_path.exists():
        return
    try:
        stops = [event for event in read_events(run.log_path) if event.key == "run_stop"]
    except UserError:
        return  # a torn last line: the log is cut back when the run continues
    if stops and stops[0].metadata.get("status") in FINISHED:
        run.update(stops[0].metadata["status"])


def _has_started(run: Run) -> bool:
    """Whether the log holds a `run_start`: from there on a run has something to lose."""
    return run.log_path.exists() and b'"key": "run_start"' in run.log_path.read_bytes()


def _failed_at_once(run: Run) -> bool:
    """Whether a run failed and left no checkpoint, so that there is nothing to lose but its log."""
    steps = run.checkpoint_dir.iterdir() if run.checkpoint_dir.is_dir() else ()
    return run.status["state"] == "failed" and not any(step.name.isdigit() for step in steps)


def _differences(run: Run, asked: Mapping[str, Any], may_differ: Collection[str]) -> list[str]:
    """Where the config that a run was begun with is not the one asked for."""
    stored = read_json(run.folder / "config.json")
    old = flatten({"config": stored.get("config"), "seed": stored.get("seed")})
    new = flatten(asked)
    return [
        f"{key.removeprefix('config.')} is {new.get(key, 'not set')!r} and was {old.get(key, 'not set')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, _ABSENT) != new.get(key, _ABSENT)
        and not any(f"{key}.".startswith(f"config.{free}.") for free in may_differ)
    ]


def _refuse(run: Run, differences: Sequence[str]) -> NoReturn:
    shown = ", ".join(differences[:8]) + (f" and {len(differences) - 8} more" if len(differences) > 8 else "")
    raise UserError(
        f"{run.folder} holds an unfinished run of another configuration ({shown}); "
        "finish it with its own flags, or use another --results_dir."
    )


_ABSENT = object()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
