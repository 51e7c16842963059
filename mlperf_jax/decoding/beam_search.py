"""Beam search on the device, with static shapes.

The search of MLPerf's Transformer (mlcommons/training, retired_benchmarks/transformer, beam_search.py):
beams that live and the best that are finished are kept apart; finished ones are ranked by log-probability
over `((5 + length) / 6) ** alpha` (Wu et al., arXiv:1609.08144, without coverage).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlperf_jax.decoding.largest import largest

WORST = -1e7
"""Below every score that a sentence can have."""

Step = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""(tokens [B, K], position [], ancestors [B, K, L], cache) -> (logits [B, K, V] of the next token, cache).

`ancestors[b, k, t]` is the beam whose entry at position t < position belongs to what beam k decoded so far:
the cache need not be moved when beams change places."""


class _Beams(NamedTuple):
    """What was found of B rows.

    Attributes:
        tokens: [B, K, L] of living beams.
        log_probs: [B, K], descending.
        ancestors: [B, K, L], see `Step`.
        finished: [B, K, L] of finished sentences.
        scores: [B, K], descending, `WORST` where there is none.
    """

    tokens: jax.Array
    log_probs: jax.Array
    ancestors: jax.Array
    finished: jax.Array
    scores: jax.Array


class _State(NamedTuple):
    """Where the search stands: `position` [] int32 tokens are decoded, and `cache` is the model's."""

    position: jax.Array
    beams: _Beams
    cache: Any


def beam_search(
    step: Step, cache: Any, limits: jax.Array, length: int, *, beams: int, alpha: float, end: int = 1
) -> tuple[jax.Array, jax.Array]:
    """The best sentence for each row.

    A row's result depends on nothing but the row: it has a limit of its own, and does not change any more
    once no living beam can beat its finished ones.

    Args:
        step: the model.
        cache: its cache before the first token.
        limits: [B] int, the most tokens of each row's sentence, at most `length`.
        length: L.
        beams: K.
        alpha: how much longer sentences are favoured.
        end: the token that ends a sentence.

    Returns:
        [B, L] int32 tokens, `end` among them unless the limit came first, then zeros; and scores [B].
    """
    batch = limits.shape[0]
    first_logits, _ = jax.eval_shape(
        step,
        jax.ShapeDtypeStruct((batch, beams), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((batch, beams, length), jnp.int32),
        cache,
    )
    dtype = first_logits.dtype
    empty = jnp.zeros((batch, beams, length), jnp.int32)
    state = _State(
        position=jnp.zeros((), jnp.int32),
        beams=_Beams(
            tokens=empty,
            # Only one beam at first: the others would find the same.
            log_probs=jnp.full((batch, beams), -jnp.inf, dtype).at[:, 0].set(0),
            ancestors=empty,
            finished=empty,
            scores=jnp.full((batch, beams), WORST, dtype),
        ),
        cache=cache,
    )

    def active(state: _State) -> jax.Array:
        """[B]: whether a row's result can still change."""
        # Log-probabilities only fall, and no penalty is larger than that of the limit.
        best_possible = state.beams.log_probs[:, 0] / _penalty(limits, alpha, dtype)
        return (state.position < limits) & ~(state.beams.scores[:, 0] > best_possible)

    def body(state: _State) -> _State:
        new = _grow(step, state, beams, alpha, end)
        rows = active(state)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(rows.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        # The cache of a row that is done no longer matters, and copying it would cost.
        return new._replace(beams=jax.tree.map(choose, new.beams, state.beams))

    found = jax.lax.while_loop(lambda state: active(state).any(), body, state).beams
    none = found.scores[:, 0] <= WORST
    tokens = jnp.where(none[:, None], found.tokens[:, 0], found.finished[:, 0])
    return tokens, jnp.where(none, found.log_probs[:, 0], found.scores[:, 0])


def _grow(step: Step, state: _State, beams: int, alpha: float, end: int) -> _State:
    """All beams of all rows, one token further.

    For example, two beams of one row at position 1, words a and b, and no penalty (alpha 0). Of each the
    model says how probable it is to go on so; the sums of logarithms are:

        beam    so far    and then end    a       b
        0       a         -1.2            -3.0    -4.0
        1       b         -2.0            -1.8    -5.0

    Twice the beams are looked at, here -1.2, -1.8, -2.0 and -3.0. Those that do not end live on: "b a",
    whose ancestors are beam 0 at position 0 (at first there was no other) and beam 1 at position 1, then
    "a a" of beam 0. Those that end, "a" and "b", are ranked with the finished ones of before.
    """
    position, old = state.position, state.beams
    last = jnp.where(position == 0, 0, old.tokens[:, :, jnp.maximum(position - 1, 0)])
    logits, cache = step(last, position, old.ancestors, state.cache)
    log_probs = jax.nn.log_softmax(logits) + old.log_probs[..., None]
    vocab_size = logits.shape[-1]
    # Twice the beams: even if half of them end here, enough live on.
    log_probs, chosen = largest(log_probs.reshape(len(log_probs), -1), 2 * beams)
    parents, token = chosen // vocab_size, chosen % vocab_size
    tokens = _take(old.tokens, parents).at[:, :, position].set(token)
    ended = token == end

    living, order = jax.lax.top_k(jnp.where(ended, -jnp.inf, log_probs), beams)
    parents = jnp.take_along_axis(parents, order, axis=1)
    ancestors = _take(old.ancestors, parents).at[:, :, position].set(parents)

    scores = jnp.where(ended, log_probs / _penalty(position + 1, alpha, log_probs.dtype), WORST)
    scores = jnp.concatenate([old.scores, scores], 1)
    scores, best = jax.lax.top_k(scores, beams)
    finished = _take(jnp.concatenate([old.finished, tokens], 1), best)
    return _State(position + 1, _Beams(_take(tokens, order), living, ancestors, finished, scores), cache)


def _penalty(length: jax.Array, alpha: float, dtype: Any) -> jax.Array:
    return ((5 + length.astype(dtype)) / 6) ** alpha


def _take(x: jax.Array, beams: jax.Array) -> jax.Array:
    """Rows [B, N] of [B, K, L]: [B, N, L]."""
    return jnp.take_along_axis(x, beams[..., None], axis=1)
