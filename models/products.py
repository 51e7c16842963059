"""Products with parameters, in the form that each platform runs best."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from mlperf_jax.platform import compiled_for


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., I] times [I, O] of the same dtype: [..., O].

    jax asks for the kernel's gradient as a product whose first operand is the gradient of the output. XLA:CPU
    turns that operand around, and with it computes anew whatever it was made of, element by element across
    memory. There the narrower operand is the first. The numbers are the same.
    """
    return _product(x, kernel) if compiled_for() == "cpu" else jnp.dot(x, kernel)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.dot(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.dot(x, kernel), (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    rows = tuple(range(x.ndim - 1))

    def over_rows(a: jax.Array, b: jax.Array) -> jax.Array:
        return lax.dot_general(a, b, ((rows, rows), ((), ())))

    features_in, features_out = kernel.shape
    if features_in <= features_out:
        of_kernel = _in_this_order(over_rows(x, gradient))
    else:
        of_kernel = _in_this_order(over_rows(gradient, x)).T
    return jnp.dot(gradient, kernel.T), of_kernel


def _in_this_order(x: jax.Array) -> jax.Array:
    """Changes nothing, but XLA does not make a product in the other order of a transpose of this one."""
    bits = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, bits.nexp, bits.nmant)


_product.defvjp(_forward, _backward)
