"""What this device reaches at best, measured now: products for FLOP/s, a triad for bytes/s."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlperf_jax.precision import Policy

_ROUNDS = 5
_SIZES = {"cpu": (2048, 1 << 24)}  # of a product's matrices, of a triad's arrays
_ON_A_CHIP = (8192, 1 << 28)


def measure(policy: Policy) -> dict[str, float]:
    """`flops` per second of a matrix product in the policy's dtype, `bytes` per second of a + s b; best of five."""
    n, length = _SIZES.get(jax.devices()[0].platform, _ON_A_CHIP)
    square = jnp.ones((n, n), policy.compute_dtype)
    with jax.default_matmul_precision(policy.matmul):
        product = jax.jit(lambda x, y: x @ y).lower(square, square).compile()
    seconds = _best(lambda: product(square, square))
    # The result takes the place of an argument: memory that is new to the process would be measured else.
    triad = jax.jit(lambda out, a, b: a + 3 * b, donate_argnums=0, keep_unused=True)
    a, b, out = (jnp.ones(length, jnp.float32) for _ in range(3))

    def turn() -> jax.Array:
        nonlocal out
        out = triad(out, a, b)
        return out

    return {"flops": 2 * n**3 / seconds, "bytes": 3 * a.nbytes / _best(turn)}


def _best(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    taken = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return min(taken)
