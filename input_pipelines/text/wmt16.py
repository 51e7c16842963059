"""WMT16 English-German as MLPerf's GNMT trains on it, and newstest2014 with 3,003 sentences.

DATA_DIR/wmt16_de_en (or DATA_DIR itself) holds what the reference's download_dataset.sh
(mlcommons/training, rnn_translator) makes of Europarl v7, Common Crawl and News Commentary v11 with Moses and
subword-nmt: train.tok.clean.bpe.32000 and newstest2014.tok.bpe.32000, each with .en and .de, the vocabulary
vocab.bpe.32000, and newstest2014.de as people wrote it, which translations are held against. `prepare` encodes and packs
them once.

A source has a start and an end, a target an end; pairs of which one side with both is longer than 75 tokens are not
trained on, as in the accepted submissions of v0.7 (training_results_v0.7, NVIDIA).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared, progress
from input_pipelines.text import bpe, parallel_text
from input_pipelines.text.packing import Ragged
from mlperf_jax.errors import UserError

NUM_EVAL = 3_003
MAX_LENGTH = 150
"""Tokens of a row, and of a sentence that is translated."""
MAX_SENTENCE = 75
VOCAB_SIZE = 32_317

FAKE_BYTES = 100

_TRAIN, _EVAL = "train.tok.clean.bpe.32000", "newstest2014.tok.bpe.32000"
_VOCABULARY, _REFERENCES = "vocab.bpe.32000", "newstest2014.de"
_NAMES = (*(f"{name}.{side}" for name in (_TRAIN, _EVAL) for side in ("en", "de")), _VOCABULARY, _REFERENCES)
_NUM_ROWS = 800_000  # of --synthetic_data, about those of the real set
_FAKE_WORDS = 30  # of a made-up sentence, at most


def open_synthetic(options: Mapping[str, Any]) -> parallel_text.TranslationDataset:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    length = options.get("max_length", MAX_LENGTH)
    return parallel_text.open_synthetic(
        "wmt16", length, VOCAB_SIZE, options, num_train=_NUM_ROWS, num_eval=NUM_EVAL
    )


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/wmt16_packed from the original files unless it is there, or a made-up set in its place.

    Args:
        data_dir: see the module.
        fake: if not 0, the number of made-up train pairs; an eighth as many are for evaluation.
        verify: hash what is there already.

    Raises:
        UserError: a file is missing or damaged, or two languages have not as many lines.
    """
    build = functools.partial(_write_fake, num_train=fake) if fake else functools.partial(_write, data_dir)
    prepared.prepare_folder(_folder(data_dir, fake), build, verify=verify)
    return f"{open_dataset(data_dir, {'fake': fake}).description}, in {_folder(data_dir, fake)}"


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> parallel_text.TranslationDataset:
    """Opens the prepared set; see `parallel_text`.

    Args:
        data_dir: see the module.
        options: `fake` (int, 0): the set that `prepare --fake=N` wrote. `max_length` and `max_sentence`, if there,
            must be 150 and 75.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    fake = options.get("fake") or 0
    folder = _folder(data_dir, fake)
    if not folder.is_dir():
        raise UserError(
            f"WMT16 en-de is not prepared in {data_dir}; put the reference's files into {data_dir / 'wmt16_de_en'} "
            f"({', '.join(_NAMES)}) and run `python -m mlperf_jax.prepare --workload=gnmt --preset=closed` "
            "(or use --preset=mini, --synthetic_data, or a made-up set: the same command with --fake=N, then "
            "--config.data.fake=N)."
        )
    if options.get("max_sentence", MAX_SENTENCE) != MAX_SENTENCE:
        raise UserError(
            f"{folder} holds sentences of up to {MAX_SENTENCE} tokens; leave --config.data.max_sentence at that."
        )
    what = "Fake WMT16 en-de (random words, not MLPerf's data)" if fake else "WMT16 en-de"
    references = (folder / _REFERENCES).read_text("utf-8").split("\n")[:-1]
    return parallel_text.open_folder(
        folder, what, options, vocabulary=bpe.read(folder / _VOCABULARY), references=references
    )


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"wmt16_fake_{fake}" if fake else "wmt16_packed")


def _write(data_dir: Path, folder: Path) -> dict[str, Any]:
    where = data_dir / "wmt16_de_en" if (data_dir / "wmt16_de_en").is_dir() else data_dir
    missing = [name for name in _NAMES if not (where / name).is_file()]
    if missing:
        raise UserError(
            f"{where / missing[0]} is missing; WMT16 en-de needs {', '.join(_NAMES)}, which the reference's "
            "download_dataset.sh makes (mlcommons/training, rnn_translator)."
        )
    vocabulary = bpe.read(where / _VOCABULARY)
    train, evaluation = (_encoded(where, name, vocabulary) for name in (_TRAIN, _EVAL))
    references = _lines(where / _REFERENCES)
    if len(references) != len(evaluation[0]):
        raise UserError(
            f"{where / _REFERENCES} has {len(references):,} lines and {_EVAL}.en {len(evaluation[0]):,}; "
            "put the reference's files there, whole."
        )
    return _written(folder, vocabulary, train, evaluation, references) | {"fake": False}


def _encoded(where: Path, name: str, vocabulary: bpe.Vocabulary) -> parallel_text.Pairs:
    """Sources and targets of a file of each language.

    Raises:
        UserError: they have not as many lines, or are no text.
    """
    sides = []
    for language, start in (("en", [bpe.START]), ("de", [])):
        with progress.step(f"encoding {name}.{language}"):
            tokens = [
                [*start, *vocabulary.encode(line), bpe.END] for line in _lines(where / f"{name}.{language}")
            ]
            sides.append(Ragged.of(tokens, parallel_text.TOKEN))
    if len(sides[0]) != len(sides[1]):
        raise UserError(
            f"{where / name}.en has {len(sides[0]):,} lines and .de {len(sides[1]):,}; put whole copies there."
        )
    return sides[0], sides[1]


def _lines(path: Path) -> list[str]:
    """The lines of a text; only \\n ends one.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return path.read_text("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error.reason}); get it again.") from None


def _written(
    folder: Path,
    vocabulary: bpe.Vocabulary,
    train: parallel_text.Pairs,
    evaluation: parallel_text.Pairs,
    references: list[str],
) -> dict[str, Any]:
    """Writes the set; a target has no start, so it has a token less than the limit counts."""
    sources, targets = train
    kept = np.flatnonzero(np.maximum(sources.lengths, targets.lengths + 1) <= MAX_SENTENCE)
    short = sources.chosen(kept), targets.chosen(kept)
    facts = parallel_text.write(folder, vocabulary, short, _cut(evaluation), MAX_LENGTH)
    vocabulary.write(folder / _VOCABULARY)
    (folder / _REFERENCES).write_text("".join(f"{line}\n" for line in references), "utf-8", newline="\n")
    return {"name": "wmt16", **facts, "num_pairs": len(sources), "num_discarded": len(sources) - len(kept)}


def _cut(pairs: parallel_text.Pairs) -> parallel_text.Pairs:
    """Evaluation pairs, of which the reference translates 150 tokens at most."""

    def cut(side: Ragged) -> Ragged:
        rows = [side.values[a:b].tolist() for a, b in zip(side.starts, side.starts[1:], strict=False)]
        ends = [row if len(row) <= MAX_LENGTH else [*row[: MAX_LENGTH - 1], bpe.END] for row in rows]
        return Ragged.of(ends, parallel_text.TOKEN)

    return cut(pairs[0]), cut(pairs[1])


def _write_fake(folder: Path, *, num_train: int) -> dict[str, Any]:
    """Made-up words, as many subwords as the real vocabulary has, in sentences of random lengths."""
    words = [f"w{n}" for n in range(VOCAB_SIZE - len(bpe.RESERVED))]
    vocabulary = bpe.Vocabulary([*bpe.RESERVED, *words])
    random = np.random.default_rng(0)

    def sentences(count: int, start: list[int]) -> Ragged:
        lengths = random.integers(1, _FAKE_WORDS, count)
        words = (random.integers(len(bpe.RESERVED), VOCAB_SIZE, n).tolist() for n in lengths)
        return Ragged.of([[*start, *chosen, bpe.END] for chosen in words], parallel_text.TOKEN)

    with progress.step(f"making up {num_train:,} pairs"):
        train, evaluation = (
            (sentences(count, [bpe.START]), sentences(count, []))
            for count in (num_train, max(1, num_train // 8))
        )
    targets = evaluation[1]
    references = [
        vocabulary.decode(targets.values[a:b].tolist())
        for a, b in zip(targets.starts, targets.starts[1:], strict=False)
    ]
    return _written(folder, vocabulary, train, evaluation, references) | {"fake": True}
