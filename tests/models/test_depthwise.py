"""Shifted products against lax's own grouped convolution, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from models.depthwise import shifted_products


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.sampled_from([(1, 1), (3, 3), (5, 3)]),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["SAME", ((1, 1), (1, 1)), ((2, 0), (1, 3))]),
    seed=st.integers(0, 99),
)
def test_it_is_the_grouped_convolution(size, window, stride, padding, seed):
    if not isinstance(padding, str):
        padded = [n + sum(pads) for n, pads in zip(size, padding, strict=True)]
        if any(n < w for n, w in zip(padded, window, strict=True)):
            return
    random = np.random.default_rng(seed)
    with jax.enable_x64(True):
        x = jnp.asarray(random.normal(size=(2, *size, 4)))
        kernel = jnp.asarray(random.normal(size=(*window, 1, 4)))

        def judge(x, kernel):
            return lax.conv_general_dilated(
                x,
                kernel,
                stride,
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=4,
            )

        found, pull = jax.vjp(lambda *a: shifted_products(*a, stride, padding), x, kernel)
        expected, judged = jax.vjp(judge, x, kernel)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        weights = jnp.asarray(random.normal(size=expected.shape))
        for a, b in zip(pull(weights), judged(weights), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_volumes_have_one_dimension_more():
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, 5, 4, 6, 3)), random.normal(size=(3, 3, 3, 1, 3))
    expected = lax.conv_general_dilated(
        x, kernel, (2, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), feature_group_count=3
    )
    np.testing.assert_allclose(shifted_products(x, kernel, (2, 1, 1), "SAME"), expected, rtol=1e-5, atol=1e-5)
