"""Who sees whom in attention, as data."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

MASKED = -1e9
"""Scores that must not count. Finite: a query that sees no key gets a mean, which means nothing, and not NaN."""


@dataclasses.dataclass(frozen=True)
class Mask:
    """Which keys a query sees; all parts that are given must agree.

    Attributes:
        query_segment, key_segment: [B, L] and [B, M] int, both or none: a query sees keys of its own segment.
            Keys of a segment that no query has are seen by none: so padding is said.
        causal: a query at position i sees keys up to i.
        window: and none further away than this, itself counted: |i - j| < window.
    """

    query_segment: jax.Array | None = None
    key_segment: jax.Array | None = None
    causal: bool = False
    window: int | None = None

    def __post_init__(self) -> None:
        if (self.query_segment is None) != (self.key_segment is None):
            raise ValueError("segments are those of queries and of keys together")
        if self.window is not None and self.window < 1:
            raise ValueError(f"a window of {self.window} holds no key")

    @property
    def segments(self) -> bool:
        return self.query_segment is not None

    def visible(self, queries: jax.Array, keys: jax.Array, key_segment: jax.Array | None) -> jax.Array | None:
        """[B or 1, L, M] bool of positions [L] and [M] and the keys' segments [B, M]; None where all is seen."""
        parts = []
        behind = queries[:, None] - keys
        if self.query_segment is not None and key_segment is not None:
            parts.append(self.query_segment[:, :, None] == key_segment[:, None])
        if self.causal:
            parts.append((behind >= 0)[None])
        if self.window is not None:
            parts.append((jnp.abs(behind) < self.window)[None])
        return functools.reduce(jnp.logical_and, parts) if parts else None


EVERYTHING = Mask()
"""Every query sees every key."""
