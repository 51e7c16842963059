"""GovReport (Huang et al., arXiv:2104.02112) out of SCROLLS, as MLPerf tunes Llama 2 with it: reports and summaries in rows of 8,192 tokens.

DATA_DIR/scrolls_gov_report_8k holds the packed rows that MLCommons gives out: train*.parquet and validation*.parquet, with columns
`input_ids` and `labels`. As mlcommons/training, llama2_70b_lora/scripts/utils.py, makes them: "### Summarize the following text:\\n
{report}\\n ### Summary:\\n {summary}</s>" in tokens of Llama 2, those of more than 8,192 left out, in batches of 1,000 one behind the other,
cut into rows, what is left of a batch dropped. To train, every token is asked for; in evaluation those of summaries alone, whose labels are not
-100.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared, progress
from input_pipelines.text import told_rows
from input_pipelines.text.token_rows import TokenRows
from mlperf_jax.errors import UserError

VOCAB_SIZE = 32_000
LENGTH = 8192
NUM_TRAIN, NUM_EVAL = 3901, 173

FAKE_BYTES = 3 * LENGTH

_NOT_ASKED = -100
_FOLDER = "scrolls_gov_report_8k"


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/gov_report out of the rows that are given out, or a made-up set, and says what it is.

    Args:
        data_dir: see the module.
        fake: if not 0, so many rows of random tokens to train on are made up, and an eighth as many for evaluation.
        verify: hash the files of what was prepared already.

    Raises:
        UserError: the files are not there, damaged, not as many rows as belong, or the disk is full.
    """
    folder = _folder(data_dir, fake)
    if fake:
        prepared.prepare_folder(folder, lambda empty: _make_up(empty, fake), verify=verify)
    else:
        prepared.prepare_folder(folder, lambda empty: convert(data_dir / _FOLDER, empty), verify=verify)
    return f"{open_dataset(data_dir, {'fake': fake, 'length': LENGTH}).description}, in {folder}"


def convert(root: Path, folder: Path, counts: tuple[int, int] = (NUM_TRAIN, NUM_EVAL)) -> dict[str, Any]:
    """Writes the rows of `root` into `folder`, `counts` to train on and to evaluate, and gives the facts for its manifest."""
    facts: dict[str, Any] = {"name": "gov_report", "fake": False, "length": LENGTH}
    for split, theirs, count in zip(("train", "eval"), ("train", "validation"), counts, strict=True):
        paths = sorted(root.glob(f"{theirs}*.parquet"))
        if not paths:
            raise UserError(
                f"GovReport is not in {root}: it takes {theirs}*.parquet as MLCommons gives it out to members "
                "(mlcommons/training, llama2_70b_lora), or use a made-up set: `python -m mlperf_jax.prepare "
                "--workload=llama2_70b_lora --preset=closed --fake=N`, then --config.data.fake=N."
            )
        with progress.step(f"reading the rows of {root}/{theirs}*.parquet"):
            rows = [row for path in paths for row in _read(path)]
        if len(rows) != count:
            raise UserError(
                f"{root}/{theirs}*.parquet have {len(rows):,} rows where {count:,} belong; get them again."
            )
        told_rows.save(folder, split, rows)
        facts[f"num_{split}"] = count
    return facts


def _read(path: Path) -> Iterator[told_rows.Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(64, columns=["input_ids", "labels"]):
                columns = [np.asarray(batch[name].to_pylist(), np.int64) for name in ("input_ids", "labels")]
                yield from map(_row, *columns)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise UserError(
            f"{path} cannot be read as packed rows ({prepared.one_line(error)}); get it again."
        ) from None


def _row(tokens: np.ndarray, labels: np.ndarray) -> told_rows.Row:
    if tokens.shape != (LENGTH,) or not ((tokens >= 0) & (tokens < VOCAB_SIZE)).all():
        raise ValueError(f"a row is no {LENGTH:,} tokens of Llama 2")
    told = labels != _NOT_ASKED
    if not np.array_equal(labels[told], tokens[told]):
        raise ValueError("its labels are not its tokens")
    return tokens, told


def _make_up(folder: Path, count: int) -> dict[str, Any]:
    """Documents of some random tokens each, in evaluation asked for in their second half."""
    num_eval, random = max(1, count // 8), np.random.default_rng(0)

    def documents(rows: int, all_told: bool) -> Iterator[told_rows.Row]:
        left = rows * LENGTH
        while left > 0:
            size = int(random.integers(8, 64))
            left -= size
            told = np.ones(size, bool) if all_told else np.arange(size) >= size // 2
            yield random.integers(VOCAB_SIZE, size=size), told

    with progress.step(f"making up {count:,} rows"):
        for split, rows in (("train", count), ("eval", num_eval)):
            told_rows.save(folder, split, told_rows.pack(documents(rows, split == "train"), LENGTH))
    return {
        "name": folder.name,
        "fake": True,
        "length": LENGTH,
        "num_train": count,
        "num_eval": num_eval,
    }


def open_synthetic(options: Mapping[str, Any]) -> TokenRows:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    return told_rows.open_synthetic(
        "gov_report", options, vocabulary_size=VOCAB_SIZE, num_train=NUM_TRAIN, num_eval=NUM_EVAL
    )


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> TokenRows:
    """Opens the prepared rows.

    Args:
        data_dir: see the module.
        options: `length` (int), tokens of a row that are read; `fake` (int, 0), the set that `prepare --fake=N` wrote.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    fake = options.get("fake") or 0
    folder = _folder(data_dir, fake)
    facts = prepared.read_manifest(folder)
    words = (
        "made-up tokens, not MLPerf's data"
        if fake
        else f"GovReport, {NUM_TRAIN:,} rows of reports and summaries to train on"
    )
    return told_rows.load(
        folder, options["length"], vocabulary_size=VOCAB_SIZE, description=words, facts=facts
    )


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"gov_report_fake_{fake}" if fake else "gov_report")
