"""BERT at a size for tests: texts whose words count up, and questions for the word after one; the door loads them by name.

`SmallBert` is pre-trained, `SmallAnswers` begins with its trunk and is served.
"""

from __future__ import annotations

import functools

import numpy as np

from configs import bert, bert_qa
from input_pipelines.base import InMemoryDataset
from input_pipelines.text import masked_pairs, spans, wordpiece
from input_pipelines.text.spans import Question
from mlperf_jax.workloads.bert_pretraining import BertPretraining
from mlperf_jax.workloads.question_answering import QuestionAnswering

VOCABULARY = (*wordpiece.SPECIAL, *(f"w{n}" for n in range(43)))
LENGTH, FIRST = 32, len(wordpiece.SPECIAL)
CUT = spans.Cut(length=LENGTH, stride=8, most_question=3)
BATCH = 32
SIZES = dict(
    vocab_size=len(VOCABULARY),
    width=16,
    mlp_width=32,
    num_heads=4,
    num_layers=2,
    num_positions=LENGTH,
    first_values="drawn",
)


def _counting(random, count):
    """Rows of subwords that count up, round and round, of every length."""
    texts = []
    for _ in range(count):
        start, size = random.integers(43), random.integers(8, 22)
        texts.append(((start + np.arange(size)) % 43 + FIRST).tolist())
    return masked_pairs.sequences(texts, VOCABULARY, LENGTH, random)


@functools.cache
def sequences():
    train, evaluation = (_counting(np.random.default_rng(seed), count) for seed, count in ((1, 256), (2, 44)))
    return InMemoryDataset(train, evaluation, fake=True, description="texts that count up")


@functools.cache
def questions():
    """Which word comes after this one, in a text that counts up."""

    def made(seed, count):
        random, found = np.random.default_rng(seed), []
        for number in range(count):
            words = [f"w{n % 43}" for n in np.arange(35) + random.integers(43)]
            at = int(random.integers(1, 34))
            place = len(" ".join([*words[:at], ""]))
            found.append(Question(f"{number}", " ".join(words), words[at - 1], ((words[at], place),)))
        return found

    train, evaluation = made(1, 64), made(2, 12)
    rows = [spans.rows(part, VOCABULARY, CUT) for part in (train, evaluation)]
    fields = (
        {name: part[name] for name in spec}
        for part, spec in zip(rows, (spans.train_spec(LENGTH), spans.eval_spec(LENGTH)), strict=True)
    )
    return spans.SpanDataset(*fields, evaluation, fake=False, description="questions for the next word")


def _small(config, **changes):
    config.unlock()
    config.model.update(SIZES)
    config.batch_size = config.eval_batch_size = BATCH
    config.inference.min_duration_s, config.inference.batch_sizes = 0.2, (1, 4)
    config.inference.loadgen_model = "none"
    config.target = 2.0  # no share reaches 2: a run goes to its end
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


class SmallBert(BertPretraining):
    """Packed, with dropout, by LAMB."""

    dataset = functools.cached_property(lambda self: sequences())

    @staticmethod
    def get_config(preset):
        closed = bert.get_config("closed")
        return _small(
            bert.get_config("mini"),
            model__dropout=0.1,
            model__attention_dropout=0.1,
            data__packing=0.75,
            eval_every_samples=320,
            max_epochs=3,
            next_sentence_weight=closed.next_sentence_weight,
            optimizer=closed.optimizer,
            optimizer__base_lr=0.02,
            schedule=dict(training_steps=20, warmup_steps=4, start_warmup_step=-1),
        )


class SmallAnswers(QuestionAnswering):
    dataset = functools.cached_property(lambda self: questions())

    @staticmethod
    def get_config(preset):
        return _small(bert_qa.get_config("mini"), max_epochs=3)
