"""What is asked of the engine, and who hears of it."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A text to be continued.

    Attributes:
        prompt: [L] int32 tokens, at least one.
        max_tokens: so many new ones at most, the one that ends the text among them.
        min_tokens: and so many at least: before, nothing ends the text.
        temperature: 0 takes the likeliest token; else logits are divided by it, and a token is drawn.
        top_p: drawn from the fewest likeliest tokens whose probabilities add up to at least this.
        seed: of the draws; below 2^32.
    """

    prompt: np.ndarray
    max_tokens: int
    min_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Listener(Protocol):
    """Hears of one request, in the engine's thread, and should return at once.

    One that raises ends its own request, and no other.
    """

    def token(self, token: int, last: bool) -> None:
        """The next token is there, and whether it is the last."""

    def failed(self, why: str) -> None:
        """There will be no more tokens; a sentence for people."""


def refusal(request: Request, *, length: int, vocabulary: int) -> str | None:
    """Why a request cannot be answered, in a sentence, or None.

    Args:
        request: in question.
        length: positions that a text can have, prompt and answer.
        vocabulary: tokens that the model knows.
    """
    prompt = np.asarray(request.prompt)
    if prompt.ndim != 1 or not len(prompt) or prompt.dtype.kind not in "iu":
        return "The prompt must be a list of at least one token."
    if prompt.min() < 0 or prompt.max() >= vocabulary:
        return f"The prompt has tokens that are none of the model's {vocabulary:,}."
    if request.max_tokens < 1:
        return f"max_tokens is {request.max_tokens}; give at least 1."
    if not 0 <= request.min_tokens <= request.max_tokens:
        return f"min_tokens is {request.min_tokens}; give 0 to {request.max_tokens}, which is max_tokens."
    if len(prompt) + request.max_tokens > length:
        return (
            f"A prompt of {len(prompt):,} tokens and {request.max_tokens:,} new ones are more than the "
            f"{length:,} that a text can have; give less."
        )
    if not 0 <= request.temperature < float("inf"):
        return f"temperature is {request.temperature}; give 0 or more."
    if not 0 < request.top_p <= 1:
        return f"top_p is {request.top_p}; give more than 0, and at most 1."
    if not 0 <= request.seed < 1 << 32:
        return f"seed is {request.seed}; give 0 to {(1 << 32) - 1}."
    return None
