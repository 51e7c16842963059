"""Prepared data sets on disk: a folder of files and the manifest that describes them.

A folder appears under its name only when it is whole: it is built beside it and renamed. The
manifest holds the size and SHA-256 of every file; sizes are compared whenever a set is opened,
hashes when the user asks for it (`prepare --verify`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import shutil
import struct
import tokenize
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import progress
from input_pipelines.base import Spec
from mlperf_jax.errors import UserError
from mlperf_jax.regular import read_regular

SCHEMA_VERSION = 1
AGAIN = "prepare it again (--prepare, or python -m mlperf_jax.prepare)."
_MANIFEST = "manifest.json"
_MOST_TOLD = 300

NPY_DAMAGE = (
    OSError, ValueError, EOFError, LookupError, TypeError, OverflowError, MemoryError, RuntimeError,
    struct.error, tokenize.TokenError,
)  # fmt: skip
"""What NumPy raises where a file of arrays is damaged."""

_COUNTS = ("num_train", "num_eval", "num_pairs", "length")


class Manifest(dict[str, Any]):
    """What a prepared folder says of itself; what it lacks is a UserError that names the file."""

    def __init__(self, facts: Mapping[str, Any], path: Path) -> None:
        super().__init__(facts)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self._path} lacks {key}, so it is damaged; {AGAIN}")


def prepare_folder(
    folder: Path,
    build: Callable[[Path], dict[str, Any]],
    *,
    verify: bool = False,
    wanted: Collection[str] = (),
) -> Manifest:
    """Returns the manifest of `folder`, building it first unless it is there and sound.

    Safe when several processes call it at once, and after any of them was killed half-way: one
    builds, the others wait; what an earlier one left unfinished is cleared away.

    Args:
        folder: where the data set shall be.
        build: writes the files into the empty folder it is given, and returns the facts for the
            manifest (`name`, `fake`, `num_train`, `num_eval`, ...).
        verify: hash the files of a folder that is there already.
        wanted: files that the folder must have, which an earlier version may not have written; without one of
            them it is built again.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    with _sentences_for_disks(folder), locked(folder):
        with contextlib.suppress(UserError):
            manifest = read_manifest(folder, verify=verify)
            if manifest["files"].keys() >= set(wanted):
                return manifest
        _remove(partial)
        _remove(old)
        partial.mkdir()
        try:
            _write_manifest(partial, build(partial))
            if folder.exists():  # Damaged, or written by another version.
                folder.rename(old)
            partial.rename(folder)
        finally:
            _remove(partial)
            _remove(old)
        return read_manifest(folder)


def prepare_fake(
    folder: Path, write: Callable[[Path, int, int], None], num_train: int, *, verify: bool = False
) -> None:
    """Prepares a made-up set, of which an eighth as many examples are for evaluation.

    Args:
        folder: as for `prepare_folder`.
        write: (folder, num_train, num_eval) writes the files.
        num_train: how many train examples.
        verify: as for `prepare_folder`.

    Raises:
        UserError: as `prepare_folder`.
    """
    num_eval = max(1, num_train // 8)

    def build(empty: Path) -> dict[str, Any]:
        with progress.step(f"making up {num_train:,} train and {num_eval:,} eval examples"):
            write(empty, num_train, num_eval)
        return {"name": folder.name, "fake": True, "num_train": num_train, "num_eval": num_eval}

    prepare_folder(folder, build, verify=verify)


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder in `folder` for temporary files, until the block ends."""
    scratch = folder / "scratch"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def one_line(error: Exception) -> str:
    """What an error says, of bytes that it quotes the beginning."""
    return " ".join(str(error)[:_MOST_TOLD].split()) or type(error).__name__


def read_manifest(folder: Path, *, verify: bool = False) -> Manifest:
    """Returns the manifest of a prepared folder after comparing its files with it.

    Args:
        verify: compare hashes too, not only sizes.

    Raises:
        UserError: the folder is not there, or something in it is not as the manifest says.
    """
    path = folder / _MANIFEST
    try:
        manifest = Manifest(json.loads(read_regular(path)), path)
        version = manifest["schema_version"]
        files = {name: (facts["bytes"], facts["sha256"]) for name, facts in manifest["files"].items()}
    except FileNotFoundError:
        raise UserError(
            f"There is no prepared data set in {folder}; prepare it (--prepare, or python -m mlperf_jax.prepare)."
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); {AGAIN}") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version!r} where this program reads {SCHEMA_VERSION}; {AGAIN}"
        )
    for name in _COUNTS:
        count = manifest.get(name, 1)
        if type(count) is not int or not 0 < count < 2**40:
            raise UserError(f"{path} is damaged ({name} is no count); {AGAIN}")
    with progress.step(f"verifying {folder}", len(files), "files") as advance:
        for name, (size, sha256) in files.items():
            _check_file(folder, name, size, sha256 if verify else None)
            advance(1)
    return manifest


def _check_file(folder: Path, name: str, size: int, sha256: str | None) -> None:
    path = folder / name
    try:
        inside, there = path.resolve().is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, a zero byte
        raise UserError(f"{folder / _MANIFEST} names what is no file ({one_line(error)}); {AGAIN}") from None
    if not inside:
        raise UserError(f"{folder / _MANIFEST} names {name!r}, which is outside its folder; {AGAIN}")
    if not there:
        raise UserError(f"{path} is missing; {AGAIN}")
    if path.stat().st_size != size:
        raise UserError(f"{path} has {path.stat().st_size} bytes where its manifest says {size}; {AGAIN}")
    if sha256 and sha256_of(path) != sha256:
        raise UserError(f"{path} does not have the SHA-256 in its manifest; {AGAIN}")


def save_arrays(folder: Path, split: str, fields: Mapping[str, np.ndarray]) -> None:
    """Writes the fields of a split, each into an .npy file."""
    for name, values in fields.items():
        np.save(folder / f"{split}_{name}.npy", values, allow_pickle=False)


def open_arrays(folder: Path, split: str, count: int, spec: Spec) -> dict[str, np.ndarray]:
    """Maps what `save_arrays` wrote into memory: fields of `count` examples.

    Raises:
        UserError: as `open_array`.
    """
    return {
        name: open_array(folder / f"{split}_{name}.npy", (count, *shape), dtype)
        for name, (shape, dtype) in spec.items()
    }


def open_array(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Maps an .npy file of a prepared set into memory.

    Raises:
        UserError: it cannot be read, or is of another shape or dtype.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except NPY_DAMAGE as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); {AGAIN}") from None
    if array.shape != shape or array.dtype != dtype:
        raise UserError(f"{path} holds {array.dtype} {array.shape} where {dtype} {shape} belongs; {AGAIN}")
    return array


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {}
    with progress.step("hashing what was prepared", len(paths), "files") as advance:
        for path in paths:
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            advance(1)
    manifest = {"schema_version": SCHEMA_VERSION, **facts, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder; the kernel gives it back however the process ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _sentences_for_disks(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk is full at {where}, so {folder} was not prepared; "
                "free some space or use another --data_dir."
            ) from None
        raise UserError(
            f"{folder} cannot be written ({error.strerror}: {where}); use another --data_dir."
        ) from None


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
