"""Attention over pages: what attention over whole rows finds, whatever lies in the pages of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention_function import attend
from models.attention_mask import Mask
from models.attention_paged import attend_paged, written

PAGE, TABLE, GROUPS, HEADS, WIDTH = 3, 5, 2, 6, 4


@pytest.mark.parametrize("window", [None, 1, 4])
def test_pages_are_whole_rows(window):
    """Three texts of 0, 4 and 9 old tokens and 5 new ones, in pages in no order, between pages of NaN."""
    random = np.random.default_rng(0)
    starts, new = np.array([0, 4, 9]), 5
    with jax.enable_x64(True):
        q = random.normal(size=(3, PAGE * TABLE, HEADS, WIDTH))
        k, v = random.normal(size=(2, 3, PAGE * TABLE, GROUPS, WIDTH))
        tables = jnp.asarray(1 + random.permutation(20)[:15].reshape(3, TABLE))
        keys, values = np.full((2, 21, GROUPS, PAGE, WIDTH), np.nan)

        def filled(cache, whole, first, stop):
            positions = jnp.broadcast_to(jnp.arange(PAGE * TABLE), whole.shape[:2])
            real = (positions >= first[:, None]) & (positions < stop[:, None])
            return written(cache, whole, tables, positions, real)

        @jax.jit
        def run(keys, values):
            # In two parts, as prompts are; what is not real goes to page 0.
            for first, stop in ((0 * starts, starts), (starts, starts + new)):
                keys, values = filled(keys, k, first, stop), filled(values, v, first, stop)
            positions = starts[:, None] + jnp.arange(new)
            own = jnp.take_along_axis(q, positions[..., None, None], 1)
            return attend_paged(own, keys, values, tables, positions, starts + new, window=window)

        found = np.asarray(run(keys, values))
        expected = np.asarray(attend(q, k, v, Mask(causal=True, window=window), choice="plain"))
    for text, start in enumerate(starts):
        np.testing.assert_allclose(found[text], expected[text, start : start + new], rtol=1e-12, atol=1e-14)
