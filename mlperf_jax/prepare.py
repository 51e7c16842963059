"""Prepares and verifies the data set of a workload.

    python -m mlperf_jax.prepare --workload=resnet50                      # mini: fetches Fashion-MNIST
    python -m mlperf_jax.prepare --workload=resnet50 --preset=closed      # checks the ImageNet in --data_dir
    python -m mlperf_jax.prepare --workload=resnet50 --preset=closed --fake=1024   # a made-up ImageNet

Done a second time it only looks whether everything is still there; --verify reads every byte.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import input_pipelines
from mlperf_jax import cli, registry
from mlperf_jax import config as configs
from mlperf_jax import platform as platforms
from mlperf_jax.errors import UserError


def prepare(workload: str, preset: str, data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Prepares the data set that a workload's config names, and says in a sentence what lies where.

    Raises:
        UserError: there is no such workload, or as `input_pipelines.prepare`.
    """
    cls = registry.find(workload, registry.Workload)
    data = configs.base_config(workload, preset).get("data", {})
    if "name" not in data or _function(cls.prepare) is _function(registry.Workload.prepare):
        if fake:
            raise UserError(f"The workload {workload} makes its own data; leave --fake out.")
        return f"Nothing is to be prepared: {workload} makes its own data."
    return f"Ready: {input_pipelines.prepare(data['name'], data_dir, fake=fake, verify=verify)}."


def _function(method: Any) -> Any:
    """Of a class method, the same whichever class it is looked up in."""
    return method.__func__


FLAGS = cli.define(
    cli.text("workload", "Whose data set to prepare, as resnet50."),
    cli.choice("platform", platforms.PLATFORMS, "Decides the preset where --preset is not given.", "cpu"),
    cli.choice(
        "preset", configs.PRESETS, "Which data set; by default mini on cpu, closed elsewhere and with --fake."
    ),
    cli.text("data_dir", "Holds all data sets; default $MLPERF_JAX_DATA or ~/.cache/mlperf_jax."),
    cli.integer("fake", "Write a made-up set of this many train images instead of looking for the real one."),
    cli.switch("verify", "Read every byte of what is there, not only sizes."),
    cli.HELP,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 if there is something to mend."""
    # What was half done is not under its name; the next call clears it away.
    return cli.run(_command, argv)


def _command(arguments: list[str]) -> int:
    if cli.parse_flags(FLAGS, arguments):
        raise UserError("--config.KEY=value is for runs; data is prepared for all of them, leave it out.")
    if FLAGS.help:
        print(cli.help_text(__doc__, FLAGS))
        return 0
    if not FLAGS.workload:
        raise UserError(f"--workload is missing; there are {', '.join(registry.names())}.")
    preset = FLAGS.preset or ("closed" if FLAGS.fake else configs.default_preset(FLAGS.platform))
    data_dir = Path(FLAGS.data_dir).expanduser() if FLAGS.data_dir else input_pipelines.default_data_dir()
    print(prepare(FLAGS.workload, preset, data_dir, fake=FLAGS.fake, verify=FLAGS.verify))
    return 0


if __name__ == "__main__":
    sys.exit(main())
