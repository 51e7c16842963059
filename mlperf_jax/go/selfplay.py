"""Games against oneself, many at once, and the window of positions that training reads.

Games in flight are lanes of one batch: all of them search in lock-step, and a lane whose game is over
begins a new one. They go on in the next generation with the next network, as the reference's do. All of
it is arrays of fixed shape inside the training state: it is sharded over devices by lanes, checkpointed,
and a resumed run plays the same games.

Source: mlcommons/training, retired_benchmarks/minigo/tensorflow/minigo/cc/concurrent_selfplay.cc. Whether a
move is a fast one is drawn for all lanes together, since they search together; and games are played out
where the reference ends them once every point is safe for one side.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlperf_jax.go.features import PLANES, features
from mlperf_jax.go.rules import Position
from mlperf_jax.go.search import Found, Noise, Search, best_move, prune_visits, soft_pick


@dataclasses.dataclass(frozen=True)
class SelfPlayConfig:
    """Numbers of self-play, named as in the config.

    Attributes:
        lanes: games in flight.
        games_per_generation: at least so many are finished by each network.
        readouts: of a move that is learnt from.
        fastplay_frequency: share of moves with fewer readouts and no noise, which are not learnt from.
        fastplay_readouts: theirs.
        dirichlet_alpha, noise_mix: noise at the root.
        soft_pick_moves: as many first moves of a game are drawn by visits; the others are the most visited.
        soft_pick_power: of the visits in that draw.
        min_resign, max_resign: a game's threshold is drawn between them; who thinks less of his
            chances, as a value, resigns. Both -1: nobody does.
        prune: take back visits that only noise brought about before they are learnt.
        window: generations that training reads.
        rows: searched moves of all lanes that a generation keeps; then its newest replace its oldest.
    """

    lanes: int
    games_per_generation: int
    readouts: int
    fastplay_frequency: float
    fastplay_readouts: int
    dirichlet_alpha: float
    noise_mix: float
    soft_pick_moves: int
    soft_pick_power: float
    min_resign: float
    max_resign: float
    prune: bool
    window: int
    rows: int

    @property
    def positions(self) -> int:
        """That the window holds when it is full."""
        return self.window * self.rows * self.lanes


class Lanes(NamedTuple):
    """Games in flight, [lanes] each.

    Attributes:
        position: where they stand.
        number: counts the games of a lane, int32.
        resign: threshold of the game, float32.
        moves: what was played, int16 [lanes, max_moves].
    """

    position: Position
    number: jax.Array
    resign: jax.Array
    moves: jax.Array


class Window(NamedTuple):
    """Positions that were searched, [window, rows, lanes] each.

    Attributes:
        planes: features, eight to a byte, uint8 [..., bytes].
        policy: what the search made of the moves, float32 [..., moves].
        number: the lane's game, int32; -1 where there is none.
        outcome: of that game, int8: +1 Black won, -1 White, 0 not known yet.
    """

    planes: jax.Array
    policy: jax.Array
    number: jax.Array
    outcome: jax.Array


class Finished(NamedTuple):
    """The last finished game of each lane, [lanes], for people to look at.

    Attributes:
        moves: int16 [lanes, max_moves].
        length: of the game, int32; 0 while the lane has finished none.
        outcome: float32.
        resigned: bool.
    """

    moves: jax.Array
    length: jax.Array
    outcome: jax.Array
    resigned: jax.Array


class Played(NamedTuple):
    """State of self-play.

    Attributes:
        lanes, window, last: see there.
        generation: int32 [], whose games are being played.
        rows: searched moves in it so far, int32 [].
        plies: moves in it so far, int32 [].
        games: finished in it, int32 [].
        black, resigned, length: of these, won by Black, resigned, and their moves together, int32 [].
    """

    lanes: Lanes
    window: Window
    last: Finished
    generation: jax.Array
    rows: jax.Array
    plies: jax.Array
    games: jax.Array
    black: jax.Array
    resigned: jax.Array
    length: jax.Array


@dataclasses.dataclass(frozen=True)
class SelfPlay:
    """Plays; its methods are called in traced functions."""

    config: SelfPlayConfig
    search: Search

    def init(self, key: jax.Array) -> Played:
        """Empty boards and an empty window."""
        config, rules = self.config, self.search.rules
        shape = (config.window, config.rows, config.lanes)
        moves = jnp.full((config.lanes, rules.max_moves), rules.points, jnp.int16)
        lanes = Lanes(
            rules.starts(config.lanes),
            jnp.zeros(config.lanes, jnp.int32),
            self._thresholds(jax.random.fold_in(key, 0)),
            moves,
        )
        window = Window(
            jnp.zeros((*shape, -(-rules.points * PLANES // 8)), jnp.uint8),
            jnp.zeros((*shape, rules.moves), jnp.float32),
            jnp.full(shape, -1, jnp.int32),
            jnp.zeros(shape, jnp.int8),
        )
        none = jnp.zeros(config.lanes, jnp.int32)
        last = Finished(moves, none, none.astype(jnp.float32), none > 0)
        zero = jnp.zeros((), jnp.int32)
        return Played(lanes, window, last, zero - 1, zero, zero, zero, zero, zero, zero)

    def made_up(self, key: jax.Array) -> Played:
        """As `init`, with a window full of random planes, policies and outcomes."""
        played, (a, b, c) = self.init(key), jax.random.split(key, 3)
        window = played.window
        drawn = jax.random.exponential(b, window.policy.shape, jnp.float32)
        window = window._replace(
            planes=jax.random.bits(a, window.planes.shape, jnp.uint8),
            policy=drawn / drawn.sum(-1, keepdims=True),
            outcome=jnp.where(jax.random.bernoulli(c, shape=window.outcome.shape), 1, -1).astype(jnp.int8),
        )
        return played._replace(window=window)

    def generation(self, variables: Any, played: Played, key: jax.Array) -> Played:
        """Plays with one network until enough games are finished.

        Args:
            variables: the network's.
            played: what was played before.
            key: of the run; each generation and move has its own.
        """
        zero = jnp.zeros((), jnp.int32)
        played = played._replace(
            generation=played.generation + 1,
            rows=zero,
            plies=zero,
            games=zero,
            black=zero,
            resigned=zero,
            length=zero,
        )
        slot = played.generation % self.config.window
        window = played.window._replace(
            number=played.window.number.at[slot].set(-1), outcome=played.window.outcome.at[slot].set(0)
        )
        key = jax.random.fold_in(key, played.generation + 1)

        def unfinished(played: Played) -> jax.Array:
            return played.games < self.config.games_per_generation

        def ply(played: Played) -> Played:
            return self._ply(variables, played, jax.random.fold_in(key, played.plies))

        return jax.lax.while_loop(unfinished, ply, played._replace(window=window))

    def examples(self, window: Window, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Planes [B, N, N, C] bool, policies [B, moves] and outcomes [B] int8 at flat indices [B]."""
        at = jnp.unravel_index(index, window.outcome.shape)
        size = self.search.rules.size
        bits = jnp.unpackbits(window.planes[at], axis=1, count=size**2 * PLANES)
        planes = bits.astype(bool).reshape(-1, size, size, PLANES)
        return planes, window.policy[at], window.outcome[at]

    def _thresholds(self, key: jax.Array) -> jax.Array:
        low, high = self.config.min_resign, self.config.max_resign
        drawn = jax.random.uniform(key, (self.config.lanes,), jnp.float32, low, high)
        return drawn if low < high else jnp.full(self.config.lanes, low, jnp.float32)

    def _ply(self, variables: Any, played: Played, key: jax.Array) -> Played:
        """One move in every lane: a fast one, or one that is learnt from.

        Both are one search, so that it is compiled once: a fast one ends sooner, and is written past the
        window's last row, where writes are dropped.
        """
        config, position = self.config, played.lanes.position
        coin, search_key, key = jax.random.split(key, 3)
        fast = jax.random.bernoulli(coin, config.fastplay_frequency)
        found = self.search(
            variables,
            position,
            search_key,
            max(config.readouts, config.fastplay_readouts),
            Noise(config.dirichlet_alpha, jnp.where(fast, 0, config.noise_mix)),
            stop=jnp.where(fast, config.fastplay_readouts, config.readouts),
        )
        visits = (prune_visits(found) if config.prune else found.visits).astype(jnp.float32)
        opening = (position.played < config.soft_pick_moves)[:, None]
        policy = jnp.where(opening, visits**config.soft_pick_power, visits)
        policy = policy / policy.sum(1, keepdims=True)
        planes = jax.vmap(features, (0, None))(position, self.search.rules.size)
        at = played.generation % config.window, jnp.where(fast, config.rows, played.rows % config.rows)
        window = played.window
        window = window._replace(
            planes=window.planes.at[at].set(
                jnp.packbits(planes.reshape(len(planes), -1), axis=1), mode="drop"
            ),
            policy=window.policy.at[at].set(policy, mode="drop"),
            number=window.number.at[at].set(played.lanes.number, mode="drop"),
            outcome=window.outcome.at[at].set(0, mode="drop"),
        )
        return self._move(played._replace(window=window, rows=played.rows + ~fast), found, key)

    def _move(self, played: Played, found: Found, key: jax.Array) -> Played:
        """Plays what was found, and begins anew where a game is over."""
        config, rules = self.config, self.search.rules
        pick_key, resign_key = jax.random.split(key)
        lanes, before = played.lanes, played.lanes.position
        drawn = soft_pick(pick_key, found.visits, config.soft_pick_power)
        move = jnp.where(before.played < config.soft_pick_moves, drawn, best_move(found))
        after = jax.vmap(rules.play)(before, move)
        resigns = found.value < lanes.resign
        over = after.over | resigns
        outcome = jnp.where(resigns, -before.color, after.outcome)
        columns = jnp.arange(rules.max_moves)
        moves = jnp.where(columns == before.played[:, None], move[:, None].astype(jnp.int16), lanes.moves)
        length = before.played + ~resigns
        window = played.window
        ended = over & (window.number == lanes.number)
        window = window._replace(outcome=jnp.where(ended, outcome.astype(jnp.int8), window.outcome))

        def where_over(new: Any, old: Any) -> Any:
            def choose(new: jax.Array, old: jax.Array) -> jax.Array:
                return jnp.where(over.reshape(-1, *[1] * (old.ndim - 1)), new, old)

            return jax.tree.map(choose, new, old)

        return played._replace(
            lanes=Lanes(
                where_over(rules.starts(config.lanes), after),
                lanes.number + over,
                where_over(self._thresholds(resign_key), lanes.resign),
                where_over(jnp.full_like(moves, rules.points), moves),
            ),
            window=window,
            last=where_over(Finished(moves, length, outcome, resigns), played.last),
            plies=played.plies + 1,
            games=played.games + over.sum(),
            black=played.black + (over & (outcome > 0)).sum(),
            resigned=played.resigned + resigns.sum(),
            length=played.length + jnp.where(over, length, 0).sum(),
        )
