"""Rotary positions (Su et al., arXiv:2104.09864): pairs of features turn by angles that grow with the position.

A pair is a feature of the first half of a head and its fellow of the second half, as in Llama's published weights for
`transformers`; the paper pairs neighbours. Llama 3.1 stretches the slow waves so that they last for longer rows than it was
first trained on (Dubey et al., arXiv:2407.21783); source of the rule: NVIDIA/NeMo,
nemo/collections/llm/gpt/model/llama.py, apply_rope_scaling.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

Turns = tuple[jax.Array, jax.Array]
"""Cosines and sines, [L, K / 2] or [B, L, K / 2] each."""

_FIRST_LENGTH = 8192  # of the rows that Llama 3.1 was first trained on
_SLOW, _FAST = 1.0, 4.0  # turns in that many positions: from here on stretched in full, and no more


def frequencies(width: int, theta: float, stretch: float = 1.0) -> np.ndarray:
    """Radians a position of each pair: [width / 2] float64.

    Args:
        width: K, of a head.
        theta: the slowest wave is nearly so many times as long as the fastest.
        stretch: of slow waves, by Llama 3.1's rule; 1 for none.
    """
    plain = theta ** (-np.arange(0, width, 2) / width)
    turns = _FIRST_LENGTH * plain / (2 * np.pi)
    kept = np.clip((turns - _SLOW) / (_FAST - _SLOW), 0, 1)
    return (kept + (1 - kept) / stretch) * plain


def turns(positions: jax.Array, frequencies: np.ndarray, dtype: DTypeLike) -> Turns:
    """The turns at positions [L] or [B, L]; `dtype` is that of the angles, at least float32."""
    dtype = jnp.promote_types(dtype, jnp.float32)
    angles = positions[..., None].astype(dtype) * jnp.asarray(frequencies, dtype)
    return jnp.cos(angles), jnp.sin(angles)


def turned(x: jax.Array, by: Turns) -> jax.Array:
    """[B, L, H, K] at the positions that `by` is of; computed in the dtype of the turns, given in that of x."""
    cos, sin = (part[..., None, :] for part in by)
    first, second = jnp.split(x.astype(cos.dtype), 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
