"""A fixed set of positions with the moves that a search found in them, to judge a policy by.

They come from games of a network against itself, every move drawn by visits, so that they differ. The same
network and numbers always give the same positions; they are kept in a file, named by what they came from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.go.features import PLANES, features
from mlperf_jax.go.rules import Position
from mlperf_jax.go.search import Search, best_move, soft_pick
from mlperf_jax.results.folders import write_bytes


@dataclasses.dataclass(frozen=True)
class PositionsConfig:
    """Numbers of the set, named as in the config.

    Attributes:
        count: positions.
        games: they are drawn from; together they must be long enough.
        readouts: of the search.
        seed: of games and draws.
    """

    count: int
    games: int
    readouts: int
    seed: int


def play(config: PositionsConfig, search: Search, variables: Any) -> dict[str, jax.Array]:
    """Plays the games; traced.

    Returns:
        planes: bool [max_moves, games, N, N, C].
        move: the search's best, int32 [max_moves, games].
        real: whether the game was not over yet, bool [max_moves, games].
    """
    rules = search.rules
    key = jax.random.key(config.seed)

    def ply(positions: Position, count: jax.Array) -> tuple[Position, dict[str, jax.Array]]:
        search_key, pick_key = jax.random.split(jax.random.fold_in(key, count))
        found = search(variables, positions, search_key, config.readouts)
        seen = {
            "planes": jax.vmap(features, (0, None))(positions, rules.size),
            "move": best_move(found),
            "real": ~positions.over,
        }
        return jax.vmap(rules.play)(positions, soft_pick(pick_key, found.visits, 1.0)), seen

    return jax.lax.scan(ply, rules.starts(config.games), jnp.arange(rules.max_moves))[1]


def choose(config: PositionsConfig, seen: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draws `count` of the positions that `play` saw: planes [count, N, N, C], move [count].

    Raises:
        ValueError: the games were too short.
    """
    real = np.flatnonzero(seen["real"])
    if len(real) < config.count:
        raise ValueError(f"{config.games} games gave {len(real)} positions of {config.count}")
    picked = np.sort(np.random.default_rng(config.seed).permutation(real)[: config.count])
    planes = np.asarray(seen["planes"]).reshape(-1, *seen["planes"].shape[2:])[picked]
    return {"planes": planes, "move": np.asarray(seen["move"]).ravel()[picked].astype(np.int32)}


def fingerprint(variables: Any, *facts: Any) -> str:
    """Of a network's variables and of what else made the positions."""
    digest = hashlib.sha256(repr(facts).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()[:16]


def save(path: Path, positions: Mapping[str, np.ndarray]) -> None:
    """Writes the set, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    file = io.BytesIO()
    np.savez(file, planes=np.packbits(positions["planes"]), move=positions["move"])
    write_bytes(path, file.getvalue())


def load(path: Path, size: int) -> dict[str, np.ndarray] | None:
    """Reads what `save` wrote; None where it is not there or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            packed, move = file["planes"], file["move"]
        shape = (len(move), size, size, PLANES)
        planes = np.unpackbits(packed, count=int(np.prod(shape))).astype(bool).reshape(shape)
        return {"planes": planes, "move": move.astype(np.int32)}
    except Exception:  # NumPy and zlib raise whatever the damage makes of it
        return None
