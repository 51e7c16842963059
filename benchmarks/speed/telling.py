"""Answers of models that are served by the token: from prompts to whole texts, through the engine."""

from __future__ import annotations

import numpy as np

from mlperf_jax.parallel.layout import Layout
from mlperf_jax.tokens.answers import answers
from mlperf_jax.tokens.requests import Request
from mlperf_jax.workload import State, TokenWorkload


class Telling:
    """A workload's programs, and made-up prompts as long as its samples' may be, each with as many tokens to be told.

    Attributes:
        slots: texts that are told at a time.
        count: tokens of an answer.
    """

    def __init__(self, workload: TokenWorkload, state: State, layout: Layout, *, seed: int) -> None:
        numbers = workload.config.inference
        self._programs = workload.token_programs(state, layout)
        self.slots, self.count = self._programs.sizes.slots, numbers.max_tokens
        random = np.random.default_rng(seed)
        shape = self.slots, numbers.prompt
        self._prompts = random.integers(0, self._programs.vocabulary, shape).astype(np.int32)
        self._compiled = False

    def asked(self, texts: int) -> dict[str, np.ndarray]:
        """What peers are told: `prompts` [texts, L] int32 and `count` []."""
        return {"prompts": self._prompts[:texts], "count": np.array(self.count)}

    def compile(self) -> None:
        if not self._compiled:
            self._programs.compile()
        self._compiled = True

    def answer(self, texts: int) -> np.ndarray:
        """Greedily, [texts, count] int32."""
        asked = (Request(prompt, self.count, self.count) for prompt in self._prompts[:texts])
        return np.stack(answers(self._programs, asked))
