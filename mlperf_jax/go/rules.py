"""The rules of Go, by pgx, for boards of any size up to 19.

They are Chinese rules as MiniGo plays them: area scoring, no suicide, positional superko; two passes end
the game. Two things differ from the reference. A move that repeats a position is not forbidden: it loses
at once, which a search of one move finds out. And a game that is not over after `max_moves` is counted
as it stands.

Moves are numbered row by row from the top left; `size * size` is the pass. Black is +1, White -1.
"""

from __future__ import annotations

import dataclasses
import functools
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from pgx._src.games import go

HISTORY = 4
"""Boards that a position remembers for its features, the present one among them."""


@functools.cache
def _pgx() -> ModuleType:
    """pgx's Go. Its import makes arrays: not before devices are chosen, nor inside of what is being traced."""
    with jax.enable_x64(False), jax.ensure_compile_time_eval():
        from pgx._src.games import go
    return go


class Position(NamedTuple):
    """A game so far; batched where a function says so.

    Attributes:
        game: pgx's own state.
        legal: bool [moves].
        over: bool [].
        outcome: float32 []: +1 Black has won, -1 White has, 0 it is not over.
    """

    game: go.GameState
    legal: jax.Array
    over: jax.Array
    outcome: jax.Array

    @property
    def color(self) -> jax.Array:
        """Whose turn it is, float32: +1 or -1."""
        return 1.0 - 2.0 * (self.game.step_count % 2)

    @property
    def played(self) -> jax.Array:
        """Moves so far, int32."""
        return self.game.step_count


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a game is played under.

    Its functions are compiled, so that one is traced once however many programs use it.

    Attributes:
        size: of the board, 3 to 19.
        komi: points for White, who also wins where it makes the score even.
        max_moves: after which a game is counted as it stands.
    """

    size: int
    komi: float
    max_moves: int

    def __post_init__(self) -> None:
        if not 3 <= self.size <= 19:
            raise ValueError(f"a board of size {self.size}; use 3 to 19")

    @property
    def points(self) -> int:
        return self.size**2

    @property
    def moves(self) -> int:
        """Points and the pass."""
        return self.points + 1

    @functools.cached_property
    def _game(self) -> go.Game:
        return _pgx().Game(self.size, self.komi, history_length=HISTORY, max_termination_steps=self.max_moves)

    @functools.partial(jax.jit, static_argnums=0)
    def start(self) -> Position:
        """The empty board, Black to play."""
        return self._position(self._game.init())

    def starts(self, count: int) -> Position:
        """`count` empty boards, [count, ...]."""
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), self.start())

    @functools.partial(jax.jit, static_argnums=0)
    def play(self, position: Position, move: jax.Array) -> Position:
        """The position after a legal move (int32 []); a game that is over stays as it is."""
        new = self._position(self._game.step(position.game, move))
        return jax.tree.map(lambda old, new: jnp.where(position.over, old, new), position, new)

    @functools.partial(jax.jit, static_argnums=0)
    def score(self, position: Position) -> jax.Array:
        """Black's area less White's, without komi, int32 []: every stone on the board counts as alive."""
        black, white = _pgx()._count_scores(position.game, self.size)
        return black - white

    def _position(self, game: go.GameState) -> Position:
        return Position(
            game,
            self._game.legal_action_mask(game),
            jnp.asarray(self._game.is_terminal(game)),
            self._game.rewards(game)[0],
        )
