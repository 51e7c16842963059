"""What self-play leaves in the window, against the games replayed in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.go.features import PLANES
from mlperf_jax.go.match import MatchConfig
from mlperf_jax.go.search import Search
from mlperf_jax.go.selfplay import SelfPlay, SelfPlayConfig
from tests.go.tiny import RULES, linear, planes, play

LANES, ROWS, WINDOW = 6, 40, 2
CONFIG = SelfPlayConfig(
    lanes=LANES,
    games_per_generation=12,
    readouts=6,
    fastplay_frequency=0.4,
    fastplay_readouts=2,
    dirichlet_alpha=0.5,
    noise_mix=0.25,
    soft_pick_moves=6,
    soft_pick_power=0.98,
    min_resign=-0.9,
    max_resign=-0.5,
    prune=True,
    window=WINDOW,
    rows=ROWS,
)


@pytest.fixture(scope="module")
def generations():
    """The state after each of three generations, on the host."""
    self_play = SelfPlay(CONFIG, Search(RULES, linear))
    key = jax.random.key(3)
    generation = jax.jit(lambda played: self_play.generation(0.4, played, key))
    played, states = self_play.init(key), []
    for _ in range(3):
        played = generation(played)
        states.append(jax.device_get(played))
    return self_play, states


def planes_of(window, at):
    bits = np.unpackbits(window.planes[at])[: 9 * PLANES]
    return bits.astype(bool).reshape(3, 3, PLANES)


def test_counts(generations):
    _, states = generations
    before = 0
    for played in states:
        assert played.games >= CONFIG.games_per_generation
        assert played.lanes.number.sum() - before == played.games
        before = played.lanes.number.sum()
        assert 0 < played.rows < played.plies  # some moves are fast ones
        assert played.black <= played.games and played.resigned < played.games
        assert played.length >= played.games
    assert [int(played.generation) for played in states] == [0, 1, 2]
    assert sum(played.black for played in states) > 0 and sum(played.resigned for played in states) > 0


def test_the_window_holds_what_was_played(generations):
    """Every row of a lane's last game is a position of it, in order, with its outcome; open games have none."""
    _, states = generations
    checked = 0
    for played in states:
        window, last = played.window, played.last
        slots = [(played.generation - 1) % WINDOW] if played.generation else []
        for lane in range(LANES):
            number = played.lanes.number[lane]
            assert (window.outcome[:, :, lane][window.number[:, :, lane] == number] == 0).all()
            known = (window.number[:, :, lane] >= 0) & (window.number[:, :, lane] < number)
            assert (window.outcome[:, :, lane][known] != 0).all()
            if not last.length[lane] and not last.resigned[lane]:
                continue
            position, seen = RULES.start(), []
            for move in last.moves[lane, : last.length[lane]]:
                seen.append((np.asarray(planes(position)), np.asarray(position.legal)))
                assert bool(position.legal[move])
                position = play(position, int(move))
            seen.append((np.asarray(planes(position)), np.asarray(position.legal)))
            if last.resigned[lane]:
                assert not bool(position.over) and last.outcome[lane] == -float(position.color)
            else:
                assert bool(position.over) and last.outcome[lane] == float(position.outcome)
            ply = 0
            for slot in [*slots, played.generation % WINDOW]:
                for row in np.flatnonzero(window.number[slot, :, lane] == number - 1):
                    at = slot, row, lane
                    assert window.outcome[at] == last.outcome[lane]
                    while (seen[ply][0] != planes_of(window, at)).any():
                        ply += 1
                    policy = window.policy[at]
                    np.testing.assert_allclose(policy.sum(), 1, rtol=1e-5)
                    assert (policy[~seen[ply][1]] == 0).all()
                    ply += 1
                    checked += 1
    assert checked > 20


def test_examples_are_unpacked(generations):
    self_play, states = generations
    window = states[-1].window
    index = np.flatnonzero(window.outcome)[:50]
    planes, policy, outcome = self_play.examples(jax.tree.map(jnp.asarray, window), jnp.asarray(index))
    for i, flat in enumerate(index):
        at = np.unravel_index(flat, window.outcome.shape)
        np.testing.assert_array_equal(planes[i], planes_of(window, at))
        np.testing.assert_array_equal(policy[i], window.policy[at])
        assert outcome[i] == window.outcome[at]


def test_an_odd_match_is_refused():
    with pytest.raises(ValueError, match="equal colours"):
        MatchConfig(games=3, readouts=1, soft_pick_moves=0, seed=0)
