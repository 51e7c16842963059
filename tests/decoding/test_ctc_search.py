"""What CTC's decoders find: plain loops' texts, and of short recordings the likeliest of all texts."""

import collections
import functools
import itertools

import jax
import numpy as np
import pytest

from mlperf_jax.decoding import ctc_search


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def drawn(seed, batch, time, vocab_size, sharpness=2.0):
    random = np.random.default_rng(seed)
    return random.normal(size=(batch, time, vocab_size)) * sharpness, random.integers(0, time + 1, batch)


def text(row):
    return tuple(np.trim_zeros(np.asarray(row), "b").tolist())


def search_by_dictionary(log_probs, beams):
    """Texts and their sums in a dictionary, as Hannun et al. (arXiv:1408.2873) state it, without a language model."""
    found = {(): (0.0, -np.inf)}
    for frame in log_probs:
        new = collections.defaultdict(lambda: (-np.inf, -np.inf))
        for prefix, (blank, label) in found.items():
            both = np.logaddexp(blank, label)
            new[prefix] = np.logaddexp(new[prefix][0], both + frame[0]), new[prefix][1]
            if prefix:
                new[prefix] = new[prefix][0], np.logaddexp(new[prefix][1], label + frame[prefix[-1]])
            for token in range(1, len(frame)):
                longer = (*prefix, token)
                before = blank if prefix and prefix[-1] == token else both
                new[longer] = new[longer][0], np.logaddexp(new[longer][1], before + frame[token])
        found = dict(sorted(new.items(), key=lambda item: -np.logaddexp(*item[1]))[:beams])
    best = max(found, key=lambda prefix: np.logaddexp(*found[prefix]))
    return best, np.logaddexp(*found[best])


def test_greedy_is_a_plain_loop():
    logits, frames = drawn(0, 20, 30, 4)
    found = np.asarray(jax.jit(ctc_search.greedy)(logits, frames))
    assert found.shape == (20, 30) and found.dtype == np.int32
    for row, count, answer in zip(logits, frames, found, strict=True):
        expected = tuple(token for token, _ in itertools.groupby(row[:count].argmax(-1)) if token)
        assert text(answer) == expected


@pytest.mark.parametrize("beams", [1, 3, 8])
def test_beams_are_those_of_a_dictionary(beams):
    logits, frames = drawn(1, 16, 20, 4, sharpness=1.0)
    with jax.enable_x64(True):
        search = jax.jit(functools.partial(ctc_search.prefix_beam_search, beams=beams))
        tokens, scores = search(logits, frames)
    for n, count in enumerate(frames):
        expected, score = search_by_dictionary(log_softmax(logits[n, :count]), beams)
        assert text(tokens[n]) == expected
        assert scores[n] == pytest.approx(score, rel=1e-9, abs=1e-12)


def test_enough_beams_find_the_likeliest_of_all_texts():
    logits, _ = drawn(2, 12, 4, 3, sharpness=1.0)
    with jax.enable_x64(True):
        search = functools.partial(ctc_search.prefix_beam_search, beams=64)
        tokens, scores = jax.jit(search)(logits, np.full(12, 4))
    greedy = np.asarray(ctc_search.greedy(logits, np.full(12, 4)))
    better = 0
    for n, row in enumerate(log_softmax(logits)):
        sums = collections.defaultdict(lambda: -np.inf)
        for path in itertools.product(range(3), repeat=4):
            said = tuple(token for token, _ in itertools.groupby(path) if token)
            sums[said] = np.logaddexp(sums[said], row[range(4), path].sum())
        best = max(sums, key=sums.get)
        assert text(tokens[n]) == best and scores[n] == pytest.approx(sums[best], rel=1e-9)
        better += text(greedy[n]) != best
    assert better  # the sum over alignments tells more than the best one
