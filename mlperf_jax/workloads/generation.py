"""Language models served by the token: how held-out rows go on, told from their first tokens.

A sample is a row: `inference.prompt` tokens of it are given, and `inference.max_tokens` told. ROUGE holds these against the
row's own, as text where the data set knows its tokens' texts, else as numbers. Where no figure is published, answers are to score as those
of a loop do that computes the whole text for every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.goals import Goal, Quality
from mlperf_jax.metrics import rouge
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel import mesh
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.tokens.programs import Programs, Sizes
from mlperf_jax.tokens.requests import Request
from mlperf_jax.workload import Evaluation, State, TokenWorkload
from mlperf_jax.workloads.language_modelling import LanguageModelling, Llama31
from models.decoder import Decoder

_ROWS = 16  # texts that the plain loop tells at a time


class Generation(LanguageModelling, TokenWorkload):
    """A decoder whose samples are beginnings of rows."""

    @property
    def num_samples(self) -> int:
        return min(self.num_eval, self.config.inference.samples)

    @property
    def token_goals(self) -> tuple[Goal, ...]:
        return tuple(Goal(name, 0.0, metric=name.replace("rouge", "ROUGE-")) for name in rouge.FIGURES)

    def token_programs(self, state: State, layout: Layout) -> Programs:
        numbers = self.config.inference
        text = numbers.prompt + numbers.max_tokens
        page = numbers.page
        length = -(-text // page) * page
        sizes = Sizes(
            slots=numbers.slots,
            pages=1 + numbers.slots * length // page,
            page=page,
            length=length,
            chunks=tuple(numbers.chunks),
        )
        return Programs(
            self.model_config,
            state["params"],
            self.policy,
            sizes=sizes,
            ends=tuple(numbers.ends),
            layout=layout,
            weights=numbers.weights,
        )

    def request(self, index: int) -> Request:
        numbers = self.config.inference
        (row,) = self._told_rows(np.array([index]))
        return Request(row[: numbers.prompt], numbers.max_tokens, numbers.min_tokens)

    def _told_rows(self, indices: np.ndarray) -> np.ndarray:
        """Beginning and true end of samples [N]: [N, prompt + max_tokens] int32."""
        numbers = self.config.inference
        rows = self.read_samples(indices)["tokens"]
        return rows[:, : numbers.prompt + numbers.max_tokens]

    def token_figures(self, indices: np.ndarray, answers: Sequence[np.ndarray]) -> Evaluation:
        """ROUGE, and how long answers are: `gen_len` characters, `tokens_per_sample` tokens."""
        true = self._told_rows(indices)[:, self.config.inference.prompt :]
        found = rouge.score([self._text(answer) for answer in answers], [self._text(row) for row in true])
        return found | {"tokens_per_sample": float(np.mean([len(answer) for answer in answers]))}

    def _text(self, tokens: np.ndarray) -> str:
        text_of = self.dataset.text_of
        return text_of(tokens.tolist()) if text_of else " ".join(map(str, tokens.tolist()))

    def reference_quality(self, load: Callable[[Layout], State]) -> Quality:
        """As published, else of a loop without cache, pages or slots, over all samples."""
        if published := self.config.inference.published_quality:
            return published.to_dict()
        layout = mesh.single_device_layout()
        answers = self._told_plainly(load(layout), layout)
        figures = self.token_figures(np.arange(self.num_samples), answers)
        return {goal.name: figures[goal.name] for goal in self.token_goals}

    def _told_plainly(self, state: State, layout: Layout) -> list[np.ndarray]:
        """Greedily, each token from all before it."""
        numbers = self.config.inference
        ends = np.asarray(numbers.ends, np.int32)

        def next_token(state: State, texts: jax.Array, position: jax.Array) -> jax.Array:
            with layouts.use(layout), jax.default_matmul_precision(self.policy.matmul):
                model: Decoder = self.model(state)
                states = model.hidden(texts).states
                here = jax.lax.dynamic_slice_in_dim(states, position - 1, 1, axis=1)
                logits = model.logits(here)[:, 0]
            early = position - numbers.prompt < numbers.min_tokens
            ending = jnp.isin(jnp.arange(logits.shape[1]), ends)
            return jnp.argmax(jnp.where(early & ending, -jnp.inf, logits), -1).astype(jnp.int32)

        run = jax.jit(next_token)
        answers: list[np.ndarray] = []
        for start in range(0, self.num_samples, _ROWS):
            rows = self._told_rows(np.arange(start, min(start + _ROWS, self.num_samples)))
            texts = np.resize(rows, (_ROWS, rows.shape[1]))
            for position in range(numbers.prompt, texts.shape[1]):
                texts[:, position] = run(state, texts, np.int32(position))
            answers += [_up_to_the_end(row[numbers.prompt :], ends) for row in texts[: len(rows)]]
        return answers


class ServedLlama31(Generation, Llama31):
    """Trained as `Llama31` is, and served by the token."""


def _up_to_the_end(tokens: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Without what follows the first token that ends a text."""
    found = np.flatnonzero(np.isin(tokens, ends))
    return tokens[: found[0] + 1] if len(found) else tokens
