"""MiniGo mini against GNU Go, level 1, on the same board: 100 games, 50 with each colour.

    python -m benchmarks.minigo_gnugo --results_dir=results --out=benchmarks/minigo_gnugo.json

Both speak GTP; this is the referee. Chinese rules, the komi of training; GNU Go never resigns and plays on until
dead stones are taken off, so that the area as it lies is the score. Whoever repeats a position loses. Both
programs are seeded: the same network on the same machine plays the same games.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mlperf_jax import cli
from mlperf_jax.errors import UserError
from mlperf_jax.gtp import define_model_flags, load_model

FLAGS = flags.FlagValues()
define_model_flags(FLAGS)
flags.DEFINE_string("out", None, "JSON to write; games go beside it as .sgf.", flag_values=FLAGS)
flags.DEFINE_integer("games", 100, "Even.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer("level", 1, "GNU Go's, 1 to 10.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("readouts", 100, "Of our moves.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 1, "Of both programs.", lower_bound=0, flag_values=FLAGS)

SCHEMA_VERSION = 1


class GnuGo:
    """GNU Go in a process of its own."""

    def __init__(self, level: int) -> None:
        found = shutil.which("gnugo") or shutil.which("gnugo", path="/usr/games")
        if not found:
            raise UserError("There is no gnugo on this machine; install it, as with `apt-get install gnugo`.")
        options = ["--chinese-rules", "--never-resign", "--capture-all-dead", "--level", str(level)]
        self._process = subprocess.Popen(
            [found, "--mode", "gtp", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> str:
        """The answer to a command.

        Raises:
            RuntimeError: GNU Go refused it, or is gone.
        """
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        reply = []
        while (text := self._process.stdout.readline()) not in ("\n", ""):
            reply.append(text)
        answer = "".join(reply).strip()
        if not answer.startswith("="):
            raise RuntimeError(f"GNU Go answers {line!r} with {answer!r}")
        return answer[1:].strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclasses.dataclass(frozen=True)
class Game:
    """How a game went.

    Attributes:
        black: whether we were Black.
        won: whether we won.
        moves: by number.
        score: as the area lies, e.g. "B+17.5"; "" where a position was repeated.
        gnugo_score: GNU Go's own opinion.
    """

    black: bool
    won: bool
    moves: tuple[int, ...]
    score: str
    gnugo_score: str


def play(engine, gnugo: GnuGo, size: int, komi: float, limit: int, *, black: bool, seed: int) -> Game:
    """One game."""
    from mlperf_jax.go.gtp import to_move

    for line in (f"boardsize {size}", f"komi {komi:g}", "clear_board", f"set_random_seed {seed}"):
        gnugo.ask(line)
    engine.answer("clear_board")
    moves: list[int] = []
    while len(moves) < limit and moves[-2:] != [size**2] * 2:
        color = "bw"[len(moves) % 2]
        if (color == "b") == black:
            vertex = engine.answer(f"genmove {color}")[1:].strip()
            gnugo.ask(f"play {color} {vertex}")
        else:
            vertex = gnugo.ask(f"genmove {color}")
            if engine.answer(f"play {color} {vertex}")[0] == "?":
                return Game(black, True, tuple(moves), "", "")  # it knows no superko
        moves.append(to_move(vertex, size))
    score = engine.answer("final_score")[1:].strip()
    return Game(black, score.startswith("B" if black else "W"), tuple(moves), score, gnugo.ask("final_score"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run("benchmarks.minigo_gnugo", _command, argv)


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments)
    if FLAGS.help:
        print(cli.help_text(__doc__, FLAGS, config=True))
        return 0
    gnugo = GnuGo(FLAGS.level)
    try:
        workload, variables = load_model(FLAGS, overrides)
        from mlperf_jax.go import gtp
        from mlperf_jax.go.player import Player

        rules = workload.rules
        engine = gtp.GtpEngine(Player(workload, variables, readouts=FLAGS.readouts, seed=FLAGS.seed))
        games = []
        for i in range(FLAGS.games):
            game = play(
                engine,
                gnugo,
                rules.size,
                rules.komi,
                rules.max_moves,
                black=i % 2 == 0,
                seed=FLAGS.seed * 1000 + i,
            )
            games.append(game)
            if (i + 1) % 10 == 0:
                print(f"{i + 1} games, {sum(g.won for g in games)} won", file=sys.stderr, flush=True)
        version = gnugo.ask("version")
    finally:
        gnugo.close()
    _report(games, rules, version, arguments)
    return 0


def _report(games: Sequence[Game], rules, version: str, arguments: Sequence[str]) -> None:
    from mlperf_jax.go import records
    from mlperf_jax.results import system
    from mlperf_jax.results.folders import write_json

    as_black, as_white = ([g.won for g in games if g.black == black] for black in (True, False))
    result = {
        "schema_version": SCHEMA_VERSION,
        "command": " ".join(["python -m benchmarks.minigo_gnugo", *arguments]),
        "label": "mini: not MLPerf's data or model; unverified, not reviewed by MLCommons",
        "opponent": f"GNU Go {version}, level {FLAGS.level}",
        "board": rules.size,
        "komi": rules.komi,
        "readouts": FLAGS.readouts,
        "seed": FLAGS.seed,
        "games": len(games),
        "won": sum(as_black) + sum(as_white),
        "won_as_black": sum(as_black),
        "won_as_white": sum(as_white),
        "by_repetition": sum(not g.score for g in games),
        "scored_otherwise_by_gnugo": sum(g.score[:1] != g.gnugo_score[:1] for g in games if g.score),
        "different_games": len({(g.black, g.moves) for g in games}),
        "mean_length": sum(len(g.moves) for g in games) / len(games),
        "versions": system.versions(),
    }
    print(
        f"{result['won']} of {len(games)} games won against {result['opponent']} on {rules.size}x{rules.size}: "
        f"{sum(as_black)} of {len(as_black)} as Black, {sum(as_white)} of {len(as_white)} as White"
    )
    if FLAGS.out:
        write_json(Path(FLAGS.out), {k: v for k, v in result.items() if k != "schema_version"})
        players = ("mlperf_jax", "GNU Go")
        records.write(
            Path(FLAGS.out).with_suffix(".sgf"),
            [
                records.Record(
                    rules.size, rules.komi, g.moves, g.score, players if g.black else players[::-1]
                )
                for g in games
            ],
        )


if __name__ == "__main__":
    sys.exit(main())
