"""Greedy decoding of a transducer, on the device: in each frame the best class until that is the blank.

Rows go on each for itself: one step of the loop gives every row a symbol, or its next frame. The numbers are those of
MLPerf's reference, which decodes one utterance after the other (mlcommons/training, rnn_speech_recognition/pytorch/rnnt/
decoder.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NONE = -1
"""In an answer, where there is no symbol any more."""

Predict = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
"""(symbols [B], state) -> (what the joint network adds after them [B, J], state)."""


class _Progress(NamedTuple):
    frame: jax.Array  # [B], the one that each row is at
    in_frame: jax.Array  # [B], symbols said in it
    said: jax.Array  # [B], symbols at all
    symbols: jax.Array  # [B, L]
    predicted: jax.Array  # [B, J]
    state: Any  # of the prediction network, arrays [B, ...]


def greedy(
    joint: Callable[[jax.Array, jax.Array], jax.Array],
    predict: Predict,
    first: tuple[jax.Array, Any],
    encoded: jax.Array,
    num_frames: jax.Array,
    *,
    most: int,
    most_in_frame: int,
) -> jax.Array:
    """The symbols that are heard.

    Args:
        joint: (frames [B, J], predicted [B, J]) -> logits [B, V + 1], the last of the blank.
        predict: one step of the prediction network.
        first: what it gives before any symbol.
        encoded: [B, T, J].
        num_frames: [B] int, what of each row is no padding; may be 0.
        most: L, symbols of an utterance at most.
        most_in_frame: symbols of a frame at most.

    Returns:
        [B, L] int32, `NONE` after the last symbol.
    """
    batch = len(encoded)
    zero = jnp.zeros(batch, jnp.int32)

    def goes_on(at: _Progress) -> jax.Array:
        return (at.frame < num_frames) & (at.said < most)

    def step(at: _Progress) -> _Progress:
        here = jnp.clip(at.frame, 0, encoded.shape[1] - 1)
        frames = jnp.take_along_axis(encoded, here[:, None, None], axis=1)[:, 0]
        logits = joint(frames, at.predicted)
        best = logits.argmax(-1).astype(jnp.int32)
        speaks = (best < logits.shape[-1] - 1) & goes_on(at)
        predicted, state = predict(jnp.where(speaks, best, 0), at.state)
        in_frame = at.in_frame + speaks
        moves = ~speaks | (in_frame >= most_in_frame)
        written = (jnp.arange(most) == at.said[:, None]) & speaks[:, None]

        def taken(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(speaks.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return _Progress(
            frame=at.frame + moves,
            in_frame=jnp.where(moves, 0, in_frame),
            said=at.said + speaks,
            symbols=jnp.where(written, best[:, None], at.symbols),
            predicted=taken(predicted, at.predicted),
            state=jax.tree.map(taken, state, at.state),
        )

    start = _Progress(zero, zero, zero, jnp.full((batch, most), NONE, jnp.int32), *first)
    return jax.lax.while_loop(lambda at: goes_on(at).any(), step, start).symbols
