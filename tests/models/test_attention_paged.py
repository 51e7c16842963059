"""Attention over pages: what attention over whole rows finds, whatever lies in the pages of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention_function import attend
from models.attention_mask import Mask
from models.attention_paged import Bank, attend_part, attend_step, owners, pages_of, written, written_pages

PAGE, TABLE, GROUPS, HEADS, WIDTH = 3, 5, 2, 6, 4
LENGTH, PAGES = PAGE * TABLE, 21


def rows(texts=3):
    """Queries, keys and values of whole texts, and pages of each in no order."""
    random = np.random.default_rng(0)
    q = random.normal(size=(texts, LENGTH, HEADS, WIDTH))
    k, v = random.normal(size=(2, texts, LENGTH, GROUPS, WIDTH))
    tables = 1 + random.permutation(PAGES - 1)[: texts * TABLE].reshape(texts, TABLE)
    return q, k, v, jnp.asarray(tables)


def left_by_others(banks=1, turned=False):
    """What no text may notice: keys that are no numbers, and the largest values."""
    values = (PAGES // banks, GROUPS, PAGE, WIDTH)
    keys = (*values[:2], WIDTH, PAGE) if turned else values
    return tuple(Bank(jnp.full(keys, jnp.nan), jnp.full(values, 1e308), turned) for _ in range(banks))


def filled(cache, k, v, tables, first, stop):
    """With positions `first` [B] to `stop` [B] of each text."""
    positions = jnp.broadcast_to(jnp.arange(LENGTH), k.shape[:2])
    real = (positions >= first[:, None]) & (positions < stop[:, None])
    return written(cache, k, v, tables, positions, real)


@pytest.mark.parametrize(
    "window, banks, turned", [(None, 1, False), (1, 1, True), (4, 3, True), (4, 3, False)]
)
def test_pages_are_whole_rows(window, banks, turned):
    """Three texts of 0, 4 and 9 old tokens and 5 new ones, in two parts, as prompts are."""
    starts, new = np.array([0, 4, 9]), 5
    with jax.enable_x64(True):
        q, k, v, tables = rows()

        @jax.jit
        def run(cache):
            for first, stop in ((0 * starts, starts), (starts, starts + new)):
                cache = filled(cache, k, v, tables, first, stop)
            positions = starts[:, None] + jnp.arange(new)
            own = jnp.take_along_axis(q, positions[..., None, None], 1)
            return attend_part(own, cache, tables, positions, starts + new, window=window)

        found = np.asarray(run(left_by_others(banks, turned)))
        expected = np.asarray(attend(q, k, v, Mask(causal=True, window=window), choice="plain"))
    for text, start in enumerate(starts):
        np.testing.assert_allclose(found[text], expected[text, start : start + new], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("banks", [1, 3])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("count", [(5, 3, 0), (1, 5, 5)])
def test_pages_in_one_piece_are_rows(banks, turned, count):
    """Parts of five rows at most; of a last page that is not full nothing is said of the rest, but that it is finite."""
    start, count, most = np.array([0, 6, 9]), np.array(count), 5
    with jax.enable_x64(True):
        _, k, v, tables = rows()
        v[2, 10, 0, 1] = np.inf
        own = start[:, None] + np.arange(most)
        part_k, part_v = (
            np.take_along_axis(x, np.minimum(own, LENGTH - 1)[..., None, None], 1) for x in (k, v)
        )
        cache = left_by_others(banks, turned)
        found = jax.jit(written_pages)(cache, part_k, part_v, tables, start, count)
        expected = jax.jit(written)(
            cache, part_k, part_v, tables, jnp.asarray(own), jnp.arange(most) < count[:, None]
        )
    for name in ("keys", "values"):
        last, rows_there = -1 if name == "keys" and turned else 2, 0
        for got, bank, before in zip(found, expected, cache, strict=True):
            got, bank, before = (np.moveaxis(getattr(one, name), last, 0) for one in (got, bank, before))
            touched = ~np.isclose(bank, before, equal_nan=True).reshape(*bank.shape[:2], -1).all(-1)
            rows_there += touched.sum()
            np.testing.assert_array_equal(got[touched], bank[touched])
            # Other pages stay, and behind a part there are zeros.
            pages = touched.any(0)
            np.testing.assert_array_equal(got[:, ~pages], before[:, ~pages])
            assert not got[:, pages][~touched[:, pages]].any()
        assert rows_there == count.sum()


@pytest.mark.parametrize(
    "window, banks, turned",
    [(None, 1, True), (1, 1, False), (4, 1, False), (None, 3, True), (4, 3, False), (4, 3, True)],
)
def test_a_step_finds_what_whole_rows_find(window, banks, turned):
    """Texts at their first, a page's last and their last position, and one that stopped, whose pages another has."""
    with jax.enable_x64(True):
        q, k, v, tables = rows(4)
        tables = tables.at[3].set(tables[2, ::-1])
        positions, works = jnp.array([0, 8, 14, 5]), jnp.array([True, True, True, False])
        own = jnp.take_along_axis(q, positions[:, None, None, None], 1)

        @jax.jit
        def run(cache):
            cache = filled(cache, k, v, tables, 0 * positions, jnp.where(works, positions + 1, 0))
            owned = owners(tables, works, PAGES, PAGE)
            found = attend_step(own, cache, owned, tables, positions, window=window)
            numbers = jnp.arange(tables.size, dtype=jnp.int32).reshape(tables.shape)
            owned = owners(numbers, works, tables.size, PAGE)
            return found, attend_step(own, pages_of(cache, tables), owned, numbers, positions, window=window)

        found, copied = map(np.asarray, run(left_by_others(banks, turned)))
        expected = np.asarray(attend(q, k, v, Mask(causal=True, window=window), choice="plain"))
    for text, position in enumerate(positions[:3]):
        np.testing.assert_allclose(found[text, 0], expected[text, position], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(copied[text, 0], expected[text, position], rtol=1e-12, atol=1e-14)


def test_values_that_are_no_numbers_are_seen_by_their_own_text_alone():
    with jax.enable_x64(True):
        q, k, v, tables = rows(2)
        positions = jnp.array([8, 8])
        v[0, 5, 1, 2] = np.inf
        cache = filled(left_by_others(), k, v, tables, 0 * positions, positions + 1)
        own = jnp.take_along_axis(q, positions[:, None, None, None], 1)
        owned = owners(tables, positions > 0, PAGES, PAGE)
        stepped = np.asarray(attend_step(own, cache, owned, tables, positions))
        read = np.asarray(attend_part(own, cache, tables, positions[:, None], positions + 1))
    for found in (stepped, read):
        assert np.isnan(found[0, :, 3:]).all() and np.isfinite(found[1]).all()
