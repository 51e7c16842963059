"""Language models served by the token: how held-out texts go on, told from their beginnings.

A sample is a row of the evaluation set. Where rows say what is asked of them, given is what comes before that; of others
`inference.prompt` tokens are given, and as many asked as may be told. ROUGE holds answers against the row's own, as text where
the data set knows its tokens' texts, else as numbers; the log perplexity of the row's own says how well the weights that are
served foresee it. Where no figure is published, answers are to score as those of a loop do that computes the whole text for every
token, and the log perplexity is to be that of evaluation. None of these texts has one right answer that could be met exactly.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlperf_jax.goals import Direction, Goal
from mlperf_jax.metrics import rouge
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.tokens.plain import likeliest, told_plainly
from mlperf_jax.tokens.programs import Programs, Sizes
from mlperf_jax.tokens.requests import Request
from mlperf_jax.workload import Batch, Evaluation, State, TokenWorkload
from mlperf_jax.workloads.language_modelling import GptOss, LanguageModelling, Llama31
from mlperf_jax.workloads.low_rank_tuning import Llama2LowRank, LowRankTuning
from models.decoder import DecoderConfig, merged

_ROWS = 16  # whose log perplexity is computed at a time
_LOG_PERPLEXITY = "log_perplexity"


class Generation(LanguageModelling, TokenWorkload):
    """A decoder whose samples are beginnings of rows."""

    @property
    def num_samples(self) -> int:
        return min(self.num_eval, self.config.inference.samples)

    @property
    def token_goals(self) -> tuple[Goal, ...]:
        scores = (Goal(name, 0.0, metric=name.replace("rouge", "ROUGE-")) for name in rouge.FIGURES)
        return (*scores, Goal(_LOG_PERPLEXITY, 0.0, Direction.LOSS, "log perplexity"))

    # What is served.

    def served_decoder(self, state: State) -> tuple[DecoderConfig, Any]:
        """The decoder that tells, and its parameters in their places."""
        return self.model_config, state["params"]

    @property
    def tokenizer_file(self) -> Path | None:
        return self.dataset.tokenizer_file

    def token_programs(self, state: State, layout: Layout) -> Programs:
        numbers = self.config.inference
        length = -(-self._longest // numbers.page) * numbers.page
        sizes = Sizes(
            slots=numbers.slots,
            pages=1 + numbers.slots * length // numbers.page,
            page=numbers.page,
            length=length,
            chunks=tuple(numbers.chunks),
        )
        config, params = self.served_decoder(state)
        return Programs(
            config,
            params,
            self.policy,
            sizes=sizes,
            ends=tuple(numbers.ends),
            layout=layout,
            weights=numbers.weights,
        )

    @property
    def _longest(self) -> int:
        """Positions of a prompt and its answer."""
        return self.config.inference.prompt + self.config.inference.max_tokens

    # Samples.

    def request(self, index: int) -> Request:
        numbers = self.config.inference
        return Request(self._sample(index)[0], numbers.max_tokens, numbers.min_tokens)

    def _sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Beginning and true end of a sample: [L] and [T] int32."""
        numbers = self.config.inference
        entries = self.read_samples(np.array([index]))
        tokens, start, stop = entries["tokens"][0], numbers.prompt, self._longest
        if "told" in entries:  # of several texts in a row the first
            behind = entries["told"][0, 1:] > 0
            start = 1 + int(behind.argmax())
            stop = start + int(np.append(~behind[start - 1 :], True).argmax())
        stop = min(stop, start + numbers.max_tokens)
        return tokens[max(0, start - numbers.prompt) : start], tokens[start:stop]

    def sample_texts(self, index: int) -> tuple[str, str]:
        """Beginning and true end of a sample, as text."""
        prompt, true = self._sample(index)
        return self._text(prompt), self._text(true)

    # How good answers are.

    def token_figures(self, indices: np.ndarray, answers: Sequence[np.ndarray]) -> Evaluation:
        """ROUGE, and how long answers are: `gen_len` characters, `tokens_per_sample` tokens."""
        true = [self._sample(index)[1] for index in indices.tolist()]
        found = rouge.score([self._text(answer) for answer in answers], [self._text(row) for row in true])
        return found | {"tokens_per_sample": float(np.mean([len(answer) for answer in answers]))}

    def _text(self, tokens: np.ndarray) -> str:
        text_of = self.dataset.text_of
        return text_of(tokens.tolist()) if text_of else " ".join(map(str, tokens.tolist()))

    def served_figures(self, programs: Programs, indices: np.ndarray) -> Evaluation:
        """The log perplexity of true ends by the engine's own programs and weights, the mean of each row's own."""
        rows = []
        for index in indices.tolist():
            prompt, true = self._sample(index)
            rows.append(programs.losses(np.concatenate([prompt, true]))[-len(true) :].mean(dtype=float))
        return {_LOG_PERPLEXITY: float(np.mean(rows))}

    def reference_figures(
        self, state: State, layout: Layout, indices: np.ndarray, answers: Sequence[np.ndarray]
    ) -> Evaluation:
        """As published, else of whole texts alone."""
        if published := self.config.inference.published_quality:
            return published.to_dict()
        numbers = self.config.inference
        ends = tuple(numbers.ends)

        def following(state: State, *asked: jax.Array) -> jax.Array:
            with layouts.use(layout), jax.default_matmul_precision(self.policy.matmul):
                return likeliest(self.model(state), *asked, most=numbers.max_tokens, ends=ends)

        run = functools.partial(jax.jit(following), state)
        requests = [self.request(index) for index in indices.tolist()]
        told = told_plainly(run, requests, answers, ends=ends, length=self._longest)
        figures = self.token_figures(indices, told)
        return figures | {_LOG_PERPLEXITY: self._evaluated(state, layout, indices)}

    def _evaluated(self, state: State, layout: Layout, indices: np.ndarray) -> float:
        """The log perplexity of true ends as evaluation computes it."""

        def answer(state: State, inputs: Batch) -> jax.Array:
            with layouts.use(layout), jax.default_matmul_precision(self.policy.matmul):
                return self.answer(self.model(state), inputs)

        run, found = jax.jit(answer), []
        for start in range(0, len(indices), _ROWS):
            samples = [self._sample(index) for index in indices[start : start + _ROWS].tolist()]
            tokens = np.zeros((_ROWS, self._longest), np.int32)
            told = np.zeros(tokens.shape, np.uint8)
            for row, (prompt, true) in enumerate(samples):
                stop = len(prompt) + len(true)
                tokens[row, :stop] = np.concatenate([prompt, true])
                told[row, len(prompt) : stop] = 1
            found.append(np.asarray(run(state, {"tokens": tokens, "told": told}))[: len(samples)])
        return float(np.concatenate(found).mean(dtype=float))


class TunedGeneration(Generation, LowRankTuning):
    """With low-rank changes, which are put into the kernels that they change."""

    def served_decoder(self, state: State) -> tuple[DecoderConfig, Any]:
        places = jax.tree.map(lambda x: x.sharding, state["frozen"])
        put_in = jax.jit(functools.partial(merged, self.model_config), out_shardings=places)
        config = dataclasses.replace(self.model_config, low_rank=0)
        return config, put_in(_joined(state["params"], state["frozen"]))


class ServedLlama31(Generation, Llama31):
    """Trained as `Llama31` is, and served by the token."""


class ServedGptOss(Generation, GptOss):
    """Trained as `GptOss` is, and served by the token."""


class ServedLlama2LowRank(TunedGeneration, Llama2LowRank):
    """Trained as `Llama2LowRank` is, and served by the token."""


def _joined(one: Any, other: Any) -> Any:
    """All leaves of two trees of dicts that have none in common."""
    found = dict(one)
    for name, value in other.items():
        found[name] = _joined(found[name], value) if name in found else value
    return found
