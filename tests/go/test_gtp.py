"""The protocol, with a player that needs no network; and GNU Go as judge of what it says."""

import io
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.go import gtp
from mlperf_jax.go.player import Choice, _play
from mlperf_jax.go.rules import Rules
from tests.go.board import Board

GNUGO = shutil.which("gnugo", path="/usr/games:/usr/local/games:/usr/bin:/usr/local/bin")


class Lowest:
    """Plays the first point it may, and thinks nothing of it."""

    def __init__(self):
        self.rules = Rules(5, 7.5, 50)
        self.value = 0.0

    def set_komi(self, komi):
        self.komi = komi

    def starts(self, count):
        return self.rules.starts(count)

    def play(self, positions, moves):
        return _play(Rules(5, 7.5, 50))(positions, np.asarray(moves, np.int32))

    def choose(self, positions):
        order = np.argsort(~np.asarray(positions.legal), axis=1, kind="stable")
        return Choice(order, np.array([self.value]))


@pytest.fixture
def engine():
    return gtp.GtpEngine(Lowest())


def answers(engine, *lines):
    return [engine.answer(line) for line in lines]


def test_a_session_by_the_standard(engine):
    assert engine.answer("protocol_version\n") == "= 2\n\n"
    assert engine.answer("12 name # who\n") == "=12 mlperf_jax\n\n"
    assert engine.answer("\x07 \t # nothing\n") is None
    assert engine.answer("known_command genmove") == "= true\n\n"
    assert engine.answer("known_command cheat") == "= false\n\n"
    assert "showboard\n" in engine.answer("list_commands")
    assert engine.answer("boardsize 5") == "=\n\n"
    assert engine.answer("boardsize 19") == "? unacceptable size\n\n"
    assert engine.answer("play b C3") == "=\n\n"
    assert engine.answer("play w c3") == "? illegal move\n\n"
    assert engine.answer("genmove w") == "= A5\n\n"
    board = engine.answer("showboard")
    assert " 5 O . . . . 5" in board and " 3 . . X . . 3" in board
    assert answers(engine, "undo", "undo", "undo") == ["=\n\n", "=\n\n", "? cannot undo\n\n"]
    assert engine.answer("time_settings 60 10 1") == "=\n\n"
    assert engine.answer("time_left b 10 0") == "=\n\n"
    assert engine.answer("final_score") == "= W+7.5\n\n"
    assert engine.answer("play b pass") == engine.answer("play white PASS") == "=\n\n"
    assert engine.answer("play b a1") == "? illegal move: the game is over\n\n"
    assert engine.answer("genmove b") == "= PASS\n\n"
    assert engine.answer("clear_board") == "=\n\n"
    assert not engine.quit
    assert engine.answer("quit") == "=\n\n" and engine.quit


def test_one_colour_twice_lets_the_other_pass(engine):
    assert answers(engine, "play b a1", "play b b1", "play b pass", "play b c1") == [
        "=\n\n",
        "=\n\n",
        "=\n\n",
        "? illegal move: the game is over\n\n",
    ]


def test_a_repetition_is_illegal(engine):
    """Also where more than one stone was taken in between, which pgx itself allows (and counts as lost)."""
    random, refused = np.random.default_rng(0), 0
    while not refused:
        board = Board(5)
        engine.answer("clear_board")
        for turn in range(49):
            color = "bw"[turn % 2]
            legal = [p for p in range(25) if board.after(p) is not None]
            for point in filter(board.repeats, legal):
                assert engine.answer(f"play {color} {gtp.to_vertex(point, 5)}") == "? illegal move\n\n"
                refused += 1
            allowed = [p for p in legal if not board.repeats(p)] or [25]
            takes = [p for p in allowed if p < 25 and board.captures(p)]
            board.play(point := int(random.choice(takes or allowed)))
            assert engine.answer(f"play {color} {gtp.to_vertex(point, 5)}") == "=\n\n"
            if board.passes == 2:
                break


def test_resigning(engine):
    engine.resign_below, engine.player.value = -0.5, -0.6
    assert engine.answer("genmove b") == "= resign\n\n"


WORDS = st.sampled_from(
    [
        *(
            "play",
            "genmove",
            "undo",
            "boardsize",
            "komi",
            "final_score",
            "showboard",
            "clear_board",
            "time_left",
        ),
        *("reg_genmove", "known_command", "b", "w", "black", "pass", "resign", "a1", "T19", "c3", "e5"),
        *("99", "-1", "1e9", "nan", "7", "0", "#", "quit\x00", "é"),
    ]
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.one_of(st.lists(WORDS, max_size=4).map(" ".join), st.text(max_size=30)), max_size=12))
def test_whatever_comes_is_answered(lines):
    engine = gtp.GtpEngine(Lowest())
    for line in lines:
        answer = engine.answer(line)
        assert answer is None or (answer[0] in "=?" and answer.endswith("\n\n") and "\n\n" not in answer[:-2])


def test_a_stream_of_bytes(engine):
    source = io.BytesIO(b"\xff\xfe\x00\n1 name\r\n" + b"x" * 100_000 + b"\n2 quit\n3 name\n")
    sink = io.BytesIO()
    gtp.serve(engine, source, sink)
    assert sink.getvalue().decode().split("\n\n") == [
        "? unknown command",
        "=1 mlperf_jax",
        "? unknown command",
        "=2",
        "",
    ]


@pytest.mark.skipif(GNUGO is None, reason="GNU Go (Debian's gnugo) is not installed")
def test_gnugo_agrees_on_moves_and_score(engine):
    """Random games by our engine's board: GNU Go finds the same moves legal, and the same final area."""
    random = np.random.default_rng(5)
    with subprocess.Popen(
        [GNUGO, "--mode", "gtp", "--chinese-rules", "--level", "1", "--seed", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as judge:

        def ask(line):
            judge.stdin.write(line + "\n")
            judge.stdin.flush()
            reply = []
            while (text := judge.stdout.readline()) not in ("\n", ""):
                reply.append(text)
            return "".join(reply)

        for _ in range(3):
            for line in ("boardsize 5", "komi 7.5", "clear_board"):
                ask(line)
            engine.answer("clear_board")
            for turn in range(30):
                color = "bw"[turn % 2]
                legal = set(ask(f"all_legal {color}")[2:].split())
                ours = {gtp.to_vertex(m, 5) for m in np.flatnonzero(engine._position.legal[0]).tolist()} - {
                    "PASS"
                }
                assert legal == ours
                if not legal:
                    break
                vertex = str(random.choice(sorted(legal)))
                if engine.answer(f"play {color} {vertex}") != "=\n\n":
                    break  # a repetition, which GNU Go allows
                ask(f"play {color} {vertex}")
        judge.stdin.write("quit\n")
