"""What a decoder tells without cache, pages or slots: the answers that an engine's are held against.

A pass computes whole texts, prompts and what is thought to follow them, and so says of every token what should stand in its
place. Up to the first that should be another one all is settled, that one too; what the pass says of the rest is the next
guess. Good guesses save passes. Whatever they are, answers are those of a loop that takes each token from the whole text
before it, one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.tokens.requests import Request
from models.decoder import Decoder

_ROWS = 16  # texts of a pass


def told_plainly(
    following: Callable[[np.ndarray, np.ndarray, np.ndarray], Any],
    requests: Sequence[Request],
    guesses: Iterable[np.ndarray],
    *,
    ends: Sequence[int],
    length: int,
) -> list[np.ndarray]:
    """Greedy answers [tokens] int32.

    Args:
        following: `likeliest` of a model, compiled.
        requests: what is asked.
        guesses: of each answer, [tokens] of any number.
        ends: tokens that end a text.
        length: L, positions of the longest prompt and answer.
    """
    answers = [np.zeros(0, np.int32) for _ in requests]  # as far as they are settled
    thought = [np.asarray(guess, np.int32) for guess in guesses]
    left = deque(range(len(requests)))
    while left:
        some = [left.popleft() for _ in range(min(_ROWS, len(left)))]
        texts = np.zeros((_ROWS, length), np.int32)
        first, least = np.ones(_ROWS, np.int32), np.zeros(_ROWS, np.int32)
        for row, number in enumerate(some):
            text = np.concatenate([requests[number].prompt, thought[number]])[:length]
            texts[row, : len(text)] = text
            first[row], least[row] = len(requests[number].prompt), requests[number].min_tokens
        for number, said in zip(some, np.asarray(following(texts, first, least)), strict=False):
            answer, guess = answers[number], thought[number]
            settled = np.concatenate([answer, said[len(answer) :]])[: requests[number].max_tokens]
            right = _agree(settled, guess) + 1
            answers[number], thought[number] = _up_to_the_end(settled[:right], ends), settled
            if len(answers[number]) == right < len(settled) and answers[number][-1] not in ends:
                left.append(number)
    return answers


def likeliest(
    model: Decoder,
    texts: jax.Array,
    first: jax.Array,
    least: jax.Array,
    *,
    most: int,
    ends: Sequence[int],
) -> jax.Array:
    """Of whole texts the likeliest tokens at some positions, each behind all tokens before it: [B, most] int32.

    Args:
        model: the decoder.
        texts: [B, L] int32.
        first: [B] int32, the position from which on tokens are told.
        least: [B] int32, of which so many are no ends.
        most: how many.
        ends: tokens that end a text.
    """
    states = model.hidden(texts).states
    among = jnp.arange(most)
    at = jnp.minimum(first[:, None] - 1 + among, texts.shape[1] - 1)
    states = jnp.take_along_axis(states, at[..., None], 1)

    def of_one(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        states, least = part
        logits = model.logits(states[None])[0]
        ending = jnp.isin(jnp.arange(logits.shape[1]), np.asarray(ends, np.int32))
        early = (among < least)[:, None]
        return jnp.argmax(jnp.where(early & ending, -jnp.inf, logits), -1).astype(jnp.int32)

    return jax.lax.map(of_one, (states, least))


def _agree(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with alike."""
    shorter = min(len(one), len(other))
    apart = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(apart[0]) if len(apart) else shorter


def _up_to_the_end(tokens: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Without what follows the first token that ends a text."""
    found = np.flatnonzero(np.isin(tokens, np.asarray(ends, np.int32)))
    return tokens[: found[0] + 1] if len(found) else tokens
