"""The precision policy: what a platform gets, and what cannot be."""

import jax.numpy as jnp
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES, Policy, resolve_policy


@pytest.mark.parametrize(
    ("platform", "compute"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")]
)
def test_platforms_get_what_suits_them(platform, compute):
    policy = resolve_policy("auto", platform)
    assert (policy.param, policy.compute, policy.output) == ("float32", compute, "float32")
    assert policy.compute_dtype == jnp.dtype(compute) and not policy.needs_x64


def test_float64_is_everywhere_and_needs_x64():
    policy = POLICIES["float64"]
    assert {policy.param, policy.compute, policy.reduce, policy.output} == {"float64"} and policy.needs_x64


def test_an_unknown_precision_names_the_known_ones():
    with pytest.raises(UserError, match="no precision 'fp8'; use auto, float32"):
        resolve_policy("fp8", "cpu")


def test_gradients_are_not_summed_in_more_than_their_products_have():
    with pytest.raises(ValueError, match="bfloat16 cannot be summed in float32"):
        Policy(compute="bfloat16", reduce="float32")
