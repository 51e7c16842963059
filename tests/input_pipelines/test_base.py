"""The global stream: every example once an epoch, the same bits however it is split or where it starts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipelines import base


def indexed(num_train, num_eval):
    """A data set whose examples are their own numbers."""
    return base.InMemoryDataset(
        {"x": np.arange(num_train)},
        {"x": np.arange(num_eval, dtype=np.int32) + 1},
        fake=True,
        description="numbers",
    )


def take(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


streams = st.fixed_dictionaries(
    {
        "n": st.integers(1, 40),
        "batch_size": st.sampled_from([1, 2, 3, 4, 6, 8, 12]),
        "seed": st.integers(0, 2**64 - 1),
    }
)


@settings(max_examples=30, deadline=None)
@given(stream=streams)
def test_every_epoch_holds_every_example_once(stream):
    n, size = stream["n"], stream["batch_size"]
    steps = base.num_eval_batches(3 * n, size)
    data = indexed(n, 1)
    batches = take(
        data.train_batches(seed=stream["seed"], batch_size=size, start_step=0, rows=slice(0, size)), steps
    )
    seen = np.concatenate([batch["x"] for batch in batches])[: 3 * n].reshape(3, n)
    assert np.array_equal(np.sort(seen, axis=1), np.tile(np.arange(n), (3, 1)))


@settings(max_examples=30, deadline=None)
@given(stream=streams, start=st.integers(0, 50), data=st.data())
def test_processes_together_hold_the_global_batch_from_any_start(stream, start, data):
    n, size, seed = stream["n"], stream["batch_size"], stream["seed"]
    processes = data.draw(st.sampled_from([p for p in range(1, size + 1) if size % p == 0]))
    whole = take(
        indexed(n, 1).train_batches(seed=seed, batch_size=size, start_step=0, rows=slice(0, size)), start + 3
    )
    local = size // processes
    parts = [
        take(
            indexed(n, 1).train_batches(
                seed=seed, batch_size=size, start_step=start, rows=slice(p * local, (p + 1) * local)
            ),
            3,
        )
        for p in range(processes)
    ]
    for offset in range(3):
        union = np.concatenate([part[offset]["x"] for part in parts])
        assert np.array_equal(union, whole[start + offset]["x"])


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), size=st.sampled_from([2, 4, 8]), processes=st.sampled_from([1, 2]))
def test_eval_counts_every_example_once_and_masks_the_rest(n, size, processes):
    local = size // processes
    parts = [
        list(indexed(1, n).eval_batches(batch_size=size, rows=slice(p * local, (p + 1) * local)))
        for p in range(processes)
    ]
    assert all(len(part) == -(-n // size) for part in parts)
    x = np.concatenate([b["x"] for part in parts for b in part])
    mask = np.concatenate([b["mask"] for part in parts for b in part])
    assert mask.dtype == np.float32 and set(mask) <= {0.0, 1.0}
    assert sorted(x[mask == 1]) == list(range(1, n + 1))
    assert not x[mask == 0].any()


def test_orders_differ_by_seed_and_epoch_and_are_balanced():
    first = base.epoch_permutation(1, 0, 1000)
    assert not np.array_equal(first, base.epoch_permutation(2, 0, 1000))
    assert not np.array_equal(first, base.epoch_permutation(1, 1, 1000))
    # Over many epochs the mean example at a place is that of a uniform draw: 499.5, sd 288.7 / sqrt(400).
    means = np.mean([base.epoch_permutation(7, epoch, 1000) for epoch in range(400)], axis=0)
    assert np.abs(means - 499.5).max() < 5 * 288.7 / 20


def test_an_error_reaches_the_reader_at_its_own_batch():
    def make_batch(step):
        if step == 2:
            raise ValueError("record 2 is damaged")
        return {"x": np.array([step])}

    iterator = base.prefetched(make_batch, 0, num_threads=2)
    assert [next(iterator)["x"][0] for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="record 2 is damaged"):
        next(iterator)
    iterator.close()


def test_specs_say_what_the_batches_hold():
    data = indexed(5, 3)
    (batch,) = take(data.train_batches(seed=0, batch_size=4, start_step=0, rows=slice(0, 4)), 1)
    (evaluation,) = list(data.eval_batches(batch_size=4, rows=slice(0, 4)))
    for spec, got in ((data.train_spec, batch), (data.eval_spec, evaluation)):
        assert {k: ((4, *shape), dtype) for k, (shape, dtype) in spec.items()} == {
            k: (v.shape, v.dtype) for k, v in got.items()
        }
