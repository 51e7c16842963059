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

from absl import flags

import input_pipelines
from mlperf_jax import config as configs
from mlperf_jax import platform as platforms
from mlperf_jax import workload as registry
from mlperf_jax.errors import UserError


def prepare(workload: str, preset: str, data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Prepares the data set that a workload's config names, and says in a phrase what lies where.

    Raises:
        UserError: there is no such workload, it has no data set, or as `input_pipelines.prepare`.
    """
    registry.find(workload)
    data = configs.base_config(workload, preset).get("data", {})
    if "name" not in data:
        raise UserError(
            f"The workload {workload} names no data set in its config, so there is nothing to prepare."
        )
    return input_pipelines.prepare(data["name"], data_dir, fake=fake, verify=verify)


def _flag_values() -> flags.FlagValues:
    """Flags of our own: absl's global ones are the main command's and grain's."""
    values = flags.FlagValues()
    by_platform = "Decides the preset where --preset is not given."
    by_preset = "Which data set; by default mini on cpu, closed elsewhere and with --fake."
    by_fake = "Write a made-up set of this many train images instead of looking for the real one."
    flags.DEFINE_string("workload", None, "Whose data set to prepare, as resnet50.", flag_values=values)
    flags.DEFINE_enum("platform", "cpu", platforms.PLATFORMS, by_platform, flag_values=values)
    flags.DEFINE_enum("preset", None, configs.PRESETS, by_preset, flag_values=values)
    flags.DEFINE_string(
        "data_dir",
        None,
        "Holds all data sets; default $MLPERF_JAX_DATA or ~/.cache/mlperf_jax.",
        flag_values=values,
    )
    flags.DEFINE_integer("fake", 0, by_fake, lower_bound=0, flag_values=values)
    flags.DEFINE_bool(
        "verify", False, "Read every byte of what is there, not only sizes.", flag_values=values
    )
    flags.DEFINE_bool("help", False, "Show this, and end.", flag_values=values)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 if there is something to mend."""
    values = _flag_values()
    try:
        return _command(values, list(sys.argv[1:] if argv is None else argv))
    except flags.Error as error:
        sentence = f"{str(error).splitlines()[0]}; --help shows all flags."
    except UserError as error:
        sentence = str(error)
    except KeyboardInterrupt:
        # What was half done is not under its name; the next call clears it away.
        sentence = "interrupted; the same command begins again."
    print(f"mlperf_jax.prepare: {sentence}", file=sys.stderr)
    return 2


def _command(values: flags.FlagValues, arguments: list[str]) -> int:
    rest = values(["prepare", *arguments])
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; write --name=value, --help shows all flags.")
    if values.help:
        lines = [f"  {'--' + name:<12} {values[name].help}" for name in values]
        print("\n".join([__doc__.strip(), "", "Flags:", *lines]))
        return 0
    if not values.workload:
        raise UserError(f"--workload is missing; there are {', '.join(registry.names())}.")
    preset = values.preset or ("closed" if values.fake else configs.default_preset(values.platform))
    data_dir = Path(values.data_dir).expanduser() if values.data_dir else input_pipelines.default_data_dir()
    print(f"Ready: {prepare(values.workload, preset, data_dir, fake=values.fake, verify=values.verify)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
