"""A fixed number of examples out of many, at random: some that hold something, the others background."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mlperf_jax.detection import boxes as box


def sample(labels: jax.Array, key: jax.Array, count: int, share: float) -> tuple[jax.Array, jax.Array]:
    """Draws examples of each image without repetition, every one of a kind as likely as any other.

    At most `share` of them are positive; where there are fewer, background takes their places, and where there
    is too little of that, places stay empty.

    Args:
        labels: [B, A] int32: 0 for background, more for what holds something, less for what is not to be drawn.
        key: of the draw.
        count: of examples, N.
        share: of them that may be positive, rounded down.

    Returns:
        [B, N] int32, their places in A, first the positive ones, then background; and [B, N] bool, False for
        places that stay empty.
    """
    drawn = jax.random.uniform(key, labels.shape, jnp.float32)
    kinds = ((labels > 0, int(count * share)), (labels == 0, count))
    found, there = [], []
    for kind, most in kinds:
        most = min(most, labels.shape[1])
        luck, places = jax.lax.top_k(jnp.where(kind, drawn, -1), most)
        found.append(places)
        there.append(luck >= 0)
    places, is_there = jnp.concatenate(found, axis=1), jnp.concatenate(there, axis=1)
    lacking = max(0, count - places.shape[1])
    places, is_there = (jnp.pad(x, ((0, 0), (0, lacking))) for x in (places, is_there))
    order = jnp.argsort(~is_there, axis=1, stable=True)[:, :count]
    places, is_there = (box.rows_of(x, order) for x in (places, is_there))
    return places.astype(jnp.int32), is_there
