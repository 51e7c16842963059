"""Tree search by mctx with MiniGo's numbers: PUCT, Dirichlet noise at the root, the real rules as model.

Source: mlcommons/training, retired_benchmarks/minigo/tensorflow/minigo/cc/mcts_tree.{h,cc}. With Q in
[-1, 1] the reference maximises Q + 2 c(N) P sqrt(N) / (1 + n) with c(N) = log((1 + N + 19652) / 19652) + 1.25,
which is twice mctx's sum once Q is moved to [0, 1]. Here one leaf at a time is evaluated in each of many
games, where the reference gathers several leaves of one game by virtual losses; and each search begins
anew, where the reference goes on in the part of the tree that was played.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mctx

from mlperf_jax.go.features import features, inverse_symmetries, turn_features, turn_moves
from mlperf_jax.go.rules import Position, Rules

Network = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
"""(variables, planes [B, N, N, C]) -> logits [B, moves], value [B] in [-1, 1], +1 if Black wins."""

_PUCT_BASE, _PUCT_INIT = 19652.0, 1.25
_NEVER = float(jnp.finfo(jnp.float32).min)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Dirichlet noise at the root.

    Attributes:
        alpha: of the distribution, the same for every legal move.
        mix: the noise's share; may be traced.
    """

    alpha: float
    mix: float | jax.Array


class Found(NamedTuple):
    """What a search found of each root; values are those of the player to move.

    Attributes:
        visits: int32 [B, moves].
        q: mean value of each move, float32 [B, moves]; that of a move not visited is a guess.
        prior: of each move, with noise, float32 [B, moves].
        value: of the root, float32 [B].
    """

    visits: jax.Array
    q: jax.Array
    prior: jax.Array
    value: jax.Array


@dataclasses.dataclass(frozen=True)
class Search:
    """A searcher; called in traced functions.

    Attributes:
        rules: of the game.
        network: policy and value.
        value_init_penalty: how much worse than its parent a move counts until it was visited.
        random_symmetry: show each position to the network through a symmetry drawn anew.
    """

    rules: Rules
    network: Network
    value_init_penalty: float = 0.2
    random_symmetry: bool = True

    def __call__(
        self,
        variables: Any,
        positions: Position,
        key: jax.Array,
        readouts: int,
        noise: Noise | None = None,
        *,
        stop: jax.Array | None = None,
    ) -> Found:
        """Searches each of `positions` [B].

        Args:
            variables: the network's.
            positions: the roots.
            key: of noise, symmetries and ties.
            readouts: the most that the tree has room for, and how many there are unless `stop` says otherwise.
            noise: at the root.
            stop: how many readouts there are, int32 [], where only the device knows.
        """
        noise_key, root_key, key = jax.random.split(key, 3)
        logits, value = self._evaluate(variables, positions, root_key)
        if noise:
            logits = jnp.log(_mix_noise(noise_key, jax.nn.softmax(logits), positions.legal, noise))
            logits = jnp.where(positions.legal, jnp.maximum(logits, _NEVER), _NEVER)
        root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=positions)
        tree = mctx.muzero_policy(
            variables,
            key,
            root,
            self._step,
            num_simulations=readouts,
            invalid_actions=~positions.legal,
            dirichlet_fraction=0.0,
            qtransform=self._score,
            pb_c_init=_PUCT_INIT,
            pb_c_base=_PUCT_BASE,
            loop_fn=lambda start, end, body, tree: jax.lax.fori_loop(
                start, end if stop is None else stop, body, tree
            ),
        ).search_tree
        summary = tree.summary()
        return Found(
            summary.visit_counts.astype(jnp.int32),
            jax.vmap(self._q)(tree, jnp.zeros(len(value), jnp.int32)),
            jax.nn.softmax(tree.children_prior_logits[:, 0]),
            summary.value,
        )

    def _evaluate(self, variables: Any, positions: Position, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits, those of illegal moves out of reach, and the mover's value."""
        size = self.rules.size
        planes = jax.vmap(features, (0, None))(positions, size)
        if self.random_symmetry:
            symmetry = jax.random.randint(key, planes.shape[:1], 0, 8)
            logits, value = self.network(variables, turn_features(planes, symmetry))
            logits = turn_moves(logits, jnp.asarray(inverse_symmetries(size))[symmetry])
        else:
            logits, value = self.network(variables, planes)
        logits = logits.astype(jnp.float32)
        value = value.astype(jnp.float32) * positions.color
        return jnp.where(positions.legal, jax.nn.log_softmax(logits), _NEVER), value

    def _step(
        self, variables: Any, key: jax.Array, moves: jax.Array, positions: Position
    ) -> tuple[mctx.RecurrentFnOutput, Position]:
        """mctx's recurrent function: plays, then evaluates."""
        after = jax.vmap(self.rules.play)(positions, moves)
        logits, value = self._evaluate(variables, after, key)
        # A game that was over before cannot be won again: there the tree goes on in place.
        reward = jnp.where(positions.over, 0.0, after.outcome * positions.color)
        discount = jnp.where(after.over, 0.0, -1.0)
        value = jnp.where(after.over, 0.0, value)
        return mctx.RecurrentFnOutput(
            reward=reward, discount=discount, prior_logits=logits, value=value
        ), after

    def _q(self, tree: mctx.Tree, node: jax.Array) -> jax.Array:
        """Values [moves] of one node's moves: the mean of what was found and of a guess, counted once."""
        visits = tree.children_visits[node]
        guess = jnp.clip(tree.raw_values[node] - self.value_init_penalty, -1, 1)
        return (guess + visits * tree.qvalues(node)) / (1 + visits)

    def _score(self, tree: mctx.Tree, node: jax.Array) -> jax.Array:
        """mctx's transform of Q: to [0, 1], and illegal moves of inner nodes out of reach."""
        legal = tree.children_prior_logits[node] > _NEVER / 2
        return jnp.where(legal, (1 + self._q(tree, node)) / 2, -1000.0)


def _mix_noise(key: jax.Array, prior: jax.Array, legal: jax.Array, noise: Noise) -> jax.Array:
    """Prior and noise, each a distribution over the legal moves, mixed."""
    drawn = jax.random.dirichlet(key, jnp.full(prior.shape[1], noise.alpha), prior.shape[:1])
    drawn = jnp.where(legal, drawn, 0)
    drawn = drawn / jnp.maximum(drawn.sum(1, keepdims=True), jnp.finfo(drawn.dtype).tiny)
    prior = jnp.where(legal, prior, 0)
    prior = prior / prior.sum(1, keepdims=True)
    return (1 - noise.mix) * prior + noise.mix * drawn


def prune_visits(found: Found) -> jax.Array:
    """Takes back visits that only the noise brought about, int32 [B, moves] ("target pruning").

    Each move but the best keeps as many as it would have been given with what is known at the end: the
    least n with Q + 2 c P sqrt(N) / n below the best move's Q + 2 c P sqrt(1 + N) / (1 + n).
    """
    total = 1.0 + found.visits.sum(1, keepdims=True)
    scale = 2 * (jnp.log((1 + total + _PUCT_BASE) / _PUCT_BASE) + _PUCT_INIT)
    score = found.q + scale * jnp.sqrt(1 + total) * found.prior / (1 + found.visits)
    best = best_move(found)[:, None]
    gap = jnp.take_along_axis(score, best, 1) - found.q
    enough = jnp.where(gap > 0, scale * found.prior * jnp.sqrt(total) / jnp.where(gap > 0, gap, 1), 0)
    kept = jnp.clip(jnp.floor(enough), 0, found.visits).astype(jnp.int32)
    return jnp.where(jnp.arange(found.visits.shape[1]) == best, found.visits, kept)


def best_move(found: Found) -> jax.Array:
    """The most visited move, of several the one that would be looked at next, int32 [B]."""
    tied = found.visits == found.visits.max(1, keepdims=True)
    return jnp.where(tied, found.q + found.prior / (1 + found.visits), -jnp.inf).argmax(1).astype(jnp.int32)


def soft_pick(key: jax.Array, visits: jax.Array, power: float) -> jax.Array:
    """Draws moves in proportion to visits ** power, int32 [B]; passes only where nothing else was visited."""
    weights = jnp.where(visits > 0, power * jnp.log(visits), -jnp.inf)
    boards = weights[:, :-1]
    drawn = jax.random.categorical(key, boards)
    return jnp.where((boards > -jnp.inf).any(1), drawn, visits.shape[1] - 1).astype(jnp.int32)
