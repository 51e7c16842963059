"""Questions whose answers are spans of a text, as SQuAD v1.1 has them, cut into rows that BERT reads.

A row is [CLS] question [SEP] stretch of the context [SEP], filled up with padding. A context that is longer than what
the question leaves of the row is read in stretches that overlap, each a row of its own. Source: google-research/bert,
run_squad.py, whose numbers MLPerf has too: rows of 384, a stretch every 128 subwords, questions of at most 64, answers
of at most 30, from the 20 likeliest beginnings and ends. There a subword's text is found again by comparing; here
`tokenizers` says where in the context each one stands.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, prepared, synthetic
from input_pipelines.base import Spec
from input_pipelines.text import wordpiece
from mlperf_jax.errors import UserError

LONGEST_ANSWER, MOST_LIKELY = 30, 20
_QUESTIONS = "questions.json"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question on a text.

    Attributes:
        id: its name.
        context: the text.
        question: what is asked.
        answers: right ones, each as it stands in the context and where it begins there, in characters; the first is
            trained on.
    """

    id: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Cut:
    """How questions become rows.

    Attributes:
        length: L, of a row.
        stride: subwords from one stretch to the next.
        most_question: subwords of a question, of which the rest is left out.
    """

    length: int
    stride: int
    most_question: int


def spec(length: int) -> Spec:
    """What every row has: tokens, what is there, the context's part; and of which question it is."""
    return {
        "tokens": ((length,), np.dtype(np.uint16)),
        "segment": ((length,), np.dtype(np.uint8)),
        "token_type": ((length,), np.dtype(np.uint8)),
        "question": ((), np.dtype(np.int32)),
    }


def train_spec(length: int) -> Spec:
    """And where the answer begins and ends, both 0 where the stretch does not hold all of it."""
    return {**spec(length), "span": ((2,), np.dtype(np.uint16))}


def eval_spec(length: int) -> Spec:
    """And where each subword begins and ends in the context [L, 2], and whether this row shows most around it."""
    return {
        **spec(length),
        "characters": ((length, 2), np.dtype(np.uint16)),
        "widest": ((length,), np.dtype(np.bool_)),
    }


def rows(questions: Sequence[Question], vocabulary: Sequence[str], cut: Cut) -> dict[str, np.ndarray]:
    """All rows of questions in their order: the fields of `train_spec` and `eval_spec`.

    Raises:
        UserError: a context is longer than 65,535 characters.
    """
    tokenizer = wordpiece.tokenizer(vocabulary)
    first, separator = (list(vocabulary).index(mark) for mark in (wordpiece.CLASS, wordpiece.SEPARATOR))
    contexts, asked = (
        tokenizer.encode_batch(texts, add_special_tokens=False)
        for texts in ([q.context for q in questions], [q.question for q in questions])
    )
    made: dict[str, list[Any]] = {name: [] for name in {**train_spec(0), **eval_spec(0)}}
    for number, (question, context, words) in enumerate(zip(questions, contexts, asked, strict=True)):
        if len(question.context) > np.iinfo(np.uint16).max:
            raise UserError(f"The text of question {question.id} has {len(question.context):,} characters.")
        ids = words.ids[: cut.most_question]
        offsets = np.array(context.offsets, np.int64).reshape(-1, 2)
        answer = _subwords(offsets, *question.answers[0])
        begin = len(ids) + 2
        stretches = _stretches(len(context.ids), cut.length - begin - 1, cut.stride)
        for (start, stop), widest in zip(stretches, _widest(stretches), strict=True):
            row = [first, *ids, separator, *context.ids[start:stop], separator]
            here = slice(begin, begin + stop - start)
            characters, shown = np.zeros((cut.length, 2), np.uint16), np.zeros(cut.length, np.bool_)
            characters[here], shown[here] = offsets[start:stop], widest
            place = np.arange(cut.length)
            inside = start <= answer[0] and answer[1] < stop
            span = np.array(answer) - start + begin if inside else np.zeros(2)
            for name, value in {
                "tokens": np.pad(row, (0, cut.length - len(row))).astype(np.uint16),
                "segment": (place < len(row)).astype(np.uint8),
                "token_type": ((place >= begin) & (place < len(row))).astype(np.uint8),
                "question": np.int32(number),
                "span": span.astype(np.uint16),
                "characters": characters,
                "widest": shown,
            }.items():
                made[name].append(value)
    return {name: np.stack(values) for name, values in made.items()}


def _subwords(offsets: np.ndarray, answer: str, at: int) -> tuple[int, int]:
    """First and last subword [N, 2] of an answer; beyond all of them where it has none."""
    held = np.flatnonzero((offsets[:, 1] > at) & (offsets[:, 0] < at + len(answer)))
    return (int(held[0]), int(held[-1])) if len(held) else (len(offsets), len(offsets))


def _stretches(count: int, most: int, stride: int) -> list[tuple[int, int]]:
    """[start, stop) of each stretch of `count` subwords."""
    found, start = [], 0
    while True:
        stop = min(start + most, count)
        found.append((start, stop))
        if stop == count:
            return found
        start += min(most, stride)


def _widest(stretches: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Of each stretch, which of its subwords have most around them in it: the lesser side, then the length, counts."""
    place = np.arange(stretches[-1][1])
    scores = np.full((len(stretches), len(place)), -1.0)
    for row, (start, stop) in zip(scores, stretches, strict=True):
        here = place[start:stop]
        row[start:stop] = np.minimum(here - start, stop - 1 - here) + 0.01 * (stop - start)
    best = scores.argmax(0)
    return [best[start:stop] == n for n, (start, stop) in enumerate(stretches)]


def answer(logits: np.ndarray, characters: np.ndarray, widest: np.ndarray, context: str) -> str:
    """The likeliest answer to a question.

    Args:
        logits: [R, L, 2], of begin and end in each of its rows.
        characters, widest: [R, L, 2] and [R, L], as `eval_spec` has them.
        context: the text.
    """
    best, found = -np.inf, ""
    for scores, where, shown in zip(logits, characters, widest, strict=True):
        in_context = where[:, 1] > where[:, 0]
        likely = [np.argsort(-scores[:, side], kind="stable")[:MOST_LIKELY] for side in (0, 1)]
        starts, stops = (np.array([at for at in side if in_context[at]], np.int64) for side in likely)
        starts = starts[shown[starts]]
        sizes = stops - starts[:, None] + 1
        sums = scores[starts, 0][:, None] + scores[stops, 1]
        sums = np.where((sizes >= 1) & (sizes <= LONGEST_ANSWER), sums, -np.inf)
        if sums.size and sums.max() > best:
            best = sums.max()
            begin, end = np.unravel_index(sums.argmax(), sums.shape)
            found = context[where[starts[begin], 0] : where[stops[end], 1]]
    return found


class SpanDataset(base.InMemoryDataset):
    """Rows, and the questions that the evaluation rows are of.

    Attributes:
        questions: in the order of their numbers.
    """

    def __init__(
        self,
        train: Mapping[str, base.Field],
        evaluation: Mapping[str, base.Field],
        questions: Sequence[Question],
        **facts: Any,
    ) -> None:
        super().__init__(train, evaluation, **facts)
        self.questions = list(questions)

    def best_answers(self, indices: np.ndarray, logits: np.ndarray) -> dict[int, str]:
        """The answer to each question that evaluation rows [N] are of, by its number, from their logits [N, L, 2]."""
        fields = self.read_eval(indices, ("question", "characters", "widest"))
        of = fields["question"]
        found = {}
        for number in np.unique(of).tolist():
            here = of == number
            where, shown = fields["characters"][here], fields["widest"][here]
            found[number] = answer(logits[here], where, shown, self.questions[number].context)
        return found


def repeated(
    few: Sequence[Question],
    vocabulary: Sequence[str],
    cut: Cut,
    num_train: int,
    num_eval: int,
    description: str,
) -> SpanDataset:
    """A set in which the rows of a few questions stand for as many as are asked for."""
    made = rows(few, vocabulary, cut)
    train, evaluation = (
        {name: synthetic.Repeated(made[name], count) for name in fields}
        for fields, count in ((train_spec(cut.length), num_train), (eval_spec(cut.length), num_eval))
    )
    return SpanDataset(train, evaluation, few, fake=True, description=description)


def save(
    folder: Path,
    train: Sequence[Question],
    evaluation: Sequence[Question],
    vocabulary: Sequence[str],
    cut: Cut,
) -> dict[str, Any]:
    """Writes a set into a folder, and returns the facts for its manifest."""
    facts: dict[str, Any] = {"length": cut.length, "num_questions": len(evaluation)}
    for split, questions, fields in (
        ("train", train, train_spec(cut.length)),
        ("eval", evaluation, eval_spec(cut.length)),
    ):
        made = rows(questions, vocabulary, cut)
        prepared.save_arrays(folder, split, {name: made[name] for name in fields})
        facts[f"num_{split}"] = len(made["tokens"])
    text = json.dumps([dataclasses.asdict(question) for question in evaluation])
    (folder / _QUESTIONS).write_text(text, "utf-8")
    return facts


def load(folder: Path, description: str) -> SpanDataset:
    """Opens a set that `save` wrote.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    facts = prepared.read_manifest(folder)
    length = facts["length"]
    train = prepared.open_arrays(folder, "train", facts["num_train"], train_spec(length))
    evaluation = prepared.open_arrays(folder, "eval", facts["num_eval"], eval_spec(length))
    try:
        listed = json.loads((folder / _QUESTIONS).read_text("utf-8"))
        questions = [
            Question(q["id"], q["context"], q["question"], tuple((text, at) for text, at in q["answers"]))
            for q in listed
        ]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{folder / _QUESTIONS} is damaged; {prepared.AGAIN}") from None
    if len(questions) != facts["num_questions"] or int(evaluation["question"].max()) >= len(questions):
        raise UserError(f"{folder} is damaged (its questions do not fit); {prepared.AGAIN}")
    return SpanDataset(train, evaluation, questions, fake=facts["fake"], description=description)
