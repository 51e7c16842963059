"""Sentiment analysis at a size for tests, on texts in which one word decides; the door loads it by name."""

from __future__ import annotations

import functools

import numpy as np

from configs import sentiment
from input_pipelines.text import labelled_text
from mlperf_jax.workloads.sentiment_analysis import Sentiment

VOCABULARY, WIDTHS = 40, (8, 16)


def _texts(count, seed):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, WIDTHS[-1] + 1, size=count)
    texts = [random.integers(2, VOCABULARY, size=length) for length in lengths]
    label = random.integers(2, size=count).astype(np.int32)
    for text, word in zip(texts, label, strict=True):
        text[random.integers(len(text))] = word
    start = np.append(0, np.cumsum(lengths)).astype(np.int32)
    return labelled_text.Texts(np.concatenate(texts).astype(np.int32), start, label)


@functools.cache
def dataset():
    return labelled_text.LabelledTexts(
        _texts(104, 1),
        _texts(45, 2),
        vocabulary_size=VOCABULARY,
        widths=WIDTHS,
        fake=True,
        name="texts with a word that decides",
    )


def _small(config, network):
    config.unlock()
    config.model.network, config.model.embedding, config.model.features = network, 8, 16
    config.batch_size, config.eval_batch_size = 16, 16
    config.target, config.max_epochs = 2.0, 2  # no accuracy reaches 2: a run goes to its end
    config.inference.min_duration_s = 0.5
    config.inference.batch_sizes = (1, 2)
    return config


class SmallSentiment(Sentiment):
    dataset = functools.cached_property(lambda self: dataset())

    @staticmethod
    def get_config(preset):
        return _small(sentiment.get_config("mini"), "convolutions")


class SmallLSTM(SmallSentiment):
    @staticmethod
    def get_config(preset):
        return _small(sentiment.get_config("mini"), "lstm")
