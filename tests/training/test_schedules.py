"""The learning-rate schedule against values worked out by hand and a transcription in plain Python."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.training.schedules import (
    halvings_with_exponential_warmup,
    linear_warmup,
    polynomial_under_warmup,
    polynomial_with_warmup,
    step_decay_with_warmup,
)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.0),
        (1, 2.5),
        (3, 7.5),
        (4, 10.0),  # the warm-up's last step has the whole rate
        (5, 9.9 * 0.81 + 0.1),  # (1 - 1/10)**2
        (9, 9.9 * 0.25 + 0.1),
        (13, 9.9 * 0.01 + 0.1),
        (14, 0.1),
        (1000, 0.1),  # and stays
    ],
)
def test_values_worked_out_by_hand(step, lr):
    schedule = polynomial_with_warmup(10.0, warmup_steps=4, decay_steps=10, end_lr=0.1, power=2)
    np.testing.assert_allclose(schedule(step), lr, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(schedule)(np.int32(step)), lr, rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    base=st.floats(1e-3, 50),
    warmup=st.floats(0, 500),
    decay=st.integers(1, 5000),
    power=st.sampled_from([1, 2, 3]),
    step=st.integers(0, 6000),
)
def test_equals_a_transcription_of_the_rules(base, warmup, decay, power, step):
    if warmup and step <= warmup:
        expected = base * step / warmup
    else:
        expected = (base - 1e-4) * (1 - min((step - warmup) / decay, 1)) ** power + 1e-4
    schedule = polynomial_with_warmup(base, warmup, decay, 1e-4, power)
    # float32 resolves the fraction of the decay to 1e-7 of the base rate.
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-6 * base)


@pytest.mark.parametrize(("warmup", "decay"), [(-1, 10), (0, 0)])
def test_refuses_steps_that_make_no_schedule(warmup, decay):
    with pytest.raises(ValueError, match="decay_steps"):
        polynomial_with_warmup(1.0, warmup, decay)


@given(
    base=st.floats(1e-4, 10),
    warmup=st.integers(0, 50),
    factor=st.integers(0, 3),
    boundaries=st.lists(st.integers(0, 200), max_size=3).map(sorted),
)
@settings(max_examples=20, deadline=None)
def test_step_decay_is_the_references(base, warmup, factor, boundaries):
    """Walks through a run: the rate falls at every boundary, and the warm-up overrules it."""
    schedule = step_decay_with_warmup(base, warmup, boundaries, decay_factor=0.1, warmup_factor=factor)
    rates = np.asarray(schedule(np.arange(250)))
    rate = base
    for step in range(250):
        rate *= 0.1 ** boundaries.count(step)
        expected = rate
        if step < warmup:
            expected = base - (warmup - step) * (base / (warmup * 2**factor))
        np.testing.assert_allclose(rates[step], expected, rtol=1e-5, atol=1e-6 * base)


@given(
    base=st.floats(1e-4, 10),
    warmup=st.integers(0, 60),
    remain=st.integers(0, 100),
    interval=st.integers(1, 40),
    falls=st.integers(1, 5),
)
@settings(max_examples=20, deadline=None)
def test_halvings_are_the_references(base, warmup, remain, interval, falls):
    """WarmupMultiStepLR written out, which is at 1 for the first update."""
    schedule = halvings_with_exponential_warmup(base, warmup, remain, interval, decay_steps=falls)
    rates = np.asarray(schedule(np.arange(250)))
    for count in range(1, 251):
        if min(warmup, remain) and count <= min(warmup, remain):
            expected = base * 0.01 ** (1 - count / min(warmup, remain))
        elif count >= remain:
            expected = base * 0.5 ** min((count - remain) // interval + 1, falls)
        else:
            expected = base
        np.testing.assert_allclose(rates[count - 1], expected, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    base=st.floats(1e-5, 1),
    warmup=st.just(0) | st.floats(0.01, 50),
    factor=st.just(0) | st.floats(1e-4, 1),
    boundaries=st.lists(st.integers(50, 90), max_size=2),
    step=st.integers(0, 100),
)
def test_linear_warmup_is_the_references(base, warmup, factor, boundaries, step):
    schedule = linear_warmup(base, warmup, factor, boundaries=sorted(boundaries), decay_factor=0.3)
    rate = base
    if step < warmup:
        alpha = step / warmup
        rate *= factor * (1 - alpha) + alpha
    for boundary in boundaries:
        rate *= 0.3 if step >= boundary else 1
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    base=st.floats(1e-4, 1),
    warmup=st.integers(0, 40),
    start=st.integers(-30, 5),
    decay=st.integers(1, 80),
    power=st.sampled_from([1.0, 2.0]),
)
def test_berts_decay_goes_on_under_its_warmup(base, warmup, start, decay, power):
    """create_optimizer written out: the warm-up takes the decay's place and does not move it."""
    schedule = polynomial_under_warmup(base, warmup, decay, start_warmup_step=start, power=power)
    rates = np.asarray(schedule(np.arange(100)))
    for step in range(100):
        expected = base * (1 - min(step, decay) / decay) ** power
        if warmup and step - start < warmup:
            expected = base * ((step - start) / warmup)
        np.testing.assert_allclose(rates[step], expected, rtol=1e-5, atol=1e-7)


def test_berts_schedule_at_a_reference_point():
    """Of 8,192 sequences: 287 steps of warm-up that began 76 before the first update, 600 of decay."""
    schedule = polynomial_under_warmup(0.00288293, 287, 600, start_warmup_step=-76)
    for step, rate in ((0, 76 / 287), (210, 286 / 287), (211, 1 - 211 / 600), (600, 0)):
        np.testing.assert_allclose(schedule(step), 0.00288293 * rate, rtol=1e-6)
    with pytest.raises(ValueError, match="decay_steps 0 > 0"):
        polynomial_under_warmup(1.0, 0, 0)
