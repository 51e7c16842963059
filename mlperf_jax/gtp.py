"""Plays Go over the Go Text Protocol with a trained MiniGo network.

    python -m mlperf_jax.gtp --platform=cpu --results_dir=results
    gogui-twogtp -black "python -m mlperf_jax.gtp" -white "gnugo --mode gtp --level 1" -size 5 -komi 7.5

It plays on the board that the network was trained for. Answers go to standard output, all else to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mlperf_jax import cli, trained_minigo
from mlperf_jax.errors import UserError

FLAGS = cli.define(
    *trained_minigo.FLAGS,
    cli.integer("readouts", "Of each move; 0 as many as in training."),
    cli.integer("seed", "Of what is random in its play.", 1),
    cli.number("resign_below", "Resign where the search's value (-1 to 1) is below this.", -1.0),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run(_command, argv, interrupted="the game is lost")


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments, doc=__doc__)
    if FLAGS.resign_below >= 1:
        raise UserError(f"--resign_below={FLAGS.resign_below:g} gives up every game; give less than 1.")
    workload, variables = trained_minigo.load(FLAGS, overrides)
    from mlperf_jax.go import gtp
    from mlperf_jax.go.player import Player

    readouts = FLAGS.readouts or workload.self_play.config.readouts
    player = Player(workload, variables, readouts=readouts, seed=FLAGS.seed)
    gtp.serve(gtp.GtpEngine(player, resign_below=FLAGS.resign_below), sys.stdin.buffer, sys.stdout.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
