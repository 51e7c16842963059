"""A trained MiniGo network against GNU Go, level 1, on the same board: 100 games, 50 with each colour.

    python -m benchmarks.minigo_gnugo --results_dir=results --out=benchmarks/minigo_gnugo.json

GNU Go speaks GTP; this is the referee. Chinese rules, the komi of training; GNU Go never resigns and plays on
until dead stones are taken off, so that the area as it lies is the score. Whoever repeats a position loses.
Both programs are seeded: the same network on the same machine plays the same games.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlperf_jax import cli, trained_minigo
from mlperf_jax.errors import UserError

if TYPE_CHECKING:
    from mlperf_jax.go.player import Player
    from mlperf_jax.go.rules import Rules
    from mlperf_jax.workloads.reinforcement_learning import MiniGo

FLAGS = cli.define(
    *trained_minigo.FLAGS,
    cli.text("out", "JSON to write; games go beside it as .sgf."),
    cli.integer("games", "Even.", 100, least=2),
    cli.integer("level", "GNU Go's, 1 to 10.", 1, least=1),
    cli.integer("readouts", "Of our moves.", 400, least=1),
    cli.integer("seed", "Of both programs.", 1),
)

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
        assert self._process.stdin and self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def ask(self, line: str) -> str:
        """The answer to a command.

        Raises:
            RuntimeError: GNU Go refused it, or is gone.
        """
        self._stdin.write(line + "\n")
        self._stdin.flush()
        reply = []
        while (text := self._stdout.readline()) not in ("\n", ""):
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
        repeated: whether GNU Go repeated a position; it knows no superko.
        gnugo_score: GNU Go's own opinion of the last position.
    """

    black: bool
    won: bool
    moves: tuple[int, ...]
    repeated: bool
    gnugo_score: str


def setup(gnugo: GnuGo, rules: Rules, moves: Sequence[int], seed: int) -> None:
    """Shows GNU Go a game so far."""
    from mlperf_jax.go.gtp import to_vertex

    for line in (f"boardsize {rules.size}", f"komi {rules.komi:g}", "clear_board", f"set_random_seed {seed}"):
        gnugo.ask(line)
    for i, move in enumerate(moves):
        gnugo.ask(f"play {'bw'[i % 2]} {to_vertex(move, rules.size)}")


def play(player: Player, gnugo: GnuGo, count: int, *, black: bool, seed: int) -> list[Game]:
    """`count` games with one colour, all at once: one search for all of them, GNU Go one after the other."""
    import numpy as np

    from mlperf_jax.go.gtp import to_move

    rules = player.rules
    positions = player.starts(count)
    moves: list[list[int]] = [[] for _ in range(count)]
    turn = 0
    while not (over := np.asarray(positions.over)).all():
        if (turn % 2 == 0) == black:
            chosen, positions = player.advance(positions)
        else:
            chosen = np.full(count, rules.points, np.int32)
            for i in np.flatnonzero(~over).tolist():
                setup(gnugo, rules, moves[i], seed + i)
                chosen[i] = to_move(gnugo.ask(f"genmove {'bw'[turn % 2]}"), rules.size)
                if not bool(positions.legal[i, chosen[i]]):
                    raise RuntimeError(f"GNU Go plays an illegal move: {moves[i]} and then {chosen[i]}")
            positions = player.play(positions, chosen)
        for i in np.flatnonzero(~over).tolist():
            moves[i].append(int(chosen[i]))
        turn += 1
        print(f"move {turn}, {count - int(np.asarray(positions.over).sum())} games left", file=sys.stderr)
    games = []
    outcome, repeated = np.asarray(positions.outcome), np.asarray(positions.game.is_psk)
    for i in range(count):
        setup(gnugo, rules, moves[i], seed)
        won = (outcome[i] > 0) == black
        games.append(Game(black, bool(won), tuple(moves[i]), bool(repeated[i]), gnugo.ask("final_score")))
    return games


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run(_command, argv)


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments, doc=__doc__)
    gnugo = GnuGo(FLAGS.level)
    try:
        workload, variables = trained_minigo.load(FLAGS, overrides)
        from mlperf_jax.go.player import Player

        player = Player(workload, variables, readouts=FLAGS.readouts, seed=FLAGS.seed)
        games = [
            game
            for black in (True, False)
            for game in play(player, gnugo, FLAGS.games // 2, black=black, seed=FLAGS.seed * 1000)
        ]
        version = gnugo.ask("version")
    finally:
        gnugo.close()
    _report(games, workload, version, arguments)
    return 0


def _report(games: Sequence[Game], workload: MiniGo, version: str, arguments: Sequence[str]) -> None:
    from mlperf_jax.go import records
    from mlperf_jax.results import system
    from mlperf_jax.results.folders import write_json

    rules = workload.rules
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
        "by_repetition": sum(g.repeated for g in games),
        "scored_otherwise_by_gnugo": sum(
            (g.gnugo_score[:1] == "B") != (g.won == g.black) for g in games if not g.repeated
        ),
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
                    rules.size,
                    rules.komi,
                    g.moves,
                    "BW"[g.won != g.black] + "+",
                    players if g.black else players[::-1],
                )
                for g in games
            ],
        )


if __name__ == "__main__":
    sys.exit(main())
