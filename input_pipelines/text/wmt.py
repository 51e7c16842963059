"""WMT17 English-German as MLPerf's Transformer trains on it: 4,590,101 pairs, and newstest2014 with 3,003.

DATA_DIR/wmt17 (or DATA_DIR itself) holds, as text, a sentence a line, where the reference's
data_download.py leaves them too: news-commentary-v12.de-en, commoncrawl.de-en and europarl-v7.de-en,
newstest2014, each with .en and .de, and the vocabulary vocab.translate_ende_wmt32k.32768.subwords.
`prepare` encodes and packs them once.

TFDS's wmt17_translate/de-en is another set: it has rapid2016 besides, and leaves out pairs with an empty
side.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared, progress
from input_pipelines.text import parallel_text, subwords
from input_pipelines.text.packing import Ragged
from mlperf_jax.errors import UserError

NUM_PAIRS, NUM_EVAL = 4_590_101, 3_003
MAX_LENGTH = 256
VOCAB_SIZE = 33_708
VOCABULARY = "vocab.translate_ende_wmt32k.32768.subwords"

_TRAIN = ("news-commentary-v12.de-en", "commoncrawl.de-en", "europarl-v7.de-en")
_EVAL = ("newstest2014",)
_LINES = 50_000  # encoded by a process at once
_NUM_ROWS = 500_000  # of --synthetic_data, about those of the real set
_FAKE_WORDS = 30  # of a made-up sentence, at most

FAKE_BYTES = 100


def open_synthetic(options: Mapping[str, Any]) -> parallel_text.TranslationDataset:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    length = options.get("max_length", MAX_LENGTH)
    return parallel_text.open_synthetic(
        "wmt", length, VOCAB_SIZE, options, num_train=_NUM_ROWS, num_eval=NUM_EVAL
    )


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/wmt17_packed from the original files unless it is there, or a made-up set in its place.

    Args:
        data_dir: see the module.
        fake: if not 0, the number of made-up train pairs; an eighth as many are for evaluation.
        verify: hash what is there already.

    Raises:
        UserError: a file is missing, has another number of lines than it should, or is damaged.
    """
    build = functools.partial(_write_fake, num_train=fake) if fake else functools.partial(_write, data_dir)
    prepared.prepare_folder(_folder(data_dir, fake), build, verify=verify)
    return f"{open_dataset(data_dir, {'fake': fake}).description}, in {_folder(data_dir, fake)}"


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> parallel_text.TranslationDataset:
    """Opens the prepared set; see `parallel_text`.

    Args:
        data_dir: see the module.
        options: `fake` (int, 0): the set that `prepare --fake=N` wrote. `max_length`, if there, must be 256.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    fake = options.get("fake") or 0
    folder = _folder(data_dir, fake)
    if not folder.is_dir():
        raise UserError(
            f"WMT17 en-de is not prepared in {data_dir}; put the original files into {data_dir / 'wmt17'} "
            f"({', '.join(_names())}) and run `python -m mlperf_jax.prepare --workload=transformer --preset=closed` "
            "(or use --preset=mini, --synthetic_data, or a made-up set: the same command with --fake=N, then "
            "--config.data.fake=N)."
        )
    what = "Fake WMT17 en-de (random words, not MLPerf's data)" if fake else "WMT17 en-de"
    return parallel_text.open_folder(folder, what, options)


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"wmt17_fake_{fake}" if fake else "wmt17_packed")


def _names() -> Iterator[str]:
    yield from (f"{name}.{language}" for name in (*_TRAIN, *_EVAL) for language in ("en", "de"))
    yield VOCABULARY


def _write(data_dir: Path, folder: Path) -> dict[str, Any]:
    where = data_dir / "wmt17" if (data_dir / "wmt17").is_dir() else data_dir
    missing = [name for name in _names() if not (where / name).is_file()]
    if missing:
        raise UserError(
            f"{where / missing[0]} is missing; WMT17 en-de needs {', '.join(_names())}, which the reference's "
            "data_download.py fetches from statmt.org (mlcommons/training, retired_benchmarks/transformer)."
        )
    vocabulary = subwords.read(where / VOCABULARY)
    if len(vocabulary) != VOCAB_SIZE:
        raise UserError(
            f"{where / VOCABULARY} has {len(vocabulary):,} subwords where {VOCAB_SIZE:,} belong; put MLPerf's there."
        )
    train = _encoded(where, _TRAIN, vocabulary, NUM_PAIRS)
    evaluation = _encoded(where, _EVAL, vocabulary, NUM_EVAL)
    return {
        "name": "wmt17",
        "fake": False,
        **parallel_text.write(folder, vocabulary, train, evaluation, MAX_LENGTH),
    }


def _encoded(
    where: Path, names: tuple[str, ...], vocabulary: subwords.Subwords, count: int
) -> parallel_text.Pairs:
    """Sources and targets of all files, encoded on all cores.

    Raises:
        UserError: the two languages have not `count` lines each.
    """
    sides = []
    # A fork of a process with threads, as jax has them, may hang.
    spawn = multiprocessing.get_context("spawn")
    for language in ("en", "de"):
        paths = [where / f"{name}.{language}" for name in names]
        parts = []
        with (
            progress.step(f"encoding .{language}", count, "lines") as advance,
            futures.ProcessPoolExecutor(os.cpu_count(), spawn, _use, (vocabulary.subwords,)) as pool,
        ):
            for part in pool.map(_encode, _chunks(paths)):
                parts.append(part)
                advance(len(part))
        whole = _joined(parts)
        if len(whole) != count:
            raise UserError(
                f"{', '.join(path.name for path in paths)} have {len(whole):,} lines where {count:,} belong; "
                f"put whole copies of the original files into {where}."
            )
        sides.append(whole)
    return sides[0], sides[1]


def _chunks(paths: list[Path]) -> Iterator[list[str]]:
    for path in paths:
        # Only \n ends a line: commoncrawl has the other characters that Python takes for ends inside of
        # lines.
        with open(path, encoding="utf-8", newline="\n") as file:
            try:
                while lines := list(itertools.islice(file, _LINES)):
                    yield lines
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not text in UTF-8 ({error.reason}); get it again.") from None


_vocabulary: subwords.Subwords


def _use(words: tuple[str, ...]) -> None:
    """Gives a process of the pool its vocabulary."""
    global _vocabulary
    _vocabulary = subwords.Subwords(words)


def _encode(lines: list[str]) -> Ragged:
    return Ragged.of(
        [[*_vocabulary.encode(line.strip()), subwords.END] for line in lines], parallel_text.TOKEN
    )


def _joined(parts: list[Ragged]) -> Ragged:
    values = [part.values for part in parts] or [np.zeros(0, parallel_text.TOKEN)]
    lengths = [part.lengths for part in parts] or [np.zeros(0, np.int64)]
    return Ragged(np.concatenate(values), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))


def _write_fake(folder: Path, *, num_train: int) -> dict[str, Any]:
    """Made-up words, as many subwords as the real vocabulary has, in sentences of random lengths."""
    letters = sorted("\\_u;0123456789")
    words = [f"w{n}_" for n in range(VOCAB_SIZE - len(letters) - len(subwords.RESERVED) - 1)]
    vocabulary = subwords.Subwords([*subwords.RESERVED, *letters, "w", *words])
    random = np.random.default_rng(0)

    def sentences(count: int) -> Ragged:
        lengths = random.integers(1, _FAKE_WORDS, count)
        first = len(vocabulary) - len(words)
        return Ragged.of(
            [[*random.integers(first, VOCAB_SIZE, n), subwords.END] for n in lengths], parallel_text.TOKEN
        )

    with progress.step(f"making up {num_train:,} pairs"):
        train, evaluation = (
            (sentences(count), sentences(count)) for count in (num_train, max(1, num_train // 8))
        )
    return {
        "name": "wmt17",
        "fake": True,
        **parallel_text.write(folder, vocabulary, train, evaluation, MAX_LENGTH),
    }
