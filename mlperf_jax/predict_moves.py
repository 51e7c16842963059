"""How often a trained MiniGo network foresees the move that was played in a folder of SGF files.

    python -m mlperf_jax.predict_moves --sgf_dir=games --platform=cpu

Files (*.sgf, *.SGF, in folders below too) are read as untrusted input: what is no game of Go, is of another board
than the network's, or holds an illegal move is left out from there on, and said.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mlperf_jax import cli, trained_minigo
from mlperf_jax.errors import UserError

FLAGS = cli.define(*trained_minigo.FLAGS, cli.text("sgf_dir", "The folder."))

_SHOWN = 5  # files that were left out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run(_command, argv)


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments, doc=__doc__)
    if not FLAGS.sgf_dir:
        raise UserError("--sgf_dir is missing; give the folder of the games.")
    folder = Path(FLAGS.sgf_dir)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; --sgf_dir takes a folder of .sgf files.")
    workload, variables = trained_minigo.load(FLAGS, overrides)
    from mlperf_jax.go import prediction

    games, refused = prediction.read_folder(folder, workload.rules.size)
    if not games:
        why = f" ({refused[0]})" if refused else ""
        raise UserError(
            f"There is no game on a {workload.rules.size}x{workload.rules.size} board in {folder}{why}; "
            "give another --sgf_dir, or the network of another board."
        )
    result = prediction.predict(workload, variables, games)
    print(
        f"{result.first / result.moves:.4f} foreseen, {result.fifth / result.moves:.4f} among the first five, "
        f"of {result.moves:,} moves in {len(games):,} games"
    )
    if result.illegal:
        print(f"{result.illegal} games hold an illegal move, and were followed up to there")
    if refused:
        print(
            f"{len(refused)} left out: " + "; ".join(refused[:_SHOWN]) + ("; ..." if refused[_SHOWN:] else "")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
