"""Finds results in folders: published rounds as they are, and our own.

    ROUND/SUBMITTER/results/SYSTEM/BENCHMARK/result_<i>.txt        v0.6 on; descriptions in ../systems
    v0.5.0/SUBMITTER/.../results/SYSTEM/{entry.json,BENCHMARK/result_<i>.txt}
    RESULTS[/mini]/results/SYSTEM/BENCHMARK/result_<i>.txt         ours

Real trees are untidy: a benchmark's folder may be missing (the log then names it), logs may be packed or
have other names, and anything else may lie among them. What cannot be read is listed, never fatal.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from mlperf_jax.errors import UserError
from mlperf_jax.regular import open_regular
from mlperf_jax.rounds import training_rules
from mlperf_jax.rounds.descriptions import UNKNOWN, System, category_of, division_of, read_system
from mlperf_jax.rounds.objects import number
from mlperf_jax.rounds.scoring import Score, score_runs
from mlperf_jax.rounds.training_logs import RunLog, read_run
from mlperf_jax.rounds.training_rules import LOCAL, Benchmark

_RESULT_FILE = re.compile(r"result_.*\.txt(\.gz)?")
_OTHER_LOG = re.compile(r".*\.(log|txt|out)(\.gz)?")
_ROUND_FOLDER = re.compile(
    r"(?:training_results_|submission_training_|training_)?v(\d+\.\d+)(?:\.0)?", re.IGNORECASE
)
_LOADGEN = "mlperf_log_"  # what LoadGen's own logs begin with
_DEEPEST = 24
# Folders beside the results in which nothing is a result, and which can be huge.
NOT_RESULTS = {
    "benchmarks",
    "benchmark",
    "code",
    "src",
    "implementations",
    ".git",
    "checkpoints",
    "tensorboard",
}
_MOST_BYTES = 1 << 20
# A tree that does not name its round is of the first round that was published after its runs.
_PUBLISHED = (
    ("v0.7", "2020-09-01"),
    ("v1.0", "2021-07-01"),
    ("v1.1", "2021-12-01"),
    ("v2.0", "2022-07-01"),
    ("v2.1", "2022-12-01"),
    ("v3.0", "2023-07-01"),
    ("v3.1", "2023-12-01"),
    ("v4.0", "2024-07-01"),
    ("v4.1", "2024-12-01"),
    ("v5.0", "2025-07-01"),
    ("v5.1", "2025-12-01"),
    ("v6.0", "2026-07-01"),
    ("v6.1", "2026-12-01"),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """The runs of one benchmark on one system.

    Attributes:
        round: "v0.5" ... or "local" for runs of our own.
        division: closed, open or "unknown". category: see `descriptions.CATEGORIES`.
        submitter, system, benchmark: as the tree's folders are called.
        rules: what the rules say of the benchmark.
        logs: its runs that can be read, in order.
        description: the system.
        labels: what must be said with every figure: nothing with published ones.
    """

    path: Path
    round: str
    division: str
    category: str
    submitter: str
    system: str
    benchmark: str
    rules: Benchmark
    logs: tuple[RunLog, ...]
    score: Score
    description: System
    labels: tuple[str, ...] = ()

    @property
    def mini(self) -> bool:
        return any(label.startswith("mini") for label in self.labels)

    @property
    def title(self) -> str:
        return self.rules.title(self.round)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A file that could not be used, and why."""

    path: Path
    reason: str

    @classmethod
    def of(cls, path: Path, error: UserError) -> Self:
        """The problem that an error's sentence names."""
        return cls(path, str(error).removeprefix(f"{path} ").rstrip("."))


class Reader:
    """Reads result folders, and remembers logs that have not changed since.

    `read` again after runs have gone on costs only what is new: the live page's need.
    """

    def __init__(self) -> None:
        self._logs: dict[Path, tuple[tuple[int, int], RunLog | Problem]] = {}
        self._systems: dict[Path, System | Problem] = {}

    def read(self, roots: Iterable[Path]) -> tuple[list[Result], list[Problem]]:
        """All training results below `roots`, or in them where they are logs, in order of their paths.

        Raises:
            UserError: a root is not there.
        """
        results: list[Result] = []
        problems: dict[Path, Problem] = {}
        self._systems.clear()
        for root in roots:
            if not root.is_dir() and not root.is_file():
                raise UserError(f"{root} is no folder and no log; name one that is there.")
            root = Path(os.path.abspath(root))
            results += self._results(root, problems)
        unique = {result.path: result for result in results}
        return list(unique.values()), list(problems.values())

    def _results(self, root: Path, problems: dict[Path, Problem]) -> list[Result]:
        drafts = []
        for folder, files in result_folders(root):
            place = _place(folder, root)
            logs, failed = [], 0
            for file in files:
                log = self._log(file)
                if isinstance(log, Problem):
                    problems[file] = log
                    failed += 1
                    continue
                if log.damaged:
                    problems[file] = Problem(file, f"{log.damaged} damaged MLPerf line(s) passed over")
                logs.append(log)
            drafts.append((place, logs, failed))
        fallback = _round_of_dates([log for place, logs, _ in drafts if not place.round for log in logs])
        return [self._result(place, logs, failed, fallback, problems) for place, logs, failed in drafts]

    def _log(self, path: Path) -> RunLog | Problem:
        try:
            status = os.stat(path)
            mark = (status.st_mtime_ns, status.st_size)
            if path not in self._logs or self._logs[path][0] != mark:
                self._logs[path] = (mark, _log_or_problem(path))
        except OSError as error:
            return Problem(path, f"cannot be read ({error.strerror})")
        return self._logs[path][1]

    def _result(
        self, place: _Place, logs: list[RunLog], failed: int, fallback: str, problems: dict[Path, Problem]
    ) -> Result:
        ours = any(log.ours for log in logs)
        round_name = LOCAL if ours else place.round or _round_of_format(logs) or fallback
        told = next((log for log in logs if log.value("submission_benchmark")), None)
        name = place.benchmark or (str(told.value("submission_benchmark")) if told else UNKNOWN)
        benchmark = training_rules.benchmark_called(name)
        description = self._description(place, problems)
        division, category = _division_and_category(description, logs, ours)
        return Result(
            path=place.folder,
            round=round_name,
            division=division,
            category=category,
            submitter=_submitter(place, description, logs, ours),
            system=place.system,
            benchmark=name,
            rules=benchmark,
            logs=tuple(logs),
            score=score_runs(
                logs,
                benchmark,
                round_name,
                unreadable=failed,
                normalization=_normalization(place.folder, problems),
            ),
            description=description,
            labels=next((log.labels for log in logs if log.ours), ()),
        )

    def _description(self, place: _Place, problems: dict[Path, Problem]) -> System:
        for path in place.descriptions():
            if path not in self._systems:
                try:
                    self._systems[path] = read_system(path)
                except UserError as error:
                    self._systems[path] = Problem.of(path, error)
            found = self._systems[path]
            if isinstance(found, System):
                return found
            problems[path] = found
        return System(name=place.system)


def find_description(folder: Path) -> Path | None:
    """The file that describes the system of a result's folder, None if there is none."""
    return next(_place(folder, folder).descriptions(), None)


@dataclasses.dataclass(frozen=True)
class _Place:
    """What a result's path says. Empty is what it does not."""

    folder: Path
    round: str
    submitter: str
    system: str
    benchmark: str
    system_folder: Path
    results_folder: Path | None

    def descriptions(self) -> Iterator[Path]:
        """Where the system may be described, best first; only files that exist."""
        for entry in (self.system_folder / "entry.json", self.folder / "entry.json"):
            if entry.is_file():
                yield entry
        if self.results_folder is None:
            return
        above = self.results_folder.parent
        for folder in (above / "systems", above.parent / "systems"):
            files = (
                {_plain(path.stem): path for path in sorted(folder.glob("*.json"))} if folder.is_dir() else {}
            )
            if _plain(self.system) in files:
                yield files[_plain(self.system)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def result_folders(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Folders that hold runs, and the runs' files, in order.

    A folder of result_<i>.txt is one; a folder at RESULTS/SYSTEM/BENCHMARK without any is one if it has
    other logs. What lies below such a folder (raw logs, say) is not looked at. A root that is a log is that run
    alone.
    """
    if root.is_file():
        if not root.name.startswith(_LOADGEN):
            yield root.parent, [root]
        return
    yield from _walk(root, root.parts[-1] == "results", 0, 0)


def _walk(
    folder: Path, in_results: bool, below_results: int, depth: int
) -> Iterator[tuple[Path, list[Path]]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    names = [entry.name for entry in entries if _is(entry, os.DirEntry.is_file)]
    runs = [name for name in names if _RESULT_FILE.fullmatch(name)]
    if not runs and in_results and below_results == 2:
        runs = [name for name in names if _OTHER_LOG.fullmatch(name) and not name.startswith(_LOADGEN)]
    if runs:
        yield folder, [folder / name for name in runs]
        return
    if depth == _DEEPEST:
        return
    for entry in entries:
        if _is(entry, os.DirEntry.is_dir) and (in_results or entry.name not in NOT_RESULTS):
            inside = in_results or entry.name == "results"
            yield from _walk(folder / entry.name, inside, below_results + in_results, depth + 1)


def _is(entry: os.DirEntry[str], test: Callable[..., bool]) -> bool:
    """Links are not followed: a tree from elsewhere shall not lead out of itself."""
    try:
        return test(entry, follow_symlinks=False)
    except OSError:
        return False


def _place(folder: Path, root: Path) -> _Place:
    parts = folder.parts
    at = max((i for i, part in enumerate(parts[:-1]) if part == "results"), default=None)
    round_at = max((i for i, part in enumerate(parts) if _round_name(part)), default=None)
    if at is None:  # a system's or benchmark's folder alone was named
        known = training_rules.find_benchmark(folder.name)
        system_folder = folder.parent if known else folder
        return _Place(folder, "", "", system_folder.name, folder.name if known else "", system_folder, None)
    inside = parts[at + 1 :]
    before = parts[(round_at + 1 if round_at is not None and round_at < at else len(root.parts)) : at]
    if not before and at and round_at is None:
        before = parts[at - 1 : at]
    return _Place(
        folder=folder,
        round=_round_name(parts[round_at]) if round_at is not None else "",
        submitter=before[0] if before else "",
        system=inside[0],
        benchmark=inside[-1] if len(inside) > 1 else "",
        system_folder=Path(*parts[: at + 2]),
        results_folder=Path(*parts[: at + 1]),
    )


def named_round(folder: Path) -> str:
    """The published round of whose tree a folder is, by the tree's name; "" where none is named."""
    return next((name for part in reversed(folder.parts) if (name := _round_name(part))), "")


def _round_name(part: str) -> str:
    match = _ROUND_FOLDER.fullmatch(part)
    name = f"v{match[1]}" if match else ""
    return name if name in training_rules.ROUNDS else ""


def _round_of_format(logs: Sequence[RunLog]) -> str:
    formats = {log.format for log in logs}
    return "v0.5" if "MLPv0.5.0" in formats else "v0.6" if "MLL" in formats else ""


def _round_of_dates(logs: Sequence[RunLog]) -> str:
    starts = [log.start_ms for log in logs if log.start_ms and log.format == "MLLOG" and not log.ours]
    newest = max(starts, default=0) / 1000
    for name, day in _PUBLISHED:
        if newest < datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC).timestamp():
            return name if newest else UNKNOWN
    return UNKNOWN


def _division_and_category(description: System, logs: Sequence[RunLog], ours: bool) -> tuple[str, str]:
    logged = (
        division_of(_logged(logs, "submission_division")),
        category_of(_logged(logs, "submission_status")),
    )
    described = description.division, description.category
    # Mini and closed runs of ours share one description, so that there the log knows better.
    first, second = (logged, described) if ours else (described, logged)
    division, category = (a if a != UNKNOWN else b for a, b in zip(first, second, strict=True))
    return division, category


def _submitter(place: _Place, description: System, logs: Sequence[RunLog], ours: bool) -> str:
    """The folder that stands for who submitted; ours go by any name, so that there their logs tell."""
    names = [place.submitter, description.submitter, _logged(logs, "submission_org")]
    return next(filter(None, reversed(names) if ours else names), UNKNOWN)


def _logged(logs: Sequence[RunLog], key: str) -> str:
    return next((str(log.value(key)) for log in logs if log.value(key)), "")


def _log_or_problem(path: Path) -> RunLog | Problem:
    try:
        return read_run(path)
    except UserError as error:
        return Problem.of(path, error)


def _normalization(folder: Path, problems: dict[Path, Problem]) -> float:
    """The factor by which MLCommons scaled a score whose runs converged too fast (training_rules, "Score
    scaling"); 1 where there is none."""
    path = folder / "scaling.json"
    try:
        with open_regular(path) as file:
            factor = number(json.loads(file.read(_MOST_BYTES))["scaling_factor"])
    except FileNotFoundError:
        return 1.0
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        factor = None
    if factor is None or factor < 1:
        problems[path] = Problem(path, "is damaged (no scaling factor)")
        return 1.0
    return factor
