"""Counts of foreseen moves against a loop over the games in plain Python."""

import types

import numpy as np

from mlperf_jax.go import prediction, records
from mlperf_jax.go.records import Record
from mlperf_jax.precision import POLICIES
from tests.go.tiny import POLICY, RULES, linear, planes, play


def random_game(random, length):
    position, moves = RULES.start(), []
    for _ in range(length):
        moves.append(int(random.choice(np.flatnonzero(np.asarray(position.legal)))))
        position = play(position, moves[-1])
        if bool(position.over):
            break
    return tuple(moves)


def test_a_folder_of_games(tmp_path):
    random = np.random.default_rng(0)
    games = [Record(3, 0.5, random_game(random, 12)) for _ in range(5)]
    illegal = Record(3, 0.5, (4, 4, 1))
    records.write(tmp_path / "below" / "two.sgf", games[:2])
    records.write(tmp_path / "more.sgf", [*games[2:], Record(5, 0.5, (3,)), illegal])
    (tmp_path / "more.sgf").rename(tmp_path / "more.SGF")
    (tmp_path / "bad.sgf").write_text("no game")
    (tmp_path / "._bad.sgf").write_text("another system's notes")
    found, refused = prediction.read_folder(tmp_path, 3)
    assert sorted(g.moves for g in found) == sorted(g.moves for g in [*games, illegal])
    assert refused == ["bad.sgf: there is no game in it", "more.SGF: a board of size 5"]

    workload = types.SimpleNamespace(rules=RULES, judge=linear, policy=POLICIES["float32"])
    result = prediction.predict(workload, 1.0, found)
    moves = first = fifth = 0
    for game in [*games, Record(3, 0.5, (4,))]:
        position = RULES.start()
        for move in game.moves:
            logits = np.asarray(planes(position)).ravel().astype(np.float32) @ POLICY
            better = sum(logits > logits[move])  # nothing is, where all are 0: White on the empty board
            moves += 1
            first += better < 1
            fifth += better < 5
            position = play(position, move)
    assert (result.moves, result.first, result.fifth, result.illegal) == (moves, first, fifth, 1)
    assert 0 < first < fifth < moves
