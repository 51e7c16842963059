"""Criteo 1TB click logs as MLPerf's DLRM reads them: 4,195,197,692 train and 89,137,319 eval examples.

In the binary format of the reference (see `criteo_format`). DATA_DIR/criteo (or DATA_DIR itself) holds
  terabyte_processed_train.bin   days 0 to 22, shuffled when they were written
  terabyte_processed_test.bin    the first half of day 23, on which the benchmark is evaluated
`criteo_convert` writes these files from the days as Criteo publishes them, which are looked for in
DATA_DIR/criteo_raw as day_0.gz to day_23.gz, or unpacked without .gz.

Training shuffles blocks of 2,048 examples: the reference shuffles batches, and that is its batch size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, prepared
from input_pipelines.clicks import click_logs, criteo_convert
from input_pipelines.clicks.criteo_format import COLUMNS, FILES, FIRST_TABLE, INTS, NUM_EVAL, NUM_TRAIN
from mlperf_jax.errors import UserError

_SPLITS = {"train": ("train", NUM_TRAIN), "test": ("eval", NUM_EVAL)}
_BLOCK = 2048

FAKE_BYTES = 150


class BinaryRows:
    """`click_logs.Rows` in the reference's binary format.

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

    def read(self, start: int, stop: int, out: base.HostBatch) -> None:
        """As `click_logs.Rows`; dense numbers x, which are not negative, become log(x + 1)."""
        examples = self._examples[start:stop]
        label = examples[:, 0]
        out["label"][:] = label
        np.add(
            examples[:, 1:FIRST_TABLE],
            np.float32(1),
            out=out["dense"],
            dtype=np.float32,
            casting="unsafe",
        )
        with np.errstate(divide="ignore", invalid="ignore"):  # Told below.
            np.log(out["dense"], out=out["dense"])
        sparse = examples[:, FIRST_TABLE:]
        if (
            (label.view(np.uint32) > 1).any()
            or (sparse.view(np.uint32) >= self._whole).any()
            or not np.isfinite(out["dense"]).all()
        ):
            raise UserError(
                f"{self._path}, examples {start:,} to {stop:,}, has impossible numbers; get it again."
            )
        if self._rows is None:
            out["sparse"][:] = sparse
        else:
            np.remainder(sparse, self._rows, out=out["sparse"])


def open_synthetic(options: Mapping[str, Any]) -> click_logs.InMemoryClicks:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    return click_logs.open_synthetic(
        "criteo", COLUMNS.cut(options), options, num_train=NUM_TRAIN, num_eval=NUM_EVAL
    )


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> click_logs.MappedClicks:
    """Opens the binary files, or a made-up set in their place if the options ask for that.

    Args:
        data_dir: see the module.
        options: `fake` (int, 0): the set that `prepare --fake=N` wrote. `table_fraction` (1.0): see
            `click_logs.Columns.cut`. `num_threads` (int; 0, the default, is as many as there are cores,
            at most 8): batches read at once.

    Raises:
        UserError: they are not there, or do not have the counts of the benchmark.
    """
    fake = options.get("fake") or 0
    columns = COLUMNS.cut(options)
    folder = _folder(data_dir, fake)
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
    return click_logs.open_rows(
        "Criteo 1TB",
        columns,
        rows["train"],
        rows["eval"],
        block=_BLOCK,
        fake=fake > 0,
        options=options,
    )


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
        prepared.prepare_fake(_folder(data_dir, fake), _write_fake, fake, verify=verify)
    elif (data_dir / "criteo_raw").is_dir() and not _real_folders(data_dir):
        criteo_convert.convert(data_dir / "criteo_raw", data_dir / "criteo")
    dataset = open_dataset(data_dir, {"fake": fake})
    if verify:
        click_logs.verify(dataset)
    return f"{dataset.description}, in {_folder(data_dir, fake)}"


def _real_folders(data_dir: Path) -> list[Path]:
    return [folder for folder in (data_dir, data_dir / "criteo") if (folder / FILES["train"]).is_file()]


def _folder(data_dir: Path, fake: int) -> Path:
    if fake:
        return data_dir / f"criteo_fake_{fake}"
    if folders := _real_folders(data_dir):
        return folders[0]
    raise UserError(
        f"Criteo 1TB is not in {data_dir}; get day_0.gz to day_23.gz from Criteo, put them into "
        f"{data_dir / 'criteo_raw'} and prepare it (--prepare, or python -m mlperf_jax.prepare), or use "
        "--preset=mini, --synthetic_data, or a made-up set: `python -m mlperf_jax.prepare --workload=dlrm "
        "--fake=N`, then --config.data.fake=N."
    )


def _write_fake(folder: Path, num_train: int, num_eval: int) -> None:
    for file, count in (("train", num_train), ("test", num_eval)):
        with open(folder / FILES[file], "wb") as out:
            for chunk, start in enumerate(range(0, count, _BLOCK)):
                random = np.random.default_rng([file == "test", chunk])
                fields = COLUMNS.made_up(random, min(_BLOCK, count - start))
                out.write(np.concatenate(fields, axis=1).astype("<i4").tobytes())
