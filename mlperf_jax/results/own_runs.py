"""What the folder of a run of ours adds to its log: configuration, software, machine, state, command, pictures."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path

from mlperf_jax.regular import open_regular
from mlperf_jax.results.folders import PICTURES
from mlperf_jax.rounds.objects import flat_texts, read_object
from mlperf_jax.rounds.training_logs import RunLog

_MOST_PICTURES, _MOST_PICTURE_BYTES = 64, 1 << 20
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class OwnRun:
    """state: of status.json. command: what repeats the run. facts: everything else, by file.
    pictures: what `--visualize` drew, PNG files' contents."""

    state: str
    command: str
    facts: dict[str, tuple[tuple[str, str], ...]]
    pictures: tuple[bytes, ...] = ()


def read_own_run(log: RunLog) -> OwnRun | None:
    """Reads runs/<system>/<benchmark>/run_<i>/ beside results/.../result_<i>.txt; None if there is none."""
    folder = run_folder(log.path) if log.ours else None
    if folder is None:
        return None
    files = {
        name: read_object(folder / f"{name}.json") for name in ("config", "versions", "devices", "status")
    }
    if not any(files.values()):
        return None
    status = files["status"]
    command = status.get("command") or files["config"].get("command") or ""
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    facts = {name: flat_texts(files[name]) for name in ("config", "versions", "devices")}
    return OwnRun(str(status.get("state", "")), str(command), facts, tuple(_pictures(folder / PICTURES)))


def _pictures(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.glob("*.png"))[:_MOST_PICTURES]:
        try:
            with open_regular(path) as file:
                content = file.read(_MOST_PICTURE_BYTES + 1)
        except OSError:
            continue
        if content.startswith(_PNG) and len(content) <= _MOST_PICTURE_BYTES:
            yield content


def run_folder(log_path: Path) -> Path | None:
    """Where the run that wrote a log keeps the rest, by the log's place; None where that is no folder."""
    parents = log_path.parents
    number = log_path.name.removeprefix("result_").split(".")[0]
    if len(parents) < 4 or not number.isdigit():
        return None
    folder = parents[3] / "runs" / parents[1].name / parents[0].name / f"run_{number}"
    return folder if folder.is_dir() else None
