"""The loss of a recurrent neural network transducer (Graves, arXiv:1211.3711).

A path through the lattice of T frames and U symbols says at each point (t, u) either nothing, which leads to (t + 1, u), or
the next symbol, which leads to (t, u + 1); it ends with nothing said in the last frame after the last symbol. The loss is
less the logarithm of the sum of all paths' probabilities.

Forward and backward variables are computed diagonal by diagonal, as all points with the same t + u depend on those of the
diagonal before alone: T + U steps of U + 1 numbers a row. The gradient comes from both, so that nothing is kept but what is
as large as the lattice.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_NEVER = -1e30  # a logarithm of no probability; of minus infinity sums would be no number


@jax.custom_vjp
def transducer_loss(
    blank: jax.Array, label: jax.Array, num_frames: jax.Array, num_symbols: jax.Array
) -> jax.Array:
    """Minus the log probability of transcripts.

    Args:
        blank: [B, T, U + 1], log probabilities that nothing is said in a frame after so many symbols.
        label: [B, T, U], those of the next symbol of the transcript.
        num_frames: [B] int, at least 1.
        num_symbols: [B] int, at least 0; U may be 0 too.

    Returns:
        [B] in the dtype of `blank`.
    """
    return _forward(blank, label, num_frames, num_symbols)[0]


def _forward(
    blank: jax.Array, label: jax.Array, num_frames: jax.Array, num_symbols: jax.Array
) -> tuple[jax.Array, Any]:
    blank, label = _inside(blank, label, num_frames, num_symbols)
    of_blank, of_label = _diagonals(blank), _diagonals(label)
    start = jnp.where(jnp.arange(blank.shape[2]) == 0, 0, _NEVER).astype(blank.dtype)

    def step(before: jax.Array, steps: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        nothing, symbol = steps
        said = jnp.pad((before + symbol)[:, :-1], ((0, 0), (1, 0)), constant_values=_NEVER)
        return jnp.logaddexp(before + nothing, said), before

    start = jnp.broadcast_to(start, of_blank.shape[1:])
    _, alpha = jax.lax.scan(step, start, (of_blank, of_label))
    last = num_frames - 1 + num_symbols
    total = _at(alpha + of_blank, last, num_symbols)
    return -total, (of_blank, of_label, alpha, total, num_frames, num_symbols)


def _backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, None, None]:
    of_blank, of_label, alpha, total, num_frames, num_symbols = kept
    diagonals, _, width = of_blank.shape
    ends = jnp.arange(width) == num_symbols[:, None]

    def step(after: jax.Array, steps: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        n, nothing, symbol = steps
        after = jnp.where(ends & (n == num_frames + num_symbols - 1)[:, None], 0, after)
        said = jnp.pad(after[:, 1:], ((0, 0), (0, 1)), constant_values=_NEVER)
        return jnp.logaddexp(after + nothing, said + symbol), after

    never = jnp.full_like(alpha[0], _NEVER)
    order = jnp.arange(diagonals)
    _, after = jax.lax.scan(step, never, (order, of_blank, of_label), reverse=True)
    said = jnp.pad(after[:, :, 1:], ((0, 0), (0, 0), (0, 1)), constant_values=_NEVER)
    weight = -gradient[:, None]
    through_blank = weight * jnp.exp(alpha + of_blank + after - total[:, None])
    through_label = weight * jnp.exp(alpha + of_label + said - total[:, None])
    return _frames(through_blank), _frames(through_label)[:, :, :-1], None, None


transducer_loss.defvjp(_forward, _backward)


def _inside(
    blank: jax.Array, label: jax.Array, num_frames: jax.Array, num_symbols: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both [B, T, U + 1], with no probability outside of each row's lattice."""
    label = jnp.pad(label, ((0, 0), (0, 0), (0, 1)))
    length, width = blank.shape[1:]
    frames = (jnp.arange(length) < num_frames[:, None])[:, :, None]
    symbols = jnp.arange(width)
    within = frames & (symbols <= num_symbols[:, None])[:, None]
    before_last = frames & (symbols < num_symbols[:, None])[:, None]
    return jnp.where(within, blank, _NEVER), jnp.where(before_last, label, _NEVER)


def _diagonals(x: jax.Array) -> jax.Array:
    """[B, T, W] to [T + W - 1, B, W]: what is at (t, u) goes to (t + u, u). Rows are made longer, and cut one shorter."""
    batch, length, width = x.shape
    columns = jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, width)), constant_values=_NEVER)
    skewed = columns.reshape(batch, -1)[:, :-width].reshape(batch, width, length + width - 1)
    return skewed.transpose(2, 0, 1)


def _frames(x: jax.Array) -> jax.Array:
    """The inverse of `_diagonals`."""
    diagonals, batch, width = x.shape
    columns = jnp.pad(x.transpose(1, 2, 0).reshape(batch, -1), ((0, 0), (0, width)))
    straight = columns.reshape(batch, width, diagonals + 1)[:, :, : diagonals - width + 1]
    return straight.swapaxes(1, 2)


def _at(x: jax.Array, diagonal: jax.Array, symbols: jax.Array) -> jax.Array:
    """One number [B] of each row of [N, B, W]."""
    return x[diagonal, jnp.arange(x.shape[1]), symbols]
