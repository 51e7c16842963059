"""Translation workloads small enough for tests: sentences of ten made-up words, translated word by word.

The door loads them as `--workload=tests.toys_translation:WordByWord` and `:RecurrentWordByWord`.
"""

import functools
import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from input_pipelines import prepared
from input_pipelines.text import parallel_text, subwords
from mlperf_jax.precision import POLICIES
from mlperf_jax.workloads.translation import GNMTTranslation, TransformerTranslation

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WORTE = ["eins", "zwei", "drei", "vier", "fuenf", "sechs", "sieben", "acht", "neun", "zehn"]
LENGTH = 16


def make(precision="float32", kind=None, **changes):
    """A toy, by default `WordByWord`, with some numbers of its config changed; `model__width` stands for `model.width`."""
    kind = kind or WordByWord
    config = kind.get_config("mini")
    config.unlock()
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return kind(config, POLICIES[precision], data_dir=Path("/nonexistent"))


@functools.cache
def prepared_folder() -> Path:
    """A prepared set of such sentences."""
    holder = tempfile.TemporaryDirectory(prefix="mlperf_jax-words-")
    prepared_folder.holder = holder  # lives as long as the tests
    folder = Path(holder.name) / "words"

    def build(empty):
        random = np.random.default_rng(0)
        picked = [random.integers(10, size=random.integers(1, 6)) for _ in range(400)]
        pairs = [
            tuple(" ".join(names[n] for n in sentence) for names in (WORDS, WORTE)) for sentence in picked
        ]
        vocabulary = subwords.learn([text for pair in pairs for text in pair], 80)
        encoded = [parallel_text.encode(vocabulary, part) for part in (pairs[:360], pairs[360:])]
        facts = parallel_text.write(
            empty, vocabulary, encoded[0], parallel_text.at_most(encoded[1], LENGTH), LENGTH
        )
        return {"name": "words", "fake": True, **facts}

    prepared.prepare_folder(folder, build)
    return folder


class WordByWord(TransformerTranslation):
    """One layer, width 32."""

    @staticmethod
    def get_config(preset):
        return ConfigDict(
            dict(
                model=dict(
                    vocab_size=80,
                    width=32,
                    mlp_width=64,
                    num_heads=4,
                    num_layers=1,
                    dropout=0.1,
                    attention_dropout=0.1,
                    relu_dropout=0.1,
                ),
                data=dict(name="words", max_length=LENGTH),
                batch_size=16,
                eval_batch_size=16,
                label_smoothing=0.1,
                optimizer=dict(name="lazy_adam", base_lr=1.0, beta1=0.9, beta2=0.98, epsilon=1e-9),
                schedule=dict(warmup_steps=30),
                decode=dict(beams=2, alpha=0.6, extra_length=2, source_lengths=(8,)),
                target=2.0,  # BLEU ends at 1: a run takes all its epochs
                max_epochs=2,
                eval_offset_epochs=0,
                eval_every_epochs=1,
                steps_per_dispatch=1,
                gradient_accumulation_steps=1,
                remat="none",
                precision="auto",
                inference=dict(
                    loadgen_model="gnmt",
                    min_duration_s=0.2,
                    batch_sizes=(1, 8),
                    samples_on_device=False,
                    quality_share=0.99,
                    published_quality=0.0,
                    sut_timeout_s=60.0,
                ),
            )
        )

    @functools.cached_property
    def dataset(self):
        return parallel_text.open_folder(prepared_folder(), "made-up sentences", self.config.data.to_dict())


class RecurrentWordByWord(GNMTTranslation):
    """Three layers a side, width 32."""

    @staticmethod
    def get_config(preset):
        config = WordByWord.get_config(preset)
        config.unlock()
        sizes = dict(vocab_size=80, width=32, num_layers=3, dropout=0.1, start=0)
        config.model = dict(sizes, attention_gain=2.0, embedding_spread=1.0, forget_bias=1.0)
        config.data.max_sentence = LENGTH
        config.optimizer = dict(
            name="adamw",
            base_lr=1e-2,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-8,
            weight_decay=0.0,
            clip_norm=5.0,
        )
        config.schedule = dict(
            warmup_steps=5, remain_steps=100, decay_interval=0.1, decay_steps=4, decay_factor=0.5
        )
        config.decode = dict(beams=3, alpha=0.6, beta=0.1, end=1, extra_length=2, source_lengths=(8,))
        return config

    @functools.cached_property
    def dataset(self):
        return parallel_text.open_folder(prepared_folder(), "made-up sentences", self.config.data.to_dict())
