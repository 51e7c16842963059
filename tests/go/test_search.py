"""The search against one written in plain Python, and what is made of its visits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.go import search as searching
from mlperf_jax.go.search import Found, Noise, Search
from tests.go.tiny import POLICY, RULES, VALUE, linear, planes, play

READOUTS = 24
PENALTY = 0.2


class Node:
    """PUCT as AlphaZero has it, with MiniGo's constants and its first guess of a move's value."""

    def __init__(self, position):
        self.position = position
        self.legal = np.asarray(position.legal)
        self.color = float(position.color)
        x = np.asarray(planes(position)).reshape(-1).astype(np.float32)
        logits = np.where(self.legal, x @ POLICY, -np.inf)
        self.prior = np.exp(logits - logits.max())
        self.prior /= self.prior.sum()
        self.value = self.color * float(np.tanh(x @ VALUE))
        self.children, self.total = {}, 1
        self.visits, self.sum = np.zeros(len(logits)), np.zeros(len(logits))

    def pick(self):
        guess = np.clip(self.value - PENALTY, -1, 1)
        q = (guess + self.sum) / (1 + self.visits)
        scale = np.log((1 + self.total + 19652) / 19652) + 1.25
        score = (1 + q) / 2 + scale * self.prior * np.sqrt(self.total) / (1 + self.visits)
        return int(np.where(self.legal, score, -np.inf).argmax())

    def visit(self):
        """One readout below this node; returns what it found for the player to move here."""
        move = self.pick()
        if move not in self.children:
            after = play(self.position, move)
            self.children[move] = self.color * float(after.outcome) if bool(after.over) else Node(after)
            child = self.children[move]
            found = child if isinstance(child, float) else -child.value
        else:
            child = self.children[move]
            found = child if isinstance(child, float) else -child.visit()
        self.visits[move] += 1
        self.sum[move] += found
        self.total += 1
        return found


@pytest.fixture(scope="module")
def positions():
    """Some positions of random games, batched."""
    random = np.random.default_rng(2)
    found = []
    for length in (0, 3, 5, 8):
        position = RULES.start()
        for _ in range(length):
            position = play(position, int(random.choice(np.flatnonzero(np.asarray(position.legal)[:-1]))))
        assert not bool(position.over)
        found.append(position)
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


@pytest.mark.parametrize("room", [0, 5])
def test_visits_equal_a_plain_search(positions, room):
    """Also where the tree has room for more readouts than are made."""
    search = Search(RULES, linear, PENALTY, random_symmetry=False)
    stop = jnp.int32(READOUTS) if room else None
    run = jax.jit(lambda p, key: search(1.0, p, key, READOUTS + room, stop=stop))
    with jax.default_matmul_precision("highest"):
        found = run(positions, jax.random.key(0))
    for i in range(len(found.value)):
        root = Node(jax.tree.map(lambda x, i=i: x[i], positions))
        for _ in range(READOUTS):
            root.visit()
        np.testing.assert_array_equal(found.visits[i], root.visits)
        guess = np.clip(root.value - PENALTY, -1, 1)
        np.testing.assert_allclose(found.q[i], (guess + root.sum) / (1 + root.visits), atol=1e-5)
        np.testing.assert_allclose(found.prior[i], root.prior, atol=1e-6)
        np.testing.assert_allclose(found.value[i], (root.value + root.sum.sum()) / (READOUTS + 1), atol=1e-5)


def test_noise_is_mixed_over_legal_moves():
    legal = jnp.arange(10) % 3 > 0
    prior = jnp.where(legal, 1 / 6, 0.0)[None].repeat(4000, 0)
    noise = Noise(0.3, 0.25)
    mixed = np.asarray(searching._mix_noise(jax.random.key(0), prior, legal[None].repeat(4000, 0), noise))
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-5)
    assert (mixed[:, ~np.asarray(legal)] == 0).all()
    drawn = (mixed[:, np.asarray(legal)] - 0.75 / 6) / 0.25
    # Of ten Dirichlet(0.3) shares the six legal ones, scaled to 1: a Dirichlet(0.3) of six.
    np.testing.assert_allclose(drawn.mean(0), 1 / 6, atol=0.02)
    np.testing.assert_allclose(drawn.var(0), (1 / 6) * (5 / 6) / (6 * 0.3 + 1), atol=0.01)


def test_pruning_by_its_inequality():
    """The least number of visits that keeps a move below the best one, found by counting up to it."""
    random = np.random.default_rng(0)
    visits = random.integers(0, 30, (40, 10)).astype(np.int32)
    q = random.uniform(-1, 1, (40, 10)).astype(np.float32)
    prior = random.dirichlet(np.ones(10), 40).astype(np.float32)
    found = Found(jnp.asarray(visits), jnp.asarray(q), jnp.asarray(prior), jnp.zeros(40))
    pruned, best = np.asarray(searching.prune_visits(found)), np.asarray(searching.best_move(found))
    for i in range(40):
        total = 1 + visits[i].sum()
        scale = 2 * (np.log((1 + total + 19652) / 19652) + 1.25)
        b = best[i]
        assert visits[i, b] == visits[i].max() and pruned[i, b] == visits[i, b]
        limit = q[i, b] + scale * np.sqrt(1 + total) * prior[i, b] / (1 + visits[i, b])
        for move in set(range(10)) - {b}:
            enough = (
                0 if limit <= q[i, move] else scale * prior[i, move] * np.sqrt(total) / (limit - q[i, move])
            )
            expected = min(max(int(enough), 0), visits[i, move])
            assert abs(pruned[i, move] - expected) <= (abs(enough - round(enough)) < 1e-3)


def test_soft_picks_are_drawn_by_visits():
    visits = jnp.array([[3, 0, 1, 0, 9], [0, 0, 0, 0, 5]])
    drawn = np.asarray(
        jax.vmap(lambda key: searching.soft_pick(key, visits, 2.0))(jax.random.split(jax.random.key(1), 4000))
    )
    assert (drawn[:, 1] == 4).all()  # only where nothing else was visited
    assert set(np.unique(drawn[:, 0])) == {0, 2}
    assert abs((drawn[:, 0] == 0).mean() - 0.9) < 0.02
