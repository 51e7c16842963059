"""A trained network that plays: what GTP, matches against other programs and move prediction share."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.go.rules import Position, Rules
from mlperf_jax.go.search import Search, best_move
from mlperf_jax.workload import State


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a search advises, host arrays [B].

    Attributes:
        moves: the best first, int32 [B, moves].
        value: of the position for the player to move, float32 [B], from -1 to 1.
    """

    moves: np.ndarray
    value: np.ndarray


class Player:
    """A network with a search; positions come and go as batches."""

    def __init__(self, workload: Any, variables: State, *, readouts: int, seed: int = 1) -> None:
        """Wraps a model.

        Args:
            workload: a `MiniGo`.
            variables: its `inference_state`, on the device.
            readouts: of each move.
            seed: of the symmetries under which the network looks at positions.
        """
        self.workload = workload
        self.variables = variables
        self.readouts = readouts
        self._key = jax.random.key(seed)
        self._count = 0
        self.rules: Rules = workload.rules

    def set_komi(self, komi: float) -> None:
        """Plays for another komi from now on; the search is compiled again where it is a new one."""
        self.rules = dataclasses.replace(self.rules, komi=komi)

    def starts(self, count: int) -> Position:
        return self.rules.starts(count)

    def play(self, positions: Position, moves: np.ndarray) -> Position:
        """The positions [B] after legal moves [B]."""
        return _play(self.rules)(positions, jnp.asarray(moves, jnp.int32))

    def choose(self, positions: Position) -> Choice:
        """Searches positions [B]."""
        self._count += 1
        moves, value = _choose(self.workload, self.rules, self.readouts)(
            self.variables, positions, jax.random.fold_in(self._key, self._count)
        )
        return Choice(np.asarray(moves), np.asarray(value))

    def advance(self, positions: Position) -> tuple[np.ndarray, Position]:
        """The moves [B] to play in positions [B], and what comes of them.

        The best that repeat no position; where a game is over, the position stays as it is.
        """
        choice = self.choose(positions)
        rank = np.zeros(len(choice.value), np.int32)
        while True:
            moves = np.take_along_axis(choice.moves, rank[:, None], 1)[:, 0]
            after = self.play(positions, moves)
            repeats = np.asarray(after.game.is_psk) & ~np.asarray(positions.over)
            if not repeats.any():  # passing repeats nothing, so this comes to an end
                return moves, after
            rank += repeats


@functools.lru_cache(maxsize=8)
def _play(rules: Rules) -> Any:
    return jax.jit(jax.vmap(rules.play))


@functools.lru_cache(maxsize=8)
def _choose(workload: Any, rules: Rules, readouts: int) -> Any:
    search = Search(rules, workload.judge, workload.config.value_init_penalty)

    def choose(variables: State, positions: Position, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision(workload.policy.matmul):
            found = search(variables, positions, key, readouts)
        first = best_move(found)[:, None] == jnp.arange(rules.moves)
        order = jnp.where(positions.legal, found.visits + found.prior + first, -1.0)
        return jnp.argsort(-order, axis=1).astype(jnp.int32), found.value

    return jax.jit(choose)
