"""Plays Go over the Go Text Protocol with a trained MiniGo network.

    python -m mlperf_jax.gtp --platform=cpu --results_dir=results
    gogui-twogtp -black "python -m mlperf_jax.gtp" -white "gnugo --mode gtp --level 1" -size 5 -komi 7.5

It plays on the board that the network was trained for. Answers go to standard output, all else to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mlperf_jax import cli
from mlperf_jax import config as configs
from mlperf_jax import platform as platforms
from mlperf_jax.errors import UserError

FLAGS = flags.FlagValues()


def define_model_flags(values: flags.FlagValues) -> None:
    """The flags that say which network plays."""
    presets = "mini (default on cpu) or closed (default elsewhere)."
    flags.DEFINE_enum("platform", "cpu", platforms.PLATFORMS, "Where to run it.", flag_values=values)
    flags.DEFINE_enum("preset", None, configs.PRESETS, presets, flag_values=values)
    flags.DEFINE_string(
        "results_dir", "results", "Where the newest trained network is looked for.", flag_values=values
    )
    flags.DEFINE_string(
        "checkpoint", None, "A training run's folder, instead of the newest one.", flag_values=values
    )
    flags.DEFINE_string("weights", None, "A folder that import_weights wrote, instead.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this, and end.", flag_values=values)


def load_model(values: flags.FlagValues, overrides: list[str]):
    """The network that the flags name: the workload and its variables.

    Raises:
        UserError: there is none.
    """
    platforms.configure(values.platform)
    from mlperf_jax.go import player

    return player.load(
        platform=values.platform,
        preset=values.preset or configs.default_preset(values.platform),
        results_dir=Path(values.results_dir),
        checkpoint=Path(values.checkpoint) if values.checkpoint else None,
        weights=Path(values.weights) if values.weights else None,
        overrides=overrides,
    )


define_model_flags(FLAGS)
flags.DEFINE_integer(
    "readouts", 0, "Of each move; 0 as many as in training.", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_integer("seed", 1, "Of what is random in its play.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_float(
    "resign_below", -1.0, "Resign where the search's value (-1 to 1) is below this.", flag_values=FLAGS
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run("mlperf_jax.gtp", _command, argv, interrupted="the game is lost")


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments)
    if FLAGS.help:
        print(cli.help_text(__doc__, FLAGS, config=True))
        return 0
    if FLAGS.resign_below >= 1:
        raise UserError(f"--resign_below={FLAGS.resign_below:g} gives up every game; give less than 1.")
    workload, variables = load_model(FLAGS, overrides)
    from mlperf_jax.go import gtp
    from mlperf_jax.go.player import Player

    readouts = FLAGS.readouts or workload.self_play.config.readouts
    player = Player(workload, variables, readouts=readouts, seed=FLAGS.seed)
    gtp.serve(gtp.GtpEngine(player, resign_below=FLAGS.resign_below), sys.stdin.buffer, sys.stdout.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
