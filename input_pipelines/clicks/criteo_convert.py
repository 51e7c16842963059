"""Converts Criteo's days of text into the binary files of MLPerf's DLRM.

The result is that of the reference (facebookresearch/dlrm, data_utils.py and data_loader_terabyte.py,
called as bench/run_and_time.sh calls them), with its seed 123, in another way that needs less memory:

  parse       each day by itself: text -> 40 int32 an example. A missing value is 0, a negative number
              becomes 0, a category is its hexadecimal value modulo 40,000,000. Beside it: which
              categories there are, in the order in which they appear.
  vocabulary  a category's row in its table is its place in the order of first appearance, days 0 to 23.
  plan        of days 0 to 22 which example goes to which of 23 buckets, and how each is permuted; see
              `criteo_order`.
  distribute  each day by itself: categories -> rows, and each example to its bucket. Day 23 is neither
              distributed nor permuted: its first half is the test set, the second the val set.
  permute     each bucket by itself, to its place in the train set.

Each step of each day leaves a file that appears under its name when it is whole; a conversion that
was ended goes on after the last of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any

import numpy as np

from input_pipelines import prepared, progress
from input_pipelines.clicks import criteo_format, criteo_text
from input_pipelines.clicks.criteo_format import FILES, FIRST_TABLE, INTS, NUM_TABLES
from input_pipelines.clicks.criteo_order import Plan, make_plan
from mlperf_jax.errors import UserError

_BYTES = 4 * INTS


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is converted, and with how much.

    Attributes:
        num_days: the last is for evaluation.
        modulus: of the hashed categories.
        table_sizes: rows that the tables shall come out with; empty where that is not known.
        counts: examples that days but the last, and the last one, shall have; empty where not known.
        num_workers: days parsed or distributed at once; each takes about 2 GB and shares 4 GB.
        part_bytes: of a bucket that is permuted, how much is in memory at once.
        chunk_bytes: of text or examples, how much is worked on at once.
    """

    num_days: int = 24
    modulus: int = 40_000_000
    table_sizes: tuple[int, ...] = criteo_format.COLUMNS.table_sizes
    counts: tuple[int, ...] = (criteo_format.NUM_TRAIN, 178_274_637)
    num_workers: int = max(1, min(os.cpu_count() or 1, 4))
    part_bytes: int = 8 * 10**9
    chunk_bytes: int = 2**25


def convert(raw: Path, folder: Path, spec: Spec | None = None) -> None:
    """Writes the three files of `criteo_format.FILES`, in under 16 GB of memory.

    Takes 1.4 TB on the disk at most, 0.7 TB of them for good.

    Args:
        raw: holds day_0 to day_23, with or without .gz.
        folder: where the files shall be; `.convert` in it holds what is half done.
        spec: MLPerf's by default.

    Raises:
        UserError: a day is missing or damaged, or the disk is full.
    """
    spec = spec or Spec()
    work = folder / ".convert"
    try:
        with prepared.locked(work):
            work.mkdir(exist_ok=True)
            _convert(raw, folder, work, spec)
            shutil.rmtree(work)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be read or written ({error.strerror}), so the conversion "
            "stopped; mend that and run this again, it goes on where it was."
        ) from None


def _convert(raw: Path, folder: Path, work: Path, spec: Spec) -> None:
    days, buckets = range(spec.num_days), range(spec.num_days - 1)
    if not (work / "plan.npz").exists():
        sources = [_day_file(raw, day) for day in days]
        _each(_parse_day, [(source, work, day, spec) for day, source in enumerate(sources)], "parsed", spec)
        counts = [(work / f"day_{day}").stat().st_size // _BYTES for day in days]
        _check_counts(raw, work, counts, spec)
        _each(
            _write_vocabulary, [(work, table, spec) for table in range(NUM_TABLES)], "collected table", spec
        )
        _check_tables(work, spec)
        _save(work / "plan.npz", make_plan(counts).save)
    plan = Plan.load(work / "plan.npz")
    _each(_distribute_day, [(work, day, plan, spec) for day in days], "distributed", spec)
    for day in days:
        (work / f"day_{day}").unlink(missing_ok=True)
    _each(
        _permute_bucket, [(work, bucket, plan, spec) for bucket in buckets], "permuted", spec, num_workers=1
    )
    np.savez_compressed(folder / "day_fea_count.npz", counts=np.array(_table_sizes(work), np.int32))
    for name in ("test", "val", "train"):  # The train set last: it is what tells that all is there.
        if (work / FILES[name]).exists():
            (work / FILES[name]).replace(folder / FILES[name])


def _check_counts(raw: Path, work: Path, counts: Sequence[int], spec: Spec) -> None:
    found = (sum(counts[:-1]), counts[-1])
    if spec.counts and spec.counts != found:
        raise UserError(
            f"{raw} has {found[0]:,} train and {found[1]:,} other examples where Criteo 1TB has "
            f"{spec.counts[0]:,} and {spec.counts[1]:,}; get the whole days, remove {work} and run this again."
        )


def _check_tables(work: Path, spec: Spec) -> None:
    found = _table_sizes(work)
    if spec.table_sizes and spec.table_sizes != found:
        raise UserError(
            f"The tables come out with {found} rows where MLPerf's have {spec.table_sizes}; "
            f"get Criteo's original days, remove {work} and run this again."
        )


def _table_sizes(work: Path) -> tuple[int, ...]:
    return tuple(len(np.load(work / f"vocabulary_{table}.npy", mmap_mode="r")) for table in range(NUM_TABLES))


def _day_file(raw: Path, day: int) -> Path:
    for path in (raw / f"day_{day}", raw / f"day_{day}.gz"):
        if path.is_file():
            return path
    raise UserError(f"{raw / f'day_{day}.gz'} is missing; put all of Criteo's days there.")


def _each(
    step: Callable[..., None],
    tasks: Sequence[tuple[Any, ...]],
    done: str,
    spec: Spec,
    *,
    num_workers: int = 0,
) -> None:
    """Runs a step for each of its tasks, some at once, and says how many are done."""
    num_workers = num_workers or spec.num_workers
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        if num_workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(futures.ProcessPoolExecutor(num_workers, context, _end_with_parent))
            running = [pool.submit(step, *task) for task in tasks]
            stack.callback(pool.shutdown, cancel_futures=True)
            results: Iterable[Any] = (future.result() for future in futures.as_completed(running))
        else:
            results = itertools.starmap(step, tasks)
        for count, _ in enumerate(results, start=1):
            seconds = time.monotonic() - started
            print(f"{done} {count} of {len(tasks)} after {seconds:,.0f} s", flush=True)


def _end_with_parent() -> None:
    """Ends this worker when the process that it works for is killed, so that no two write the same file."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to; what was written appears under `path` when the block ends well."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    partial.replace(path)


def _save(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    with _whole(path) as partial, open(partial, "wb") as file:
        write(file)


def _parse_day(source: Path, work: Path, day: int, spec: Spec) -> None:
    target = work / f"day_{day}"
    if target.exists():
        return
    seen = np.zeros((NUM_TABLES, spec.modulus), np.bool_)
    found: list[list[np.ndarray]] = [[] for _ in range(NUM_TABLES)]
    done = 0
    with (
        progress.step(f"parsing day {day}", unit="examples") as advance,
        _whole(target) as partial,
        open(partial, "wb") as out,
    ):
        for text in criteo_text.whole_lines(source, spec.chunk_bytes):
            try:
                examples = criteo_text.parse(text, spec.modulus)
            except ValueError as error:
                raise UserError(f"{source}, after example {done:,}: {error}; get the day again.") from None
            out.write(examples.tobytes())
            done += len(examples)
            advance(len(examples))
            for table, values in enumerate(examples[:, FIRST_TABLE:].T):
                found[table].append(_first_seen(values, seen[table]))
        if not done:
            raise UserError(f"{source} is empty; get the day again.")
        categories = {str(table): np.concatenate(parts) for table, parts in enumerate(found)}
        _save(work / f"categories_{day}.npz", lambda file: np.savez(file, allow_pickle=False, **categories))


def _first_seen(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns the values not seen before, once each, in the order of their appearance, and marks them."""
    new = values[~seen[values]]
    _, places = np.unique(new, return_index=True)
    first = new[np.sort(places)]
    seen[first] = True
    return first


def _write_vocabulary(work: Path, table: int, spec: Spec) -> None:
    """Writes the categories of a table in the order of their rows, and each category's row."""
    target = work / f"vocabulary_{table}.npy"
    if target.exists():
        return
    seen = np.zeros(spec.modulus, np.bool_)
    parts = []
    for day in range(spec.num_days):
        with np.load(work / f"categories_{day}.npz") as found:
            parts.append(_first_seen(found[str(table)], seen))
    categories = np.concatenate(parts)
    rows = np.zeros(spec.modulus, np.int32)
    rows[categories] = np.arange(len(categories), dtype=np.int32)
    _save(work / f"rows_{table}.npy", lambda file: np.save(file, rows))
    _save(target, lambda file: np.save(file, categories))


def _examples(path: Path) -> np.ndarray:
    return np.memmap(path, "<i4", mode="r").reshape(-1, INTS)


def _distribute_day(work: Path, day: int, plan: Plan, spec: Spec) -> None:
    """Turns a day's categories into rows and writes each example to its place in its bucket."""
    done = work / f"distributed_{day}"
    if done.exists():
        return
    rows = [np.load(work / f"rows_{table}.npy", mmap_mode="r") for table in range(NUM_TABLES)]
    examples = _examples(work / f"day_{day}")
    num_days, last = len(plan.counts), day == len(plan.counts) - 1
    if not last:
        buckets, places = plan.buckets(day), plan.begins[day].copy()
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(progress.step(f"distributing day {day}", len(examples), "examples"))
        names = [FILES["test"], FILES["val"]] if last else [f"bucket_{b}" for b in range(num_days - 1)]
        files = [stack.enter_context(open(_touched(work / name), "r+b")) for name in names]
        step = max(1, spec.chunk_bytes // _BYTES)
        for start in range(0, len(examples), step):
            chunk = np.array(examples[start : start + step])
            for table in range(NUM_TABLES):
                chunk[:, FIRST_TABLE + table] = rows[table][chunk[:, FIRST_TABLE + table]]
            if last:
                _write_halves(files, chunk, start, -(-len(examples) // 2))
            else:
                _write_buckets(files, chunk, buckets[start : start + step], places)
            advance(len(chunk))
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    done.touch()


def _touched(path: Path) -> Path:
    path.touch()
    return path


def _write_halves(files: Sequence[io.BufferedRandom], chunk: np.ndarray, start: int, half: int) -> None:
    first = chunk[: max(0, half - start)]
    for file, part, place in (
        (files[0], first, start),
        (files[1], chunk[len(first) :], start + len(first) - half),
    ):
        if len(part):
            file.seek(place * _BYTES)
            file.write(part.tobytes())


def _write_buckets(
    files: Sequence[io.BufferedRandom], chunk: np.ndarray, buckets: np.ndarray, places: np.ndarray
) -> None:
    """Writes examples after those that are in their buckets, and moves the places on."""
    ordered = chunk[np.argsort(buckets, kind="stable")]
    counts = np.bincount(buckets, minlength=len(files))
    for bucket, part in enumerate(np.split(ordered, np.cumsum(counts)[:-1])):
        files[bucket].seek(int(places[bucket]) * _BYTES)
        files[bucket].write(part.tobytes())
    places += counts


def _permute_bucket(work: Path, bucket: int, plan: Plan, spec: Spec) -> None:
    """Writes a permuted bucket to its place in the train set.

    The bucket is read from end to end for each part of the result that fits into memory: reading it
    at random places would take days.
    """
    done = work / f"permuted_{bucket}"
    if done.exists():
        return
    examples = _examples(work / f"bucket_{bucket}")
    order = plan.permutation(bucket)
    place = np.empty(len(order), np.uint32)
    place[order] = np.arange(len(order), dtype=np.uint32)
    del order
    first = int(plan.counts[:bucket].sum())
    part_size, step = max(1, spec.part_bytes // _BYTES), max(1, spec.chunk_bytes // _BYTES)
    with open(_touched(work / FILES["train"]), "r+b") as out:
        for begin in range(0, len(examples), part_size):
            part = np.empty((min(part_size, len(examples) - begin), INTS), "<i4")
            for start in range(0, len(examples), step):
                here = place[start : start + step].astype(np.int64) - begin
                mine = np.flatnonzero((here >= 0) & (here < len(part)))
                part[here[mine]] = examples[start : start + step][mine]
            out.seek((first + begin) * _BYTES)
            out.write(part.data)
        out.flush()
        os.fsync(out.fileno())
    done.touch()
    (work / f"bucket_{bucket}").unlink()
