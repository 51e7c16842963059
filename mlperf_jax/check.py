"""Judges results by the rules, more strictly than the official checkers do.

    python -m mlperf_jax.check results                       runs of your own, training and inference
    python -m mlperf_jax.check package                       what is to be submitted
    python -m mlperf_jax.check training_results_v4.0         a published round
    python -m mlperf_jax.check result_0.txt                  one log
    python -m mlperf_jax.check results --json                for machines

Each finding says where it is (file and line), the rule, what is wrong, and how to mend it.
Exit status: 0 nothing forbids these results (there may be warnings), 1 something does,
2 something to mend (one sentence says what).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mlperf_jax import cli
from mlperf_jax.errors import UserError

FLAGS = cli.define(
    cli.text(
        "ruleset",
        "Training: judge by this ruleset, as 4.0.0; default that of the round, or the benchmark's latest.",
    ),
    cli.switch("json", "Print JSON."),
    cli.HELP,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run(_command, argv, interrupted="nothing half written is left", reader_gone=1)


def _command(arguments: list[str]) -> int:
    overrides, folders = cli.parse(FLAGS, arguments)
    if FLAGS.help:
        print(cli.help_text(__doc__, FLAGS))
        return 0
    if overrides:
        raise UserError(f"{overrides[0]} is for runs, not for judging them; leave it out.")
    if len(folders) != 1:
        raise UserError("Name one folder of results, or one log, as: python -m mlperf_jax.check results.")
    from mlperf_jax.judging import official
    from mlperf_jax.judging.findings import to_json, to_text
    from mlperf_jax.judging.tree import judge_tree

    root = Path(os.path.abspath(folders[0]))
    if not root.is_dir() and not root.is_file():
        raise UserError(f"{folders[0]} is no folder and no log; name one that is there.")
    ruleset = official.check_ruleset(FLAGS.ruleset) if FLAGS.ruleset else None
    report = judge_tree(root, ruleset)
    if not report.training + report.inference:
        raise UserError(f"{folders[0]} holds no results of training or inference; name what does.")
    below = root if root.is_dir() else root.parent
    print(json.dumps(to_json(report, below), indent=2) if FLAGS.json else to_text(report, below))
    return int(report.errors > 0)


if __name__ == "__main__":
    sys.exit(main())
