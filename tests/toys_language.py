"""Language models at a size for tests: rows of tokens that count up; the door loads them by name."""

from __future__ import annotations

import functools

import numpy as np

from configs import gpt_oss_20b, llama31_8b
from input_pipelines.text.token_rows import Rows, TokenRows
from mlperf_jax.workloads.generation import ServedGptOss, ServedLlama31, TunedGeneration
from mlperf_jax.workloads.language_modelling import GptOss, Llama31
from mlperf_jax.workloads.low_rank_tuning import LowRankTuning

VOCABULARY, LENGTH, BATCH = 32, 16, 16

NARROW = (
    "model.width=16",
    "model.mlp_width=16",
    "model.num_heads=4",
    "model.num_key_heads=2",
    "model.head_width=8",
    "model.num_layers=2",
)
"""What closed runs of all decoders are cut to, as flags say it."""
SIZES = dict(
    vocab_size=VOCABULARY,
    width=16,
    mlp_width=32,
    num_heads=4,
    num_key_heads=2,
    head_width=8,
    num_layers=2,
    initializer_range=0.1,
)


@functools.cache
def counting():
    """Texts whose tokens count up by a step of their own."""

    def stream(seed, count):
        random = np.random.default_rng(seed)
        texts = [
            (random.integers(VOCABULARY) + random.integers(1, 4) * np.arange(random.integers(10, 60)))
            % VOCABULARY
            for _ in range(count)
        ]
        return Rows([np.concatenate(texts)], LENGTH)

    return TokenRows(
        stream(1, 200),
        stream(2, 20),
        vocabulary_size=VOCABULARY,
        bytes_per_token=2.0,
        fake=True,
        description="tokens that count up",
    )


def small(config):
    """A mini's config cut to these sizes."""
    config.unlock()
    config.model.update(SIZES)
    config.data.length, config.loss_tile = LENGTH, 4
    config.batch_size, config.eval_batch_size, config.eval_every_samples = BATCH, BATCH, 160
    config.schedule.max_steps, config.schedule.warmup_steps = 40, 4
    config.optimizer.base_lr, config.max_epochs = 0.02, 2
    config.inference.min_duration_s, config.inference.batch_sizes = 0.2, (1, 4)
    config.target = 0.0  # no loss falls to 0: a run goes to its end
    return config


@functools.cache
def asking():
    """The same rows, of which some tokens only are asked for."""
    rows, random = counting(), np.random.default_rng(3)
    tokens = [rows.read_train(0, 160, seed=0)["tokens"], rows.read_eval(np.arange(24), ["tokens"])["tokens"]]
    told = [random.integers(2, size=part.shape, dtype=np.uint8) for part in tokens]
    for part in told:
        part[:, 1] = 1
    return TokenRows(*tokens, told=told, vocabulary_size=VOCABULARY, fake=True, description="some of them")


class SmallLlama(Llama31):
    dataset = functools.cached_property(lambda self: counting())

    @staticmethod
    def get_config(preset):
        return small(llama31_8b.get_config("mini"))


def telling(config):
    """A small one's config with bounds that a busy machine keeps."""
    config.inference = config.inference.to_dict() | dict(
        scenarios=("SingleStream", "Server", "Interactive", "Offline"),
        samples=20,
        prompt=6,
        max_tokens=8,
        min_tokens=2,
        slots=3,
        page=4,
        chunks=(4,),
        ends=(3, 5),
        max_first_s=600.0,
        max_each_s=600.0,
        sut_timeout_s=600.0,
        latency_share=0.9,  # a few queries prove it
    )
    return config


class SmallTelling(ServedLlama31, SmallLlama):
    """Served by the token."""

    @staticmethod
    def get_config(preset):
        return telling(SmallLlama.get_config(preset))


class SmallExperts(GptOss):
    """With windows, norms of queries and keys and experts."""

    dataset = functools.cached_property(lambda self: counting())

    @staticmethod
    def get_config(preset):
        config = small(gpt_oss_20b.get_config("mini"))
        numbers = dict(tied=False, mlp_width=16, window=5, window_every=2, num_experts=4)
        config.model.update(numbers)
        return config


class SmallTuning(LowRankTuning):
    """Low-rank changes of a small one, with dropout."""

    benchmark = "llama2_70b_lora"
    dataset = functools.cached_property(lambda self: asking())

    @staticmethod
    def get_config(preset):
        config = SmallLlama.get_config(preset)
        config.model.update(dict(low_rank=2, low_rank_alpha=4.0, low_rank_dropout=0.1))
        config.base_weights = ""
        config.schedule.max_steps, config.schedule.warmup_steps = 10, 2
        config.eval_skipped_per_sample, config.eval_skipped = 0.0, 0
        return config


class SmallTellingExperts(ServedGptOss, SmallExperts):
    """Served by the token."""

    @staticmethod
    def get_config(preset):
        return telling(SmallExperts.get_config(preset))


@functools.cache
def ending():
    """Rows that ask for what follows a beginning of some length, as a summary follows what it sums up."""
    tokens = counting().read_eval(np.arange(24), ["tokens"])["tokens"]
    random = np.random.default_rng(4)
    first = random.integers(3, 10, size=len(tokens))[:, None]
    told = (np.arange(LENGTH + 1) >= first) & (
        np.arange(LENGTH + 1) < first + random.integers(1, 8, size=first.shape)
    )
    fields = [field[some] for field in (tokens, told.astype(np.uint8)) for some in (slice(16), slice(24))]
    return TokenRows(*fields[:2], told=fields[2:], vocabulary_size=VOCABULARY, fake=True, description="ends")


class SmallTellingTuned(TunedGeneration, SmallTuning):
    """Served by the token, with the changes in its kernels."""

    dataset = functools.cached_property(lambda self: ending())

    @staticmethod
    def get_config(preset):
        config = telling(SmallTuning.get_config(preset))
        config.inference.prompt = LENGTH
        return config
