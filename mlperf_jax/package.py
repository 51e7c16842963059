"""Packs runs as MLPerf takes submissions, in a tree that the official checkers accept.

    python -m mlperf_jax.package --training=results --org=acme --division=closed --out=package
    python -m mlperf_jax.package --inference=results --org=acme --division=open --out=package

Nothing of the runs is changed, nothing made up, nothing overwritten: what the package needs and the runs
do not have is listed, and the package says that it is incomplete (INCOMPLETE.md, package.json).
Exit status: 0 it is complete, 1 it is not, 2 something to mend (one sentence says what).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mlperf_jax import cli
from mlperf_jax.errors import UserError

FLAGS = cli.define(
    cli.text("training", "Pack the training runs of this folder of results."),
    cli.text("inference", "Pack the inference runs of this folder of results."),
    cli.text("org", "Who submits: a name that can be a folder's."),
    cli.text("out", "The package's folder, which must not exist yet."),
    cli.choice("division", ("closed", "open"), "Where it is submitted."),
    cli.HELP,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run(_command, argv, interrupted="nothing half done is left")


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments)
    if FLAGS.help:
        print(cli.help_text(__doc__, FLAGS))
        return 0
    if overrides:
        raise UserError(f"{overrides[0]} is for runs, not for packing them; leave it out.")
    if bool(FLAGS.training) == bool(FLAGS.inference):
        raise UserError("Give one of --training=RESULTS and --inference=RESULTS.")
    for name in ("org", "division", "out"):
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing; --help shows what it is.")
    from mlperf_jax.packaging.inference import pack_inference
    from mlperf_jax.packaging.package import building
    from mlperf_jax.packaging.training import pack_training
    from mlperf_jax.results.folders import check_name

    org, division = check_name("organisation's", FLAGS.org), FLAGS.division
    kind, pack = ("training", pack_training) if FLAGS.training else ("inference", pack_inference)
    results_dir = Path(os.path.abspath(FLAGS.training or FLAGS.inference))
    if not results_dir.is_dir():
        raise UserError(f"{results_dir} is no folder; name the --results_dir of your runs.")
    out = Path(os.path.abspath(FLAGS.out))
    if out.is_relative_to(results_dir):
        raise UserError(f"--out={FLAGS.out} lies among the results; give a place of its own.")
    with building(out, results_dir, kind=kind, org=org, division=division) as package:
        checks = pack(package, results_dir, org=org, division=division)
    for note in package.notes:
        print(f"note: {note}")
    for missing in package.missing:
        print(f"missing: {missing.what}; {missing.mend}")
    print(
        f"wrote {out}"
        + (f", INCOMPLETE: {len(package.missing)} things are missing" if package.missing else "")
    )
    for check in checks:
        print(f"judge it officially: {check.format(out=out)}")
    return int(bool(package.missing))


if __name__ == "__main__":
    sys.exit(main())
