"""The 13 planes that MLPerf's MiniGo looks at ("mlperf07").

Source: mlcommons/training, retired_benchmarks/minigo/tensorflow/minigo/features.py. Of the last four
boards, the newest first: one's own stones and the opponent's (8 planes); whether Black is to play (1);
chains with one, two, three liberties (3); where a move would capture (1).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.go.rules import HISTORY, Position

PLANES = 2 * HISTORY + 1 + 3 + 1


@functools.cache
def _neighbours(size: int) -> np.ndarray:
    """The points beside each point, int32 [points, 4]; `points` stands for none."""
    row, column = np.divmod(np.arange(size**2), size)
    beside = []
    for d_row, d_column in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        r, c = row + d_row, column + d_column
        inside = (r >= 0) & (r < size) & (c >= 0) & (c < size)
        beside.append(np.where(inside, r * size + c, size**2))
    return np.stack(beside, 1).astype(np.int32)


def _chains_beside(board: jax.Array, size: int) -> jax.Array:
    """For each point the chains beside it, each once, int32 [points, 4]; 0 for none, < 0 white."""
    beside = jnp.append(board, 0)[_neighbours(size)]
    repeated = [(beside[:, :d] == beside[:, d : d + 1]).any(1) for d in range(4)]
    return jnp.where(jnp.stack(repeated, 1), 0, beside)


def _liberties(board: jax.Array, size: int) -> jax.Array:
    """Liberties of the chain that each point belongs to, int32 [points]; 0 at empty points."""
    found = jnp.where((board == 0)[:, None], _chains_beside(board, size), 0).ravel()
    return jnp.where(board == 0, 0, (found == board[:, None]).sum(1))


@functools.partial(jax.jit, static_argnums=1)
def features(position: Position, size: int) -> jax.Array:
    """The planes of one position, bool [size, size, PLANES]; where it is over they say nothing."""
    board, color = position.game.board, jnp.where(position.color > 0, 1, -1)
    liberties = _liberties(board, size)
    history = position.game.board_history  # 2 where there was no board yet
    stones = jnp.stack([history == color, history == -color], 1).reshape(2 * HISTORY, -1)
    few = liberties == jnp.arange(1, 4)[:, None]
    atari = (board * color < 0) & (liberties == 1)  # the opponent's
    captures = jnp.append(atari, False)[_neighbours(size)].any(1) & (board == 0)
    black = jnp.broadcast_to(color > 0, (1, size**2))
    planes = jnp.concatenate([stones, black, few, captures[None]])
    return planes.T.reshape(size, size, PLANES)


@functools.cache
def symmetries(size: int) -> np.ndarray:
    """The eight symmetries of the board, int32 [8, moves]: which move of the old board each new one is.

    A board seen through symmetry s is `board[symmetries(size)[s]]`; the pass stays where it is.
    """
    board = np.arange(size**2).reshape(size, size)
    seen = [np.rot90(b, k) for b in (board, board.T) for k in range(4)]
    return np.stack([np.append(b.ravel(), size**2) for b in seen]).astype(np.int32)


@functools.cache
def inverse_symmetries(size: int) -> np.ndarray:
    """The symmetries that undo `symmetries(size)`, in their order, int32 [8, moves]."""
    return np.argsort(symmetries(size), 1).astype(np.int32)


def turn_features(planes: jax.Array, symmetry: jax.Array) -> jax.Array:
    """Planes [B, N, N, C] seen through a symmetry each, int32 [B]."""
    batch, size, _, channels = planes.shape
    order = jnp.asarray(symmetries(size))[symmetry, : size**2, None]
    return jnp.take_along_axis(planes.reshape(batch, size**2, channels), order, 1).reshape(planes.shape)


def turn_moves(values: jax.Array, order: jax.Array) -> jax.Array:
    """Values of moves [B, moves], in an order each, [B, moves]: rows of `symmetries` or their inverses."""
    return jnp.take_along_axis(values, order, 1)
