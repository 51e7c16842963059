"""The text that the frames of a recording say, for models trained by CTC: greedy, or by prefix beam search.

Both are compiled for whole batches. Blank is 0, which also fills up rows of tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlperf_jax.speech.ctc import BLANK

_NEVER = -1e30  # the log of no probability
_ALIVE = -1e29


def greedy(logits: jax.Array, frames: jax.Array) -> jax.Array:
    """Every frame's likeliest token, repetitions merged and blanks left out.

    Args:
        logits: [B, T, V].
        frames: [B] int, how many of T are real.

    Returns:
        [B, T] int32 tokens, zeros after the text.
    """
    path = logits.argmax(-1).astype(jnp.int32)
    before = jnp.pad(path, ((0, 0), (1, 0)))[:, :-1]  # blank stands before the first
    real = jnp.arange(path.shape[1]) < frames[:, None]
    said = (path != BLANK) & (path != before) & real
    order = jnp.argsort(~said, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(said, path, BLANK), order, axis=1)


class _Beams(NamedTuple):
    """The likeliest texts so far of one row, all different.

    Attributes:
        tokens: [K, L] int32, zeros after a text.
        length: [K] int32.
        blank, label: [K] logs of the sums over alignments whose last frame is a blank, or the text's last token;
            `_NEVER` both where there are fewer texts than K.
    """

    tokens: jax.Array
    length: jax.Array
    blank: jax.Array
    label: jax.Array

    @property
    def score(self) -> jax.Array:
        return jnp.logaddexp(self.blank, self.label)


def prefix_beam_search(logits: jax.Array, frames: jax.Array, *, beams: int) -> tuple[jax.Array, jax.Array]:
    """The likeliest text by the sum over its alignments, as far as `beams` texts at every frame tell.

    Args:
        logits: [B, T, V], at least float32.
        frames: [B] int, how many of T are real.
        beams: K, texts that are followed.

    Returns:
        Tokens [B, T] int32, zeros after the text, and the log of its probability over the alignments followed [B].
    """
    log_probs = jax.nn.log_softmax(logits)
    batch, length, _ = logits.shape
    never = jnp.full((batch, beams), _NEVER, logits.dtype)
    start = _Beams(
        jnp.zeros((batch, beams, length), jnp.int32),
        jnp.zeros((batch, beams), jnp.int32),
        never.at[:, 0].set(0),
        never,
    )

    def body(state: _Beams, frame: tuple[jax.Array, jax.Array]) -> tuple[_Beams, None]:
        log_prob, number = frame
        new = jax.vmap(_extended)(state, log_prob)
        real = number < frames
        chosen = [
            jnp.where(real.reshape(batch, *[1] * (a.ndim - 1)), a, b) for a, b in zip(new, state, strict=True)
        ]
        return _Beams(*chosen), None

    every = log_probs.swapaxes(0, 1), jnp.arange(length)
    state, _ = jax.lax.scan(body, start, every)
    best = state.score.argmax(1)[:, None]
    tokens = jnp.take_along_axis(state.tokens, best[..., None], axis=1)[:, 0]
    return tokens, jnp.take_along_axis(state.score, best, axis=1)[:, 0]


def _extended(state: _Beams, log_prob: jax.Array) -> _Beams:
    """The likeliest texts after one more frame of log probabilities [V]; texts stay, or have one token more."""
    beams, vocab_size = len(state.length), len(log_prob)
    rows, ends = jnp.arange(beams), state.length - 1
    last = jnp.where(state.length > 0, state.tokens[rows, ends], BLANK)
    longer = log_prob + jnp.where(
        jnp.arange(vocab_size) == last[:, None], state.blank[:, None], state.score[:, None]
    )
    longer = longer.at[:, BLANK].set(_NEVER)
    # A text may stay, and another become the same with one token more.
    shortened = state.tokens.at[rows, ends].set(BLANK)
    becomes = (state.tokens[:, None] == shortened[None]).all(-1) & (state.length > 0)
    becomes &= state.score > _ALIVE
    joining = jnp.where(becomes, longer[:, last], _NEVER).max(0)
    joined = (becomes[..., None] & (jnp.arange(vocab_size) == last[:, None])).any(1)
    longer = jnp.where(joined, _NEVER, longer)
    again = jnp.where(state.length > 0, state.label + log_prob[last], _NEVER)
    blank, label = state.score + log_prob[BLANK], jnp.logaddexp(again, joining)

    scores, chosen = jax.lax.top_k(jnp.concatenate([jnp.logaddexp(blank, label), longer.reshape(-1)]), beams)
    stays, added = chosen < beams, (chosen - beams) % vocab_size
    parent = jnp.where(stays, chosen, (chosen - beams) // vocab_size)
    tokens, length = state.tokens[parent], state.length[parent]
    appended = tokens.at[rows, length].set(jnp.where(stays, tokens[rows, length], added), mode="drop")
    return _Beams(
        jnp.where(scores[:, None] > _ALIVE, appended, BLANK),
        jnp.where(scores > _ALIVE, jnp.where(stays, length, length + 1), 0),
        jnp.where(stays, blank[parent], _NEVER),
        jnp.where(stays, label[parent], scores),
    )
