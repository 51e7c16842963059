"""SQuAD v1.1 (Rajpurkar et al., arXiv:1606.05250), whose development set MLPerf Inference asks BERT.

DATA_DIR/squad holds train-v1.1.json, dev-v1.1.json and vocab.txt, the 30,522 uncased subwords of BERT. `prepare` turns
them into DATA_DIR/squad_rows: 87,599 and 10,570 questions, the latter in the 10,833 rows that MLPerf's sample library
has (mlcommons/inference, language/bert).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared, progress, synthetic
from input_pipelines.text import spans, wordpiece
from input_pipelines.text.spans import Question
from mlperf_jax.errors import UserError

NUM_TRAIN, NUM_EVAL, NUM_ROWS = 87_599, 10_570, 10_833
VOCABULARY_SIZE = 30_522
CUT = spans.Cut(length=384, stride=128, most_question=64)
_FILES = {"train": "train-v1.1.json", "eval": "dev-v1.1.json"}


def questions(path: Path) -> list[Question]:
    """The questions of one of SQuAD's files.

    Raises:
        UserError: it is not there, or none of them.
    """
    try:
        return [
            Question(
                asked["id"],
                paragraph["context"],
                asked["question"],
                tuple((found["text"], found["answer_start"]) for found in asked["answers"]),
            )
            for article in json.loads(path.read_text("utf-8"))["data"]
            for paragraph in article["paragraphs"]
            for asked in paragraph["qas"]
        ]
    except FileNotFoundError:
        raise UserError(
            f"There is no {path}; put SQuAD v1.1's {' and '.join(_FILES.values())} and BERT's vocab.txt there, or use a "
            "made-up set: `python -m mlperf_jax.prepare --workload=bert_qa --fake=N`, then --config.data.fake=N."
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is no file of SQuAD's ({prepared.one_line(error)}); get it again.") from None


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/squad_rows unless it is there, or a made-up set, and says what it is.

    Args:
        data_dir: see the module.
        fake: if not 0, so many train questions on random words are made up, and an eighth as many for evaluation.
        verify: hash the files of a set that is there already.

    Raises:
        UserError: the files are not there, damaged, not all that belongs, or the disk is full.
    """
    folder = _folder(data_dir, fake)
    build = functools.partial(_make_up, fake) if fake else functools.partial(_convert, data_dir / "squad")
    prepared.prepare_folder(folder, build, verify=verify)
    return f"{open_dataset(data_dir, {'fake': fake}).description}, in {folder}"


def _convert(root: Path, folder: Path) -> dict[str, Any]:
    asked = {split: questions(root / name) for split, name in _FILES.items()}
    vocabulary = wordpiece.read(root / "vocab.txt")
    with progress.step(f"cutting {NUM_TRAIN + NUM_EVAL:,} questions"):
        facts = spans.save(folder, asked["train"], asked["eval"], vocabulary, CUT)
    counted = len(asked["train"]), len(asked["eval"]), facts["num_eval"], len(vocabulary)
    expected = NUM_TRAIN, NUM_EVAL, NUM_ROWS, VOCABULARY_SIZE
    if counted != expected:
        told = (
            "{:,} train and {:,} development questions, the latter in {:,} rows, of {:,} subwords".format(
                *each
            )
            for each in (counted, expected)
        )
        raise UserError(f"{root} has {next(told)}, where {next(told)} belong; get its files again.")
    return {"name": "squad", "fake": False} | facts


def _make_up(count: int, folder: Path) -> dict[str, Any]:
    words = [f"word{number}" for number in range(VOCABULARY_SIZE - len(wordpiece.SPECIAL))]
    with progress.step(f"making up {count:,} questions"):
        train, evaluation = (
            made_up(number, words, np.random.default_rng(number)) for number in (count, max(1, count // 8))
        )
        facts = spans.save(folder, train, evaluation, [*wordpiece.SPECIAL, *words], CUT)
    return {"name": folder.name, "fake": True} | facts


def made_up(count: int, words: list[str], random: np.random.Generator, longest: int = 400) -> list[Question]:
    """Questions of ten random words on as random texts of up to `longest`, every answer one to three of these."""
    found = []
    for number in range(count):
        text = random.choice(words, int(random.integers(longest // 4, longest))).tolist()
        first = int(random.integers(len(text) - 3))
        answer = " ".join(text[first : first + int(random.integers(1, 4))])
        at = len(" ".join([*text[:first], ""]))
        asked = " ".join(random.choice(words, 10).tolist())
        found.append(Question(f"{number}", " ".join(text), asked, ((answer, at),)))
    return found


def open_synthetic(options: Mapping[str, Any]) -> spans.SpanDataset:
    """What `--synthetic_data` makes up: rows of random words, a few of them repeated."""
    words = [f"word{number}" for number in range(1000)]
    few = made_up(32, words, np.random.default_rng(0), longest=250)
    vocabulary = [*wordpiece.SPECIAL, *words]
    num_train, num_eval = synthetic.counts(options, NUM_TRAIN, NUM_ROWS)
    return spans.repeated(
        few, vocabulary, CUT, num_train, num_eval, synthetic.describe("squad", num_train, num_eval)
    )


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> spans.SpanDataset:
    """Opens the prepared set.

    Args:
        data_dir: see the module.
        options: `fake` (int, 0): the set that `prepare --fake=N` wrote.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    fake = options.get("fake") or 0
    name = "made-up questions, not MLPerf's data" if fake else "SQuAD v1.1"
    return spans.load(_folder(data_dir, fake), name)


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"squad_fake_{fake}" if fake else "squad_rows")
