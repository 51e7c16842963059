"""Criteo 1TB click logs as MLPerf's DLRM reads them: 4,195,197,692 train and 89,137,319 eval examples.

In the binary format of the reference (facebookresearch/dlrm, data_loader_terabyte.py): an example is
40 int32, the label, 13 numbers and the rows of 26 tables. DATA_DIR/criteo (or DATA_DIR itself) holds
  terabyte_processed_train.bin   days 0 to 22, shuffled when they were written
  terabyte_processed_test.bin    the first half of day 23, on which the benchmark is evaluated
`criteo_convert` writes these files from the days as Criteo publishes them, which are looked for in
DATA_DIR/criteo_raw as day_0.gz to day_23.gz, or unpacked without .gz.

Training shuffles blocks of 2,048 examples: the reference shuffles batches, and that is its batch size.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, prepared, synthetic
from input_pipelines.clicks import click_logs
from mlperf_jax.errors import UserError

NUM_TRAIN, NUM_EVAL = 4_195_197_692, 89_137_319
NUM_DENSE = 13
COLUMNS = click_logs.Columns(
    num_dense=NUM_DENSE,
    table_sizes=(
        39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10, 2208, 11938,
        155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
    ),
    multi_hot_sizes=(1,) * 26,
)  # fmt: skip
INTS = 1 + NUM_DENSE + len(COLUMNS.table_sizes)
"""int32 values of an example in a file."""
FILES = {split: f"terabyte_processed_{split}.bin" for split in ("train", "test", "val")}
_SPLITS = {"train": ("train", NUM_TRAIN), "test": ("eval", NUM_EVAL)}
_BLOCK = 2048


class BinaryRows:
    """`clicks.Rows` in the reference's binary format.

    Args:
        path: the file.
        columns: tables may be smaller than the file's; rows are then taken modulo their sizes.

    Raises:
        UserError: it cannot be read, or is cut off.
    """

    def __init__(self, path: Path, columns: click_logs.Columns) -> None:
        self._path = path
        self._whole = COLUMNS.rows.view(np.uint32)
        self._rows = None if columns == COLUMNS else columns.rows
        try:
            size = path.stat().st_size
            if not size or size % (4 * INTS):
                raise UserError(
                    f"{path} has {size:,} bytes, no multiple of {4 * INTS}; it is cut off, get it again."
                )
            self._examples = np.memmap(path, "<i4", mode="r").reshape(-1, INTS)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); put a sound copy in its place."
            ) from None

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, start: int, stop: int, out: base.Batch) -> None:
        """As `clicks.Rows`; dense numbers x, which are not negative, become log(x + 1)."""
        examples = self._examples[start:stop]
        out["label"][:] = examples[:, 0]
        np.add(
            examples[:, 1 : 1 + NUM_DENSE],
            np.float32(1),
            out=out["dense"],
            dtype=np.float32,
            casting="unsafe",
        )
        with np.errstate(divide="ignore", invalid="ignore"):  # Told below.
            np.log(out["dense"], out=out["dense"])
        sparse = examples[:, 1 + NUM_DENSE :]
        if (sparse.view(np.uint32) >= self._whole).any() or not np.isfinite(out["dense"]).all():
            raise UserError(
                f"{self._path}, examples {start:,} to {stop:,}, has impossible numbers; get it again."
            )
        if self._rows is None:
            out["sparse"][:] = sparse
        else:
            np.remainder(sparse, self._rows, out=out["sparse"])


def synthetic_shapes(options: Mapping[str, Any]) -> synthetic.Shapes:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    return COLUMNS.cut(options).synthetic_shapes(num_train=NUM_TRAIN, num_eval=NUM_EVAL)


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> click_logs.MappedClicks:
    """Opens the binary files, or a made-up set in their place if the options ask for that.

    Args:
        data_dir: see the module.
        options: `fake` (int, 0): the set that `prepare --fake=N` wrote. `table_fraction` (1.0): see
            `clicks.Columns.cut`. `num_threads` (int; 0, the default, is as many as there are cores,
            at most 8): batches read at once.

    Raises:
        UserError: they are not there, or do not have the counts of the benchmark.
    """
    fake = options.get("fake") or 0
    columns = COLUMNS.cut(options)
    folder = _fake_folder(data_dir, fake) if fake else _find(data_dir)
    if fake:
        prepared.read_manifest(folder)
    rows = {}
    for file, (split, count) in _SPLITS.items():
        rows[split] = BinaryRows(folder / FILES[file], columns)
        if not fake and len(rows[split]) != count:
            raise UserError(
                f"{folder / FILES[file]} has {len(rows[split]):,} examples where MLPerf's {split} set has "
                f"{count:,}; get the whole file."
            )
    return click_logs.MappedClicks(
        columns,
        rows["train"],
        rows["eval"],
        block=_BLOCK,
        num_threads=options.get("num_threads") or min(os.cpu_count() or 1, 8),
        fake=fake > 0,
        description=description("Criteo 1TB", rows, fake=fake > 0),
    )


def description(name: str, rows: Mapping[str, click_logs.Rows], *, fake: bool) -> str:
    what = f"Fake {name} (random clicks, not MLPerf's data)" if fake else name
    return f"{what}, {len(rows['train']):,} train and {len(rows['eval']):,} eval examples"


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Writes the made-up set, or converts the raw days, or checks that the real set is there.

    Args:
        data_dir: see the module.
        fake: if not 0, the number of made-up train examples; an eighth as many are for evaluation.
        verify: look at every example.

    Raises:
        UserError: as `open_dataset`, or a raw day is damaged.
    """
    if fake:
        build = functools.partial(_write_fake, num_train=fake, num_eval=max(1, fake // 8))
        prepared.prepare_folder(_fake_folder(data_dir, fake), build, verify=verify)
    elif (data_dir / "criteo_raw").is_dir() and not _folders(data_dir):
        from input_pipelines.clicks import criteo_convert

        criteo_convert.convert(data_dir / "criteo_raw", data_dir / "criteo")
    dataset = open_dataset(data_dir, {"fake": fake})
    if verify:
        click_logs.verify(dataset)
    return f"{dataset.description}, in {_fake_folder(data_dir, fake) if fake else _find(data_dir)}"


def _folders(data_dir: Path) -> list[Path]:
    return [folder for folder in (data_dir, data_dir / "criteo") if (folder / FILES["train"]).is_file()]


def _find(data_dir: Path) -> Path:
    if folders := _folders(data_dir):
        return folders[0]
    raise UserError(
        f"Criteo 1TB is not in {data_dir}; get day_0.gz to day_23.gz from Criteo, put them into "
        f"{data_dir / 'criteo_raw'} and prepare it (--prepare, or python -m mlperf_jax.prepare), or use "
        "--preset=mini, --synthetic_data, or a made-up set: `python -m mlperf_jax.prepare --workload=dlrm "
        "--fake=N`, then --config.data.fake=N."
    )


def _fake_folder(data_dir: Path, num_train: int) -> Path:
    return data_dir / f"criteo_fake_{num_train}"


def _write_fake(folder: Path, *, num_train: int, num_eval: int) -> dict[str, Any]:
    for file, count in (("train", num_train), ("test", num_eval)):
        with open(folder / FILES[file], "wb") as out:
            for chunk, start in enumerate(range(0, count, _BLOCK)):
                random = np.random.default_rng([file == "test", chunk])
                fields = made_up(random, min(_BLOCK, count - start), COLUMNS)
                out.write(np.concatenate(fields, axis=1).astype("<i4").tobytes())
    return {"name": f"criteo_fake_{num_train}", "fake": True, "num_train": num_train, "num_eval": num_eval}


def made_up(
    random: np.random.Generator, count: int, columns: click_logs.Columns
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes up examples: label [N, 1], numbers [N, D] and rows [N, L], all int64.

    As in logs of clicks, numbers are counts of a long tail, few rows are looked up often, and one
    example in about thirty is a click; the first number tells something of it.
    """
    numbers = np.floor(np.exp(random.normal(1.0, 1.5, size=(count, columns.num_dense)))).astype(np.int64)
    rows = (columns.rows * random.random((count, len(columns.rows))) ** 4).astype(np.int64)
    chance = 1 / (1 + np.exp(4.5 - np.log1p(numbers[:, :1])))
    return (random.random((count, 1)) < chance).astype(np.int64), numbers, rows
