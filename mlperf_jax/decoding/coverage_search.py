"""GNMT's beam search on the device, with static shapes.

K beams, those that ended among them: an ended one keeps its score, so it must stay among the K best sums of
logarithms. When all have ended they are ranked by Wu et al.'s score (arXiv:1609.08144, section 7):

    log P / ((5 + length) / 6)**alpha  +  beta * sum over source tokens of log(min(attention it got, 1))

The length counts the start, the words and the end; source tokens that got none count nothing. So has
mlcommons/training, rnn_translator/pytorch/seq2seq/inference/beam_search.py, but for two slips that are not repeated:
there a beam that changes its place leaves its attention behind, and a sentence that was cut has no penalty at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlperf_jax.decoding.largest import largest

Step = Callable[[jax.Array, Any], tuple[jax.Array, jax.Array, Any]]
"""(tokens [B, K], state) -> (logits [B, K, V] of the next token, attention [B, K, M], state).

The state is a tree of arrays [B, K, ...], which move with the beams."""


class _Beams(NamedTuple):
    """What was found of B rows.

    Attributes:
        tokens: [B, K, L].
        log_probs: [B, K].
        lengths: [B, K] int32, of the words and the end.
        ended: [B, K] bool.
        coverage: [B, K, M], attention that each source token got.
    """

    tokens: jax.Array
    log_probs: jax.Array
    lengths: jax.Array
    ended: jax.Array
    coverage: jax.Array


def coverage_search(
    step: Step,
    state: Any,
    limits: jax.Array,
    length: int,
    *,
    source_length: int,
    beams: int,
    alpha: float,
    beta: float,
    start: int,
    end: int,
) -> tuple[jax.Array, jax.Array]:
    """The best sentence for each row; it depends on nothing but the row.

    Args:
        step: the model.
        state: its state before the first token.
        limits: [B] int, the most tokens of each row's sentence, at most `length`.
        length: L.
        source_length: M.
        beams: K.
        alpha, beta: of length and coverage.
        start: the token that stands before the first.
        end: the token that ends a sentence.

    Returns:
        [B, L] int32 tokens, `end` among them unless the limit came first, then zeros; and scores [B].
    """
    shape = (limits.shape[0], beams)
    logits, weights, _ = jax.eval_shape(step, jax.ShapeDtypeStruct(shape, jnp.int32), state)
    found = _Beams(
        tokens=jnp.zeros((*shape, length), jnp.int32),
        # Only one beam at first: the others would find the same.
        log_probs=jnp.full(shape, -jnp.inf, logits.dtype).at[:, 0].set(0),
        lengths=jnp.zeros(shape, jnp.int32),
        ended=jnp.zeros(shape, bool),
        coverage=jnp.zeros((*shape, source_length), weights.dtype),
    )

    def active(position: jax.Array, found: _Beams) -> jax.Array:
        """[B]: whether a row's result can still change."""
        return (position < limits) & ~found.ended.all(1)

    def body(carry: tuple[jax.Array, _Beams, Any]) -> tuple[jax.Array, _Beams, Any]:
        position, found, state = carry
        last = jnp.where(position == 0, start, found.tokens[:, :, jnp.maximum(position - 1, 0)])
        last = jnp.where(found.ended, end, last)
        grown, state = _grow(step, last, position, found, state, end)
        rows = active(position, found)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(rows.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return position + 1, jax.tree.map(choose, grown, found), state

    def goes_on(carry: tuple[jax.Array, _Beams, Any]) -> jax.Array:
        return active(*carry[:2]).any()

    _, found, _ = jax.lax.while_loop(goes_on, body, (jnp.zeros((), jnp.int32), found, state))
    scores = _scores(found, alpha, beta)
    best = scores.argmax(1)[:, None]
    return _take(found.tokens, best)[:, 0], _take(scores, best)[:, 0]


def _grow(
    step: Step, last: jax.Array, position: jax.Array, old: _Beams, state: Any, end: int
) -> tuple[_Beams, Any]:
    """All beams of all rows, one token further; those that ended go on as they are, as one candidate each."""
    logits, attention, state = step(last, state)
    vocab_size = logits.shape[-1]
    stays = jnp.where(jnp.arange(vocab_size) == end, 0.0, -jnp.inf).astype(logits.dtype)
    log_probs = jnp.where(old.ended[..., None], stays, jax.nn.log_softmax(logits)) + old.log_probs[..., None]
    best, chosen = largest(log_probs.reshape(len(log_probs), -1), old.ended.shape[1])
    parents, token = chosen // vocab_size, chosen % vocab_size
    coverage = old.coverage + jnp.where(old.ended[..., None], 0, attention)
    were_ended = _take(old.ended, parents)
    new = _Beams(
        tokens=_take(old.tokens, parents).at[:, :, position].set(jnp.where(were_ended, 0, token)),
        log_probs=best,
        lengths=_take(old.lengths, parents) + ~were_ended,
        ended=were_ended | (token == end),
        coverage=_take(coverage, parents),
    )
    return new, jax.tree.map(lambda s: _take(s, parents), state)


def _scores(found: _Beams, alpha: float, beta: float) -> jax.Array:
    """[B, K], see the module."""
    dtype = found.log_probs.dtype
    norm = ((6 + found.lengths.astype(dtype)) / 6) ** alpha
    covered = found.coverage > 0
    logs = jnp.where(covered, jnp.log(jnp.minimum(jnp.where(covered, found.coverage, 1), 1)), 0)
    return found.log_probs / norm + beta * logs.sum(-1).astype(dtype)


def _take(x: jax.Array, beams: jax.Array) -> jax.Array:
    """Rows [B, N] of [B, K, ...]: [B, N, ...]."""
    return jnp.take_along_axis(x, beams.reshape(*beams.shape, *[1] * (x.ndim - 2)), axis=1)
