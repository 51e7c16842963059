"""Questions that BERT's mini answers: of which noun is this WordNet's gloss, in this paragraph of Wikipedia?

A question is the gloss of a noun that has one meaning (WordNet 3.0, Debian's `wordnet-base`); the context whole
sentences of one paragraph of gensim's articles, about 60 words, in which that noun stands once; the answer the noun
there. Evaluated are questions on the articles that pre-training holds out too; most of their glosses are asked for
in other articles also. The form is SQuAD's and the texts are real, but nobody wrote the questions.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, fetch, prepared, progress, synthetic
from input_pipelines.text import gensim_articles, newsgroups, spans, squad, wordpiece
from input_pipelines.text.spans import Question
from mlperf_jax.errors import UserError

CUT = spans.Cut(length=newsgroups.LENGTH, stride=48, most_question=24)
NUM_EVAL = 400
_PARAGRAPH = 40, 200  # words, least and most
_CONTEXT = 60  # words at most, where its first sentence has not more
_LEAST_NOUN, _LEAST_GLOSS = 5, 4  # characters of a noun, words of a gloss

_NOUNS = fetch.PinnedFile(
    "data.noun", 15_300_280, "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2", "none"
)
_SENTENCE_END = re.compile(r"(?<=[.!?]) +")
_WORD = re.compile(r"[A-Za-z][A-Za-z-]+")


def glosses(nouns: str) -> dict[str, str]:
    """Noun -> gloss, of WordNet's file of nouns: those with one meaning, whose gloss does not name them."""
    found: dict[str, str] = {}
    count: collections.Counter[str] = collections.Counter()
    for line in nouns.splitlines():
        head, bar, gloss = line.partition("|")
        fields = head.split()
        if line.startswith(" ") or not bar:
            continue
        for i in range(int(fields[3], 16)):
            noun = fields[4 + 2 * i].lower().replace("_", " ")
            count[noun] += 1
            found[noun] = gloss.split(";")[0].strip()
    return {
        noun: gloss
        for noun, gloss in found.items()
        if count[noun] == 1
        and len(noun) >= _LEAST_NOUN
        and len(gloss.split()) >= _LEAST_GLOSS
        and noun not in gloss.lower()
    }


def contexts(paragraph: str) -> list[str]:
    """A paragraph in parts of whole sentences; those that are too short or too long have none."""
    if not _PARAGRAPH[0] <= len(paragraph.split()) <= _PARAGRAPH[1]:
        return []
    parts = [""]
    for sentence in _SENTENCE_END.split(paragraph):
        if len(parts[-1].split()) + len(sentence.split()) > _CONTEXT and parts[-1]:
            parts.append("")
        parts[-1] = f"{parts[-1]} {sentence}".strip()
    return parts


def questions(title: str, paragraphs: Sequence[str], known: Mapping[str, str]) -> list[Question]:
    """The questions on an article: of each context its nouns, of one or two words, that stand in it once."""
    found = []
    for number, context in enumerate(itertools.chain.from_iterable(map(contexts, paragraphs))):
        words = [(match[0], match.start()) for match in _WORD.finditer(context)]
        pairs = [(f"{a} {b}", at) for (a, at), (b, _) in zip(words, words[1:], strict=False)]
        low = context.lower()
        for word, at in pairs + words:
            noun = word.lower()
            if noun in known and low.count(noun) == 1 and low.startswith(noun, at):
                answer = context[at : at + len(noun)], at
                found.append(Question(f"{title}/{number}/{noun}", context, known[noun], (answer,)))
    return found


def sources(data_dir: Path) -> list[fetch.Source]:
    """Returns where WordNet's nouns can come from, in the order in which they are tried."""
    return [
        fetch.folder(data_dir / "manual" / "wordnet"),
        fetch.folder(Path("/usr/share/wordnet")),
        fetch.debian_package("wordnet-base", "usr/share/wordnet"),
    ]


def fetch_questions(data_dir: Path, scratch: Path) -> tuple[list[Question], list[Question]]:
    """Questions to train on and to evaluate.

    Raises:
        UserError: they could not be had from any source.
    """
    places = scratch / "articles", scratch / "nouns"
    for place in places:
        place.mkdir()
    articles = gensim_articles.fetch_articles(data_dir, places[0])
    by_hand = f"{_NOUNS.name} of WordNet 3.0 into {data_dir / 'manual' / 'wordnet'}"
    files = fetch.fetch("WordNet's nouns", [_NOUNS], sources(data_dir), places[1], by_hand=by_hand)
    known = glosses(files[_NOUNS.name].decode("latin-1"))
    train: list[Question] = []
    evaluation: list[Question] = []
    for title, paragraphs in articles.items():
        (evaluation if gensim_articles.held_out(title) else train).extend(questions(title, paragraphs, known))
    kept = base.epoch_permutation(0, 0, len(evaluation))[:NUM_EVAL]
    return train, [evaluation[i] for i in np.sort(kept)]


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/wordnet_questions unless it is there, and says what it is; its subwords are the newsgroups'.

    Raises:
        UserError: texts or glosses could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError("WordNet's questions are few and real, so there is no --fake set; leave --fake out.")
    newsgroups.prepare(data_dir, verify=verify)

    def build(folder: Path) -> dict[str, Any]:
        with prepared.scratch_folder(folder) as scratch:
            train, evaluation = fetch_questions(data_dir, scratch)
        vocabulary = wordpiece.read(newsgroups.vocabulary_path(data_dir))
        with progress.step(f"cutting {len(train) + len(evaluation):,} questions"):
            facts = spans.save(folder, train, evaluation, vocabulary, CUT)
        return {"name": "wordnet_questions", "fake": False} | facts

    folder = data_dir / "wordnet_questions"
    prepared.prepare_folder(folder, build, verify=verify)
    return f"{open_dataset(data_dir, {}).description}, in {folder}"


def open_synthetic(options: Mapping[str, Any]) -> spans.SpanDataset:
    """What `--synthetic_data` makes up: rows of random words, a few of them repeated."""
    words = [f"word{number}" for number in range(1000)]
    few = squad.made_up(32, words, np.random.default_rng(0), longest=80)
    num_train, num_eval = synthetic.counts(options, 16_000, NUM_EVAL)
    described = synthetic.describe("wordnet_questions", num_train, num_eval)
    return spans.repeated(few, [*wordpiece.SPECIAL, *words], CUT, num_train, num_eval, described)


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> spans.SpanDataset:
    """Opens the prepared set.

    Args:
        data_dir: holds the prepared sets.
        options: none.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    return spans.load(
        data_dir / "wordnet_questions", "WordNet's glosses as questions on Wikipedia's articles"
    )
