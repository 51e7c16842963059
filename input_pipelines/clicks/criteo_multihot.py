"""Criteo 1TB with synthetic multi-hot look-ups, as MLPerf's DLRM-DCNv2 reads it.

In the layout of the reference (facebookresearch/dlrm, torchrec_dlrm): DATA_DIR/criteo_multihot (or
DATA_DIR itself) holds for each day N of 0 to 23
  day_N_dense.npy               [n, 13] float32, log(x + 3) already taken
  day_N_labels.npy              [n, 1] int32
  day_N_sparse_multi_hot.npz    "0.npy" to "25.npy", each [n, look-ups] int32, stored uncompressed
Days 0 to 22 are the 4,195,197,692 train examples, in an order that the rules fix: they were shuffled
when they were written, and are read from the first to the last. The first half of day 23, 89,137,319
examples, is for evaluation.

Where only the reference's one-hot files are there (day_N_sparse.npy, [n, 26] int32, in
DATA_DIR/criteo_onehot beside dense and labels), `prepare` makes the look-ups from them, as the
reference's materialize_synthetic_multihot_dataset.py does: the first look-up of a table is the
example's own row, the others are drawn once for each row of the table.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, prepared, progress
from input_pipelines.clicks import click_logs
from input_pipelines.clicks.criteo_format import NUM_EVAL, NUM_TRAIN
from mlperf_jax.errors import UserError

NUM_DAYS = 24
COLUMNS = click_logs.Columns(
    num_dense=13,
    table_sizes=(
        40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10, 2209, 11938,
        155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
    ),
    multi_hot_sizes=(3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1),
)  # fmt: skip
_FAKE_DAYS = 3
_ROWS_AT_ONCE = 2**18

FAKE_BYTES = 700


class DayRows:
    """`click_logs.Rows` of a day in the reference's layout.

    Args:
        folder, day: which.
        columns: of the examples.

    Raises:
        UserError: a file is missing, damaged, or of other shapes.
    """

    def __init__(self, folder: Path, day: int, columns: click_logs.Columns) -> None:
        self._name, self._columns = f"{folder}/day_{day}", columns
        self._rows = columns.rows.view(np.uint32)
        self._label = _open(folder / f"day_{day}_labels.npy", 1, np.int32)
        self._dense = _open(folder / f"day_{day}_dense.npy", columns.num_dense, np.float32)
        self._sparse = _open_tables(folder / f"day_{day}_sparse_multi_hot.npz", columns.multi_hot_sizes)
        lengths = {len(array) for array in (self._label, self._dense, *self._sparse)}
        if len(lengths) != 1:
            raise UserError(f"The files {self._name}_* have different numbers of examples; get them again.")

    def __len__(self) -> int:
        return len(self._label)

    def read(self, start: int, stop: int, out: base.HostBatch) -> None:
        """As `click_logs.Rows`; like the reference, it takes rows modulo the tables' sizes."""
        label = self._label[start:stop, 0]
        out["label"][:] = label
        out["dense"][:] = self._dense[start:stop]
        place = 0
        for indices, width in zip(self._sparse, self._columns.multi_hot_sizes, strict=True):
            out["sparse"][:, place : place + width] = indices[start:stop]
            place += width
        outside = (out["sparse"].view(np.uint32) >= self._rows).any()
        if (
            (label.view(np.uint32) > 1).any()
            or (outside and (out["sparse"] < 0).any())
            or not np.isfinite(out["dense"]).all()
        ):
            raise UserError(
                f"{self._name}_*, examples {start:,} to {stop:,}, has impossible numbers; get it again."
            )
        if outside:  # Divisions are slow, and MLPerf's own files need none.
            np.remainder(out["sparse"], self._columns.rows, out=out["sparse"])


class Joined:
    """`click_logs.Rows` one after the other."""

    def __init__(self, parts: Sequence[click_logs.Rows]) -> None:
        self._parts = parts
        self._begins = [0, *itertools.accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._begins[-1]

    def read(self, start: int, stop: int, out: base.HostBatch) -> None:
        for part, begin, end in zip(self._parts, self._begins, self._begins[1:], strict=False):
            low, high = max(start, begin), min(stop, end)
            if low < high:
                here = {name: array[low - start : high - start] for name, array in out.items()}
                part.read(low - begin, high - begin, here)


class FirstHalf:
    """The first half of `click_logs.Rows`, and the middle one of an odd number."""

    def __init__(self, rows: click_logs.Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return -(-len(self._rows) // 2)

    def read(self, start: int, stop: int, out: base.HostBatch) -> None:
        self._rows.read(start, stop, out)


def _open(path: Path, width: int, dtype: type) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except prepared.NPY_DAMAGE as error:
        raise UserError(
            f"{path} cannot be read ({prepared.one_line(error)}); put a sound copy in its place."
        ) from None
    return _checked(array, path, width, dtype)


def _checked(array: np.ndarray, where: Path | str, width: int, dtype: type) -> np.ndarray:
    if array.ndim != 2 or array.shape[1] != width or array.dtype != dtype:
        wanted = f"{np.dtype(dtype)} [n, {width}]"
        raise UserError(
            f"{where} holds {array.dtype} {list(array.shape)} where {wanted} belongs; get it again."
        )
    return array


def _open_tables(path: Path, widths: Sequence[int]) -> list[np.ndarray]:
    """Maps the members of an .npz file into memory where they lie in it."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            entries = [archive.getinfo(f"{table}.npy") for table in range(len(widths))]
            arrays = [_map_member(path, file, entry) for entry in entries]
    except KeyError as error:
        raise UserError(f"{path} lacks an array ({error.args[0]}); get it again.") from None
    except (*prepared.NPY_DAMAGE, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read ({prepared.one_line(error)}); put a sound copy in its place."
        ) from None
    return [
        _checked(array, f"{path}, table {table},", width, np.int32)
        for table, (array, width) in enumerate(zip(arrays, widths, strict=True))
    ]


def _map_member(path: Path, file: io.BufferedReader, entry: zipfile.ZipInfo) -> np.ndarray:
    """Maps an .npy member of a zip.

    Raises:
        ValueError: it is compressed, cut off, or no .npy file of the size that the zip says.
    """
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise ValueError(f"{entry.filename} is compressed, so that it cannot be mapped into memory")
    # A local header has 30 bytes, of which the last four are the lengths of the name and of what follows it.
    file.seek(entry.header_offset)
    signature, name, extra = struct.unpack("<4s22xHH", file.read(30))
    begin = entry.header_offset + 30 + name + extra
    if signature != b"PK\x03\x04" or begin + entry.file_size > os.fstat(file.fileno()).st_size:
        raise ValueError(f"{entry.filename} is cut off")
    file.seek(begin)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"{entry.filename} has an unknown version of the .npy format")
    shape, fortran, dtype = read_header[version](file)
    array_begin = file.tell()
    if dtype.hasobject or fortran or min(shape, default=0) < 1:
        raise ValueError(f"{entry.filename} is no array of rows of numbers")
    if begin + entry.file_size - array_begin != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise ValueError(f"{entry.filename} has not the size of its array")
    return np.memmap(path, dtype, mode="r", offset=array_begin, shape=shape)


def open_synthetic(options: Mapping[str, Any]) -> click_logs.InMemoryClicks:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    return click_logs.open_synthetic(
        "criteo_multihot", COLUMNS.cut(options), options, num_train=NUM_TRAIN, num_eval=NUM_EVAL
    )


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> click_logs.MappedClicks:
    """Opens the days, or a made-up set in their place if the options ask for that.

    Args:
        data_dir: see the module.
        options: as in `criteo.open_dataset`.

    Raises:
        UserError: they are not there, damaged, or do not have the counts of the benchmark.
    """
    fake = options.get("fake") or 0
    columns = COLUMNS.cut(options)
    folder = _folder(data_dir, fake)
    if fake:
        prepared.read_manifest(folder)
    days = [DayRows(folder, day, columns) for day in range(_FAKE_DAYS if fake else NUM_DAYS)]
    train, evaluation = Joined(days[:-1]), FirstHalf(days[-1])
    for split, found, count in (("train", len(train), NUM_TRAIN), ("eval", len(evaluation), NUM_EVAL)):
        if not fake and found != count:
            raise UserError(
                f"{folder} has {found:,} {split} examples where MLPerf's set has {count:,}; "
                "get all of its files."
            )
    return click_logs.open_rows(
        "Criteo 1TB multi-hot",
        columns,
        train,
        evaluation,
        block=0,  # The rules forbid to shuffle again.
        fake=fake > 0,
        options=options,
    )


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Writes the made-up set, or makes multi-hot files of one-hot ones, or checks that the real set is there.

    Args:
        data_dir: see the module.
        fake: if not 0, the number of made-up train examples; an eighth as many are for evaluation.
        verify: look at every example.

    Raises:
        UserError: as `open_dataset`, or a one-hot file is damaged.
    """
    if fake == 1:
        raise UserError("The made-up set has two days to train on, so --fake must be at least 2.")
    if fake:
        prepared.prepare_fake(_folder(data_dir, fake), _write_fake, fake, verify=verify)
    elif (data_dir / "criteo_onehot").is_dir():
        materialize(data_dir / "criteo_onehot", data_dir / "criteo_multihot", range(NUM_DAYS), COLUMNS)
    dataset = open_dataset(data_dir, {"fake": fake})
    if verify:
        click_logs.verify(dataset)
    return f"{dataset.description}, in {_folder(data_dir, fake)}"


def _folder(data_dir: Path, fake: int) -> Path:
    if fake:
        return data_dir / f"criteo_multihot_fake_{fake}"
    for folder in (data_dir, data_dir / "criteo_multihot"):
        if (folder / "day_0_sparse_multi_hot.npz").is_file():
            return folder
    raise UserError(
        f"Criteo's multi-hot set is not in {data_dir}; put the reference's day_N_dense.npy, day_N_labels.npy "
        f"and day_N_sparse_multi_hot.npz into {data_dir / 'criteo_multihot'}, or its one-hot files into "
        f"{data_dir / 'criteo_onehot'} and prepare it (--prepare, or python -m mlperf_jax.prepare), or use "
        "--synthetic_data or a made-up set: `python -m mlperf_jax.prepare --workload=dlrm_dcnv2 --fake=N`, "
        "then --config.data.fake=N."
    )


def materialize(onehot: Path, folder: Path, days: Sequence[int], columns: click_logs.Columns) -> None:
    """Makes multi-hot files of one-hot ones, byte for byte those of the reference.

    Each file appears under its name when it is whole, and a day that is there is not made again.
    The tables of look-ups take 24 GB on the disk meanwhile, and are read at random places: it goes
    fast where that much memory is free.

    Args:
        onehot: holds day_N_sparse.npy, day_N_dense.npy and day_N_labels.npy.
        folder: where the multi-hot files shall be.
        days: which.
        columns: tables and how often each is looked up.

    Raises:
        UserError: a one-hot file is missing or damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo = [day for day in days if not (folder / f"day_{day}_sparse_multi_hot.npz").exists()]
    if not todo:
        return
    scratch = folder / ".tables"
    try:
        tables = list(look_up_tables(columns, scratch))
        for day in todo:
            sparse = _open(onehot / f"day_{day}_sparse.npy", len(columns.table_sizes), np.int32)
            for part in ("dense", "labels"):
                _copy(onehot / f"day_{day}_{part}.npy", folder / f"day_{day}_{part}.npy")
            _require_rows(onehot / f"day_{day}_sparse.npy", sparse)
            with progress.step(f"making the look-ups of day {day}, {len(sparse):,} examples"):
                _write_day(folder / f"day_{day}_sparse_multi_hot.npz", sparse, tables)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require_rows(path: Path, sparse: np.ndarray) -> None:
    for start in range(0, len(sparse), _ROWS_AT_ONCE):
        if sparse[start : start + _ROWS_AT_ONCE].min() < 0:
            raise UserError(f"{path} has negative rows after example {start:,}; get it again.")


def look_up_tables(columns: click_logs.Columns, scratch: Path) -> Iterator[np.ndarray]:
    """Draws the look-ups for each row of each table, [rows, look-ups] int32 in files under `scratch`.

    The stream is NumPy's legacy generator with seed 0, which NumPy keeps as it is (NEP 19).
    """
    scratch.mkdir(exist_ok=True)
    random = np.random.RandomState(0)
    for table, (size, width) in enumerate(zip(columns.table_sizes, columns.multi_hot_sizes, strict=True)):
        drawn = np.memmap(scratch / str(table), np.int32, mode="w+", shape=(size, width))
        for start in range(0, size, _ROWS_AT_ONCE):
            part = drawn[start : start + _ROWS_AT_ONCE]
            part[:, 0] = np.arange(start, start + len(part))
            part[:, 1:] = random.randint(0, size, size=(len(part), width - 1))
        yield drawn


def _write_day(path: Path, sparse: np.ndarray, tables: Sequence[np.ndarray]) -> None:
    """Writes what `np.savez` would, a piece at a time."""
    partial = path.with_name(f".{path.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for table, drawn in enumerate(tables):
            header = {"descr": "<i4", "fortran_order": False, "shape": (len(sparse), drawn.shape[1])}
            with archive.open(f"{table}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for start in range(0, len(sparse), _ROWS_AT_ONCE):
                    rows = sparse[start : start + _ROWS_AT_ONCE, table] % np.int32(len(drawn))
                    member.write(drawn[rows].tobytes())
    partial.rename(path)


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
    except FileNotFoundError:
        raise UserError(f"{source} is missing; get all the one-hot files.") from None
    partial.rename(target)


def _write_fake(folder: Path, num_train: int, num_eval: int) -> None:
    """Writes two days to train on and one of which the first half is for evaluation."""
    counts = (-(-num_train // 2), num_train // 2, 2 * num_eval)
    for day, count in enumerate(counts):
        label, numbers, rows = COLUMNS.made_up(np.random.default_rng(day), count)
        np.save(folder / f"day_{day}_labels.npy", label.astype(np.int32))
        np.save(folder / f"day_{day}_dense.npy", np.log(numbers + 3).astype(np.float32))
        places = np.cumsum(COLUMNS.multi_hot_sizes)[:-1]
        tables = {str(t): part.astype(np.int32) for t, part in enumerate(np.split(rows, places, axis=1))}
        np.savez(folder / f"day_{day}_sparse_multi_hot.npz", allow_pickle=False, **tables)
