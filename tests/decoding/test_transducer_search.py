"""Greedy decoding on the device against a loop in NumPy, one utterance after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.decoding import transducer_search

WIDTH, CLASSES = 6, 5


def _networks(seed):
    """A joint and a prediction network of random numbers, as functions of NumPy's or jax's arrays."""
    random = np.random.default_rng(seed)
    table, mix, out = (
        random.normal(size=shape).astype(np.float32)
        for shape in ((CLASSES, WIDTH), (WIDTH, WIDTH), (WIDTH, CLASSES))
    )

    often = np.array([0, 0, 0, 0, 4], np.float32)  # the blank

    def joint(xp):
        return lambda frame, predicted: xp.tanh(frame + predicted) @ xp.asarray(out) + xp.asarray(often)

    def predict(xp):
        def step(symbols, state):
            state = xp.tanh(state @ xp.asarray(mix) + xp.asarray(table)[symbols])
            return 2 * state, state

        return step

    return joint, predict


def _plain(joint, predict, first, frames, most, most_in_frame):
    """The same by loops, for one utterance."""
    said, (predicted, state) = [], first
    for frame in frames:
        for _ in range(most_in_frame):
            if len(said) == most:
                return said
            best = int(joint(frame[None], predicted).argmax())
            if best == CLASSES - 1:
                break
            said.append(best)
            predicted, state = predict(np.array([best]), state)
    return said


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most,most_in_frame", [(40, 30), (7, 300), (40, 2)])
def test_answers_are_those_of_plain_loops(seed, most, most_in_frame):
    random = np.random.default_rng(100 + seed)
    encoded = random.normal(0, 2, (5, 8, WIDTH)).astype(np.float32)
    lengths = np.array([8, 0, 5, 1, 7])
    joint, predict = _networks(seed)
    start = np.zeros((5, WIDTH), np.float32)

    @jax.jit
    def decode(encoded, lengths):
        return transducer_search.greedy(
            joint(jnp), predict(jnp), (start, start), encoded, lengths, most=most, most_in_frame=most_in_frame
        )

    found = np.asarray(decode(encoded, lengths))
    assert found.dtype == np.int32 and found.shape == (5, most)
    for row, frames, length in zip(found, encoded, lengths, strict=True):
        first = start[:1], start[:1]
        expected = _plain(joint(np), predict(np), first, frames[:length], most, most_in_frame)
        assert row[: len(expected)].tolist() == expected
        assert (row[len(expected) :] == transducer_search.NONE).all()


def test_some_answers_are_cut_and_some_are_not():
    """So that the cases above are of both kinds."""
    lengths = []
    for seed in range(4):
        random = np.random.default_rng(100 + seed)
        encoded = random.normal(0, 2, (5, 8, WIDTH)).astype(np.float32)
        joint, predict = _networks(seed)
        first = (np.zeros((1, WIDTH), np.float32),) * 2
        lengths += [len(_plain(joint(np), predict(np), first, row, 40, 30)) for row in encoded]
    assert min(lengths) < 7 and max(lengths) == 40 and any(7 < length < 40 for length in lengths)
