"""Connectionist temporal classification: a text's probability over all its alignments with the frames.

Every frame says a character or nothing (the blank, 0); a text is what remains when repetitions are merged and blanks
left out (Graves et al., 2006, "Connectionist Temporal Classification", section 4). Sums over alignments run forwards for
the loss and backwards for its gradient, in log space, one frame at a time for all rows and characters. Kept are the
forward sums alone: 2 U + 1 numbers a frame, where differentiating the forward loop keeps several times as many.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

BLANK = 0

_NEVER = -1e30  # the log of no probability; sums of it stay finite

Sums = tuple[jax.Array, jax.Array]
"""Logs of the sums over alignments whose frame is a blank after n characters [B, U + 1], or character n [B, U]."""


def ctc_loss(logits: jax.Array, frames: jax.Array, labels: jax.Array, num_labels: jax.Array) -> jax.Array:
    """The negative log probability of each text.

    Args:
        logits: [B, T, V] float, at least float32.
        frames: [B] int, how many of T are real.
        labels: [B, U] int, from 1; what stands after a text does not matter.
        num_labels: [B] int, characters of each text; 0 for an empty one.

    Returns:
        [B] in the dtype of the logits. A text that does not fit into its frames costs nothing, and has no gradient, as in
        warp-ctc, which the reference calls.
    """
    inside = jnp.arange(labels.shape[1]) < num_labels[:, None]
    labels = jnp.where(inside, labels, BLANK)
    repeated = (labels == _later(labels)) & inside
    fits = num_labels + repeated.sum(1) <= frames
    log_probs = jax.nn.log_softmax(logits)
    # Products with ones and zeros rather than gathers, whose gradients would be scattered.
    hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    said = jnp.einsum("btv,buv->tbu", log_probs, hot, precision=jax.lax.Precision.HIGHEST)
    real = (jnp.arange(logits.shape[1]) < frames[:, None]).T
    total = _log_probability(log_probs[..., BLANK].T, said, repeated, real, num_labels)
    return jnp.where(fits, -total, 0)


@jax.custom_vjp
def _log_probability(
    blank: jax.Array, said: jax.Array, repeated: jax.Array, real: jax.Array, num_labels: jax.Array
) -> jax.Array:
    """Log of the sum over all alignments.

    Args:
        blank: [T, B] log probability of saying nothing.
        said: [T, B, U] log probability of each character of the text.
        repeated: [B, U] bool, whether a character is as the one before it.
        real: [T, B] bool.
        num_labels: [B].

    Returns:
        [B].
    """
    return _forward(blank, said, repeated, real, num_labels)[0]


def _forward(
    blank: jax.Array, said: jax.Array, repeated: jax.Array, real: jax.Array, num_labels: jax.Array
) -> tuple[jax.Array, Any]:
    def body(sums: Sums, frame: tuple[jax.Array, ...]) -> tuple[Sums, Sums]:
        nothing, characters, is_real = frame
        at_blank, at_label = sums
        skipping = jnp.where(repeated, _NEVER, _later(at_label, _NEVER))
        entering = jnp.logaddexp(at_blank[:, :-1], skipping)
        new = (
            nothing[:, None] + jnp.logaddexp(at_blank, _after(at_label)),
            characters + jnp.logaddexp(at_label, entering),
        )
        sums = _where(is_real, new, sums)
        return sums, sums

    first = jnp.full(said.shape[1:], _NEVER, said.dtype)
    start = jnp.full_like(_after(first), _NEVER).at[:, 0].set(0), first
    end, every = jax.lax.scan(body, start, (blank, said, real))
    total = _ends(num_labels, end)
    return total, (blank, said, repeated, real, num_labels, every, total)


def _backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    """Of each frame the share of all alignments that are at each character there."""
    blank, said, repeated, real, num_labels, every, total = kept

    def body(rest: Sums, frame: Any) -> tuple[Sums, Sums]:
        nothing, characters, is_real, (at_blank, at_label) = frame
        shares = tuple(
            # Never more than all; without the bound a text that does not fit would overflow.
            jnp.exp(jnp.minimum(a + b - total[:, None], 0)) * (gradient * is_real)[:, None]
            for a, b in zip((at_blank, at_label), rest, strict=True)
        )
        to_blank, to_label = nothing[:, None] + rest[0], characters + rest[1]
        skipping = _sooner(jnp.where(repeated, _NEVER, to_label))
        new = (
            jnp.logaddexp(to_blank, jnp.pad(to_label, ((0, 0), (0, 1)), constant_values=_NEVER)),
            jnp.logaddexp(to_label, jnp.logaddexp(to_blank[:, 1:], skipping)),
        )
        return _where(is_real, new, rest), (shares[0].sum(1), shares[1])

    places = jnp.arange(said.shape[2] + 1)
    after = jnp.where(places == num_labels[:, None], 0.0, _NEVER).astype(said.dtype)
    _, (of_blank, of_said) = jax.lax.scan(
        body, (after, after[:, 1:]), (blank, said, real, every), reverse=True
    )
    return of_blank, of_said, None, None, None


_log_probability.defvjp(_forward, _backward)


def _ends(num_labels: jax.Array, sums: Sums) -> jax.Array:
    """What has said all of its text, with or without a blank after it."""
    places = jnp.arange(sums[0].shape[1]) == num_labels[:, None]
    either = jnp.logaddexp(sums[0], _after(sums[1]))
    return jnp.where(places, either, 0).sum(1)


def _where(chosen: jax.Array, new: Sums, old: Sums) -> Sums:
    a, b = (jnp.where(chosen[:, None], x, y) for x, y in zip(new, old, strict=True))
    return a, b


def _after(at_label: jax.Array) -> jax.Array:
    """[B, U] of characters as [B, U + 1] of the blanks after them; there is none before the first."""
    return jnp.pad(at_label, ((0, 0), (1, 0)), constant_values=_NEVER)


def _later(x: jax.Array, fill: float | int = -1) -> jax.Array:
    """[B, U] moved by one place: of every character what is of the one before it."""
    return jnp.pad(x, ((0, 0), (1, 0)), constant_values=fill)[:, :-1]


def _sooner(x: jax.Array) -> jax.Array:
    """[B, U] moved by one place: of every character what is of the one after it."""
    return jnp.pad(x, ((0, 0), (0, 1)), constant_values=_NEVER)[:, 1:]
