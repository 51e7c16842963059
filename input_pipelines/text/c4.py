"""C4 (Raffel et al., arXiv:1910.10683) as MLPerf's language models read it: tokens of Llama 3.1, packed without any mark between texts.

DATA_DIR/c4 holds Megatron's files, as mlcommons/training, small_llm_pretraining/nemo, leaves them: of training
c4-train.en_6_text_document.bin and .idx (and, where both halves are wanted, those of 7), of evaluation
c4-validation-91205-samples.en_text_document.bin and .idx. Of the latter the first 1,024 rows are evaluated, as its README says.
`prepare` reads the indexes through once, and notes in DATA_DIR/c4_index what it found.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared, progress
from input_pipelines.text import megatron_file, token_rows
from mlperf_jax.errors import UserError

VOCAB_SIZE = 128_256
LENGTH, NUM_EVAL = 8192, 1024

FAKE_BYTES = 4 * LENGTH

_TRAIN = "c4-train.en_*_text_document.bin"
_EVAL = "c4-validation-91205-samples.en_text_document.bin"
_EVAL_DOCUMENTS = 91_205


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/c4_index unless it is there, or a made-up set, and says what it is.

    Args:
        data_dir: see the module.
        fake: if not 0, so many rows of random tokens to train on are made up, and an eighth as many for evaluation.
        verify: hash the files of what was prepared already.

    Raises:
        UserError: the files are not there, damaged, not as many texts as belong, or the disk is full.
    """
    build = functools.partial(_make_up, fake) if fake else functools.partial(_look_at, data_dir / "c4")
    folder = _folder(data_dir, fake)
    prepared.prepare_folder(folder, build, verify=verify)
    return f"{open_dataset(data_dir, {'fake': fake, 'length': LENGTH}).description}, in {folder}"


def _look_at(root: Path, folder: Path) -> dict[str, Any]:
    paths = sorted(root.glob(_TRAIN))
    if not paths or not (root / _EVAL).is_file():
        raise UserError(
            f"C4 is not in {root}: it takes {_TRAIN} with their .idx and {_EVAL} with its; make them with MLPerf's "
            "scripts (small_llm_pretraining/nemo), or use a made-up set: "
            "`python -m mlperf_jax.prepare --workload=llama31_8b --preset=closed --fake=N`, then --config.data.fake=N."
        )
    facts = _facts(root, paths, root / _EVAL)
    if facts["eval_texts"] != _EVAL_DOCUMENTS:
        raise UserError(
            f"{root / _EVAL} has {facts['eval_texts']:,} texts where {_EVAL_DOCUMENTS:,} belong; get it again."
        )
    return facts | {"name": folder.name, "fake": False}


def _facts(root: Path, train: list[Path], evaluation: Path) -> dict[str, Any]:
    """Of every file what is to be known to open it; `files` is the manifest's own."""
    streams: dict[str, Any] = {}
    with progress.step(f"reading the indexes of {root}"):
        for split, paths in (("train", train), ("eval", [evaluation])):
            found = {path: megatron_file.read(path) for path in paths}
            streams[split] = {
                path.name: {"tokens": len(one.tokens), "dtype": one.tokens.dtype.str}
                for path, one in found.items()
            }
            streams[f"{split}_texts"] = sum(one.num_documents for one in found.values())
    return streams


def _make_up(count: int, folder: Path) -> dict[str, Any]:
    """Texts of random tokens, half as long as a row on average, enough for so many rows and for evaluation."""
    random = np.random.default_rng(0)

    def texts(rows: int) -> Any:
        left = rows * LENGTH + 1
        while left:
            size = min(left, int(random.integers(1, LENGTH)))
            left -= size
            yield random.integers(VOCAB_SIZE, size=size, dtype=np.int32)

    train, evaluation = folder / _TRAIN.replace("*", "6"), folder / _EVAL
    with progress.step(f"making up {count:,} rows"):
        megatron_file.write(train, texts(count))
        megatron_file.write(evaluation, texts(max(1, count // 8)))
    return _facts(folder, [train], evaluation) | {"name": folder.name, "fake": True}


def open_synthetic(options: Mapping[str, Any]) -> token_rows.TokenRows:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    return token_rows.open_synthetic(
        "c4", options, vocabulary_size=VOCAB_SIZE, num_train=4_800_000, num_eval=NUM_EVAL
    )


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> token_rows.TokenRows:
    """Opens the files that were looked at.

    Args:
        data_dir: see the module.
        options: `length` (int), tokens to be told in a row; `fake` (int, 0), the set that `prepare --fake=N` wrote.

    Raises:
        UserError: it is not prepared, or its files are not those that were looked at.
    """
    fake = options.get("fake") or 0
    folder = _folder(data_dir, fake)
    facts = prepared.read_manifest(folder)
    root = folder if fake else data_dir / "c4"
    train, evaluation = (
        [_stream(root / name, one) for name, one in facts[split].items()] for split in ("train", "eval")
    )
    return token_rows.TokenRows(
        token_rows.Rows(train, options["length"]),
        token_rows.Rows(evaluation, options["length"], NUM_EVAL),
        vocabulary_size=VOCAB_SIZE,
        fake=bool(fake),
        description="made-up tokens, not MLPerf's data"
        if fake
        else f"C4, {facts['train_texts']:,} texts to train on",
    )


def _stream(path: Path, facts: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(facts["dtype"])
    if not path.is_file() or path.stat().st_size != facts["tokens"] * dtype.itemsize:
        raise UserError(f"{path} is not the file that was looked at; {prepared.AGAIN}")
    return np.memmap(path, dtype, "r")


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"c4_fake_{fake}" if fake else "c4_index")
