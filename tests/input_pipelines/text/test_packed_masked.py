"""Packed rows hold every sequence once, whole, and ask for the same words."""

import numpy as np
import pytest

from input_pipelines import tfrecord
from input_pipelines.text import wikipedia
from input_pipelines.text.packed_masked import PER_ROW, packed


def sequences(seed, count):
    random = np.random.default_rng(seed)
    return wikipedia.parsed(tfrecord.encode(wikipedia._made_up(random)) for _ in range(count))


def told(batch, row, segment):
    """Of a sequence: its tokens and types, which words are asked for at which of them, and the class."""
    here = batch["segment"][row] == segment
    first = int(batch["first"][row, segment - 1]) if "first" in batch else 0
    asked = (batch["word_weight"][row] > 0) & here[batch["masked"][row]]
    words = sorted(
        zip(batch["masked"][row, asked].astype(int) - first, batch["word"][row, asked], strict=True)
    )
    assert np.flatnonzero(here)[0] == first
    kind = int(batch["is_random"][row, segment - 1])
    return batch["tokens"][row, here].tobytes(), batch["token_type"][row, here].tobytes(), tuple(words), kind


@pytest.mark.parametrize("seed", range(3))
def test_every_sequence_is_there_once(seed):
    batch = sequences(seed, 24)
    expected = sorted(told(batch, row, 1) for row in range(24))
    rows = packed(batch, 22, 80)
    found = [
        told(rows, row, place + 1)
        for row in range(22)
        for place in range(PER_ROW)
        if rows["weight"][row, place]
    ]
    assert sorted(found) == expected
    assert rows["word_weight"].sum() == batch["word_weight"].sum() and rows["weight"].sum() == 24
    assert rows["segment"].max() > 1  # so that they are fewer than the 24
    for name, size in (("tokens", 512), ("masked", 80), ("first", PER_ROW)):
        assert rows[name].shape == (22, size)


def test_what_does_not_fit_is_none():
    batch = sequences(0, 24)
    assert packed(batch, 11, 80) is None  # half of the sequences fill a row each
    assert packed(batch, 24, 75) is None
    apart = packed(batch, 24, 80, per_row=1)
    assert apart["segment"].max() == 1 and (apart["tokens"] > 0).any(1).all()
