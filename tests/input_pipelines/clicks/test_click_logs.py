"""Clicks read in runs from mapped files: every example once an epoch, in the same places for any number of processes."""

import contextlib
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipelines.clicks import click_logs
from mlperf_jax.errors import UserError

COLUMNS = click_logs.Columns(num_dense=2, table_sizes=(10, 1000), multi_hot_sizes=(1, 2))


class Numbered:
    """Examples that hold their own numbers."""

    def __init__(self, length):
        self._length = length

    def __len__(self):
        return self._length

    def read(self, start, stop, out):
        numbers = np.arange(start, stop)
        assert 0 <= start <= stop <= self._length and len(out["label"]) == stop - start
        out["label"][:] = numbers
        out["dense"][:] = numbers[:, None]
        out["sparse"][:] = numbers[:, None]


def dataset(num_train, num_eval=1, block=0):
    return click_logs.MappedClicks(
        COLUMNS,
        Numbered(num_train),
        Numbered(num_eval),
        block=block,
        num_threads=1,
        fake=True,
        description="numbers",
    )


def take(data, count, **arguments):
    with contextlib.closing(data.train_batches(**arguments)) as batches:
        return [next(batches) for _ in range(count)]


CASES = given(
    num_train=st.integers(1, 60),
    block=st.integers(0, 20),
    shares=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    start=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)


@CASES
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_example_once_whoever_reads_it(num_train, block, shares, start, seed):
    data, batch = dataset(num_train, block=block), sum(shares)
    edges = np.cumsum([0, *shares])
    steps = -(-3 * num_train // batch)
    whole = [
        data._read(Numbered(num_train), data._train_runs(s * batch, (s + 1) * batch, seed), batch)["label"]
        for s in range(steps)
    ]
    stream = np.concatenate(whole)
    for epoch in range(len(stream) // num_train):
        order = stream[epoch * num_train : (epoch + 1) * num_train]
        assert sorted(order) == list(range(num_train))
        if not block:
            assert list(order) == list(range(num_train))
        else:  # Blocks stay together.
            begins = [i for i in range(num_train) if order[i] % block == 0]
            assert all(order[i] == order[i - 1] + 1 for i in range(num_train) if i not in begins)
    start = min(start, steps - 1)
    parts = [
        take(data, 1, seed=seed, batch_size=batch, start_step=start, rows=slice(a, b))[0]["label"]
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    assert np.array_equal(np.concatenate(parts), whole[start])


def test_epochs_and_seeds_have_other_orders():
    data = dataset(1000, block=10)
    orders = [
        np.concatenate(
            [
                b["label"]
                for b in take(data, 10, seed=seed, batch_size=100, start_step=start, rows=slice(0, 100))
            ]
        )
        for seed, start in ((1, 0), (1, 10), (2, 0), (1, 0))
    ]
    assert np.array_equal(orders[0], orders[3])
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])


@given(num_eval=st.integers(1, 40), batch=st.integers(1, 17), data=st.data())
@settings(max_examples=40, deadline=None)
def test_evaluation_has_every_example_once_and_a_mask(num_eval, batch, data):
    cut = data.draw(st.integers(1, batch))
    found = []
    evaluated = dataset(5, num_eval)
    parts = [slice(0, cut), *([slice(cut, batch)] if cut < batch else [])]
    for pieces in zip(*(evaluated.eval_batches(batch_size=batch, rows=rows) for rows in parts), strict=True):
        joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        assert {name: (v.shape[1:], v.dtype) for name, v in joined.items()} == evaluated.eval_spec
        found.append(joined)
    mask = np.concatenate([piece["mask"] for piece in found]) > 0
    labels = np.concatenate([piece["label"] for piece in found])
    assert labels[mask].tolist() == list(range(num_eval)) and not labels[~mask].any()
    assert len(found) == -(-num_eval // batch)


@given(st.lists(st.integers(0, 49), max_size=30), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_chosen_eval_examples_come_in_their_order(scattered, run):
    indices = [*scattered, *range(run), *scattered[:3]]
    batch = dataset(5, 50).read_eval(np.array(indices, np.int64), ["dense", "sparse"])
    assert set(batch) == {"dense", "sparse"}
    assert batch["dense"].tolist() == [[i, i] for i in indices]


@pytest.mark.parametrize(
    ("fraction", "sizes"), [(1.0, (10, 1000)), (0.5, (5, 500)), (0.001, (1, 1)), (0.0011, (1, 2))]
)
def test_tables_are_cut_rounding_up(fraction, sizes):
    assert COLUMNS.cut({"table_fraction": fraction}).table_sizes == sizes
    assert dataclasses.replace(COLUMNS, table_sizes=sizes).rows.tolist() == [sizes[0], sizes[1], sizes[1]]


@pytest.mark.parametrize("fraction", [0, -1, 1.1])
def test_tables_cannot_be_cut_to_nothing_or_grow(fraction):
    with pytest.raises(UserError, match="table_fraction cannot be"):
        COLUMNS.cut({"table_fraction": fraction})
