"""Matches between two networks, all games at once, half of them with each colour.

Source: mlcommons/training, retired_benchmarks/minigo/tensorflow/minigo/cc/eval.cc: no noise, no
resignation, always the most visited move. Games differ by the symmetries under which the networks look at
positions; where this is too little (small boards), the first moves can be drawn by visits.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlperf_jax.go.rules import Position
from mlperf_jax.go.search import Search, best_move, soft_pick


@dataclasses.dataclass(frozen=True)
class MatchConfig:
    """Numbers of a match, named as in the config.

    Attributes:
        games: even; the first player is Black in the first half.
        readouts: of every move of both players.
        soft_pick_moves: as many first moves are drawn by visits.
        seed: of the draws: the same two networks always play the same games.
    """

    games: int
    readouts: int
    soft_pick_moves: int
    seed: int

    def __post_init__(self) -> None:
        if self.games % 2 or self.games < 2:
            raise ValueError(
                f"a match of {self.games} games gives the players no equal colours; use an even number"
            )


class Games(NamedTuple):
    """Games that were played, [2, games / 2]: the first player is Black in row 0, White in row 1.

    Attributes:
        outcome: float32: +1 Black won, -1 White.
        moves: int16 [2, games / 2, max_moves].
        length: int32.
    """

    outcome: jax.Array
    moves: jax.Array
    length: jax.Array

    @property
    def won(self) -> jax.Array:
        """Whether the first player won, bool [2, games / 2]."""
        return self.outcome * jnp.array([[1], [-1]]) > 0


def play_match(config: MatchConfig, search: Search, first: Any, second: Any) -> Games:
    """Plays a match between the networks with variables `first` and `second`; traced."""
    rules, half = search.rules, config.games // 2
    key = jax.random.key(config.seed)
    players = jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)  # who moves, by row of games
    starts = jax.tree.map(lambda x: jnp.stack([x, x]), rules.starts(half))
    moves = jnp.full((2, half, rules.max_moves), rules.points, jnp.int16)

    def unfinished(carry: tuple[Any, Position, jax.Array, jax.Array]) -> jax.Array:
        return ~carry[1].over.all()

    def ply(carry: tuple[Any, Position, jax.Array, jax.Array]) -> tuple[Any, Position, jax.Array, jax.Array]:
        players, positions, moves, count = carry

        def choose(args: tuple[Any, Position, jax.Array]) -> jax.Array:
            player, positions, key = args
            search_key, pick_key = jax.random.split(key)
            found = search(player, positions, search_key, config.readouts)
            opening = count < config.soft_pick_moves
            return jnp.where(opening, soft_pick(pick_key, found.visits, 1.0), best_move(found))

        keys = jax.random.split(jax.random.fold_in(key, count), 2)
        move = jax.lax.map(choose, (players, positions, keys))
        new = jax.vmap(jax.vmap(rules.play))(positions, move)
        kept = jnp.where(positions.over, rules.points, move).astype(jnp.int16)
        players = jax.tree.map(lambda x: x[::-1], players)
        return players, new, moves.at[:, :, count].set(kept), count + 1

    _, positions, moves, _ = jax.lax.while_loop(unfinished, ply, (players, starts, moves, jnp.int32(0)))
    return Games(positions.outcome, moves, positions.played)
