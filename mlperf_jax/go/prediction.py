"""Which moves of recorded games a network foresees."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.go import records
from mlperf_jax.go.features import features
from mlperf_jax.go.records import Record
from mlperf_jax.go.rules import Position
from mlperf_jax.workload import State

_TOGETHER = 64  # games that are followed at once


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Counts over all games.

    Attributes:
        moves: that were played, passes included.
        first: of them the network's first choice.
        fifth: of them among its first five.
        illegal: games with an illegal move; what follows it does not count.
    """

    moves: int
    first: int
    fifth: int
    illegal: int


def read_folder(folder: Path, size: int) -> tuple[list[Record], list[str]]:
    """The games on boards of one size, and what was left out, a phrase each, in the order of the paths.

    Names that begin with "." are no records: other systems keep their own notes there.
    """
    games, refused = [], []
    found_paths = (path for path in folder.rglob("*") if path.suffix.lower() == ".sgf")
    for path in sorted(path for path in found_paths if not path.name.startswith(".")):
        name = path.relative_to(folder)
        try:
            found = records.read(path)
        except (records.BadRecord, UserError) as error:
            refused.append(f"{name}: {error}")
            continue
        games += [game for game in found if game.size == size and game.moves]
        others = sorted({game.size for game in found} - {size})
        refused += [f"{name}: a board of size {other}" for other in others]
    return games, refused


def predict(workload: Any, variables: State, games: Sequence[Record]) -> Prediction:
    """Follows the games with a `MiniGo` and its variables."""
    longest = max(len(game.moves) for game in games)
    # A board for each length would be a program for each: games are padded to the longest of all.
    rules = dataclasses.replace(workload.rules, max_moves=max(longest + 1, workload.rules.max_moves))

    def follow(variables: State, moves: jax.Array) -> jax.Array:
        """Of moves [games, length], -1 where there is none: counts [4] as in `Prediction`."""

        def ply(carry: tuple[Position, jax.Array], move: jax.Array) -> tuple[Any, jax.Array]:
            positions, follows = carry
            planes = jax.vmap(features, (0, None))(positions, rules.size)
            logits, _ = workload.judge(variables, planes)
            there = follows & (move >= 0)
            point = jnp.maximum(move, 0)
            legal = jnp.take_along_axis(positions.legal, point[:, None], 1)[:, 0]
            after = jax.vmap(rules.play)(positions, point)
            # Two passes do not end a record: some go on.
            after = after._replace(over=jnp.zeros_like(after.over))
            counts = there & legal
            rank = (logits > jnp.take_along_axis(logits, point[:, None], 1)).sum(1)
            found = [counts, counts & (rank < 1), counts & (rank < 5), there & ~legal]
            return (after, counts), jnp.stack(found).sum(1)

        starts = rules.starts(moves.shape[0])
        _, found = jax.lax.scan(ply, (starts, jnp.ones(moves.shape[0], bool)), moves.T)
        return found.sum(0)

    compiled = jax.jit(follow)
    total = np.zeros(4, np.int64)
    for start in range(0, len(games), _TOGETHER):
        moves = np.full((_TOGETHER, longest), -1, np.int32)
        for row, game in enumerate(games[start : start + _TOGETHER]):
            moves[row, : len(game.moves)] = game.moves
        with jax.default_matmul_precision(workload.policy.matmul):
            total += np.asarray(compiled(variables, moves))
    return Prediction(*total.tolist())
