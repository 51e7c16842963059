"""Packing: every pair once, whole, in a row with room for it, and few tokens of padding."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipelines.text import packing
from input_pipelines.text.packing import Ragged


@given(st.lists(st.tuples(st.integers(1, 32), st.integers(1, 32)), max_size=80))
@settings(max_examples=200, deadline=None)
def test_every_pair_stands_whole_in_one_row(lengths):
    sources, targets = np.array(lengths, np.int64).reshape(-1, 2).T
    rows = packing.pack(sources, targets, 32)
    assert sorted(pair for row in rows for pair in row) == list(range(len(lengths)))
    assert all(row and sources[row].sum() <= 32 and targets[row].sum() <= 32 for row in rows)
    sequences = Ragged.of([[pair + 1] * length for pair, length in enumerate(sources)], np.dtype(np.int32))
    tokens, segments = np.zeros((2, len(rows), 32), np.int32)
    packing.fill(rows, sequences, tokens, segments)
    for row, members in enumerate(rows):
        expected = np.concatenate([[pair + 1] * sources[pair] for pair in members])
        numbers = np.concatenate([[n] * sources[pair] for n, pair in enumerate(members, 1)])
        np.testing.assert_array_equal(tokens[row, : len(expected)], expected)
        np.testing.assert_array_equal(segments[row, : len(expected)], numbers)
        assert not tokens[row, len(expected) :].any() and not segments[row, len(expected) :].any()


def test_padding_is_under_a_tenth_of_what_real_sentences_leave():
    """Lengths as of WMT17: log-normal, source and target within a fifth of each other."""
    random = np.random.default_rng(0)
    sources = np.clip(random.lognormal(3.1, 0.65, 20_000), 1, 256).astype(int)
    targets = np.clip(sources * random.lognormal(0.05, 0.2, len(sources)), 1, 256).astype(int)
    rows = packing.pack(sources, targets, 256)
    assert 1 - (sources.sum() + targets.sum()) / (2 * 256 * len(rows)) < 0.1


def test_no_row_has_more_segments_than_a_byte_counts():
    rows = packing.pack(np.ones(1000, int), np.ones(1000, int), 512)
    assert max(map(len, rows)) == packing.MOST_SEGMENTS


def test_ragged_sequences():
    sequences = Ragged.of([[1, 2], [], [3]], np.dtype(np.uint16))
    assert len(sequences) == 3 and sequences.lengths.tolist() == [2, 0, 1]
    chosen = sequences.chosen(np.array([2, 0]))
    assert chosen.values.tolist() == [3, 1, 2] and chosen.starts.tolist() == [0, 1, 3]
