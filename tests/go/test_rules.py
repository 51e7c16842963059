"""The compiled board and its features against plain Python, over random games."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.go.features import PLANES, features, inverse_symmetries, symmetries, turn_features
from mlperf_jax.go.rules import Rules
from tests.go.board import Board

SIZE, KOMI = 5, 2.5


@functools.cache
def compiled():
    rules = Rules(SIZE, KOMI, 60)
    return rules, jax.jit(rules.play), jax.jit(functools.partial(features, size=SIZE)), jax.jit(rules.score)


def expected_planes(board):
    """MLPerf's planes, from their description."""
    planes = np.zeros((SIZE**2, PLANES), bool)
    for age in range(4):
        stones = board.history[max(len(board.history) - 1 - age, 0)]
        for point, color in stones.items():
            planes[point, 2 * age + (color != board.color)] = True
    planes[:, 8] = board.color > 0
    for point, color in board.stones.items():
        count = len(board.liberties(point))
        if count <= 3:
            planes[point, 8 + count] = True
        if count == 1 and color != board.color:
            (liberty,) = board.liberties(point)
            planes[liberty, 12] = True
    return planes.reshape(SIZE, SIZE, PLANES)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_games(seed):
    random = np.random.default_rng(seed)
    rules, play, planes, score = compiled()
    board, position = Board(SIZE), rules.start()
    while not bool(position.over):
        legal = np.array([board.after(p) is not None for p in range(SIZE**2)])
        # A simple ko is forbidden outright; longer repetitions are legal here, and lose.
        forbidden = np.array([can and board.repeats(p) for p, can in enumerate(legal)])
        ours = np.asarray(position.legal)
        assert ours[-1]
        np.testing.assert_array_equal(ours[:-1] | forbidden, legal)
        np.testing.assert_array_equal(np.asarray(planes(position)), expected_planes(board))
        assert int(score(position)) == board.score()
        assert float(position.color) == board.color
        weights = ours * np.where(np.arange(SIZE**2 + 1) == SIZE**2, 0.3, 1)
        move = int(random.choice(SIZE**2 + 1, p=weights / weights.sum()))
        repeats = move < SIZE**2 and board.repeats(move)
        mover = board.color
        position = play(position, move)
        board.play(move)
        assert bool(position.over) == (board.passes == 2 or repeats or len(board.seen) == 61)
        if repeats:
            assert float(position.outcome) == -mover
        elif bool(position.over):
            assert float(position.outcome) == (1 if board.score() > KOMI else -1)
        else:
            assert float(position.outcome) == 0
    stays = play(position, 0)
    jax.tree.map(np.testing.assert_array_equal, stays, position)


def test_a_board_that_cannot_be():
    with pytest.raises(ValueError, match="size 20"):
        Rules(20, 7.5, 10)


def test_symmetries():
    """Eight different ones, each undone by its inverse, and the same for features and for moves."""
    ours, back = symmetries(SIZE), inverse_symmetries(SIZE)
    assert len({tuple(s) for s in ours}) == 8 and (ours[:, -1] == SIZE**2).all()
    for s, b in zip(ours, back, strict=True):
        np.testing.assert_array_equal(s[b], np.arange(SIZE**2 + 1))
        board = Board(SIZE)  # points that were beside each other still are
        assert all(
            np.isin(np.flatnonzero(s == p)[0], list(board.beside(int(np.flatnonzero(s == q)[0]))))
            for p in range(25)
            for q in board.beside(p)
        )
    planes = np.random.default_rng(0).random((8, SIZE, SIZE, 3))
    turned = np.asarray(turn_features(planes, np.arange(8))).reshape(8, -1, 3)
    for i, s in enumerate(ours):
        np.testing.assert_allclose(turned[i], planes[i].reshape(-1, 3)[s[:-1]], rtol=1e-6)
