"""Digests of a checkpoint's files, by which a damaged one is told from a whole one before it is read.

A checkpoint is whole once `digests.json` stands in its folder, written last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlperf_jax.errors import UserError
from mlperf_jax.results.folders import read_json, write_json

NAME = "digests.json"


def seal(folder: Path) -> None:
    """Writes down the digest of every file below a folder.

    Raises:
        UserError: it cannot be written.
        OSError: a file cannot be read.
    """
    write_json(folder / NAME, {"sha256": _digests(folder)})


def damage(folder: Path) -> str:
    """What of a sealed folder is not as it was sealed, in a phrase; "" where all is."""
    try:
        known = read_json(folder / NAME).get("sha256")
        found = _digests(folder)
    except (UserError, OSError) as error:
        return f"{NAME} is missing: it was not finished" if not (folder / NAME).exists() else str(error)
    if not isinstance(known, dict):
        return f"{NAME} holds no digests"
    for name in sorted(known.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if known.get(name) != found[name]:
            return f"{name} is not what was written"
    return ""


def _digests(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file but the digests, read by as many threads as there are cores."""
    files = sorted(_files(folder))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(_digest, files)
        return {
            file.relative_to(folder).as_posix(): digest for file, digest in zip(files, digests, strict=True)
        }


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
