"""Prepares and verifies the data set of a workload.

    python -m mlperf_jax.prepare --workload=resnet50                      # mini: fetches Fashion-MNIST
    python -m mlperf_jax.prepare --workload=resnet50 --preset=closed      # checks the ImageNet in --data_dir
    python -m mlperf_jax.prepare --workload=resnet50 --preset=closed --fake=1024   # a made-up ImageNet

Done a second time it only looks whether everything is still there; --verify reads every byte.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

import input_pipelines
from mlperf_jax.errors import UserError


def prepare(workload: str, preset: str, data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Prepares the data set that a workload's config names, and says in a phrase what lies where.

    Raises:
        UserError: no such workload, or see `input_pipelines.prepare`.
    """
    data = _config_module(workload).get_config(preset).data
    return input_pipelines.prepare(data.name, data_dir, fake=fake, verify=verify)


def _config_module(workload: str):
    folder = Path(__file__).parent.parent / "configs"
    names = sorted(path.stem for path in folder.glob("[!_]*.py"))
    if workload not in names:
        near = difflib.get_close_matches(workload, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}."
        raise UserError(f"There is no workload {workload!r}; {hint}")
    return importlib.import_module(f"configs.{workload}")


def _define_flags() -> None:
    flags.DEFINE_string("workload", None, "Whose data set to prepare.", required=True)
    flags.DEFINE_enum("platform", "cpu", ["cpu", "gpu", "tpu"], "Decides the preset where --preset is not given.")
    flags.DEFINE_enum(
        "preset", None, ["mini", "closed"], "Which data set; by default mini on cpu, closed elsewhere and with --fake."
    )
    flags.DEFINE_string(
        "data_dir", str(input_pipelines.default_data_dir()), "Holds all data sets; $MLPERF_JAX_DATA sets the default."
    )
    flags.DEFINE_integer(
        "fake", 0, "Write a made-up set of this many train images instead of looking for the real one.", lower_bound=0
    )
    flags.DEFINE_bool("verify", False, "Read every byte of what is there, not only sizes and counts.")


def _main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        _exit(f"{argv[1]!r} is not a flag; flags look like --workload=resnet50.")
    values = flags.FLAGS
    preset = values.preset or ("mini" if values.platform == "cpu" and not values.fake else "closed")
    try:
        found = prepare(
            values.workload, preset, Path(values.data_dir).expanduser(), fake=values.fake, verify=values.verify
        )
    except UserError as error:
        _exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # What was half done is not under its name; the next call clears it away.
    print(f"Ready: {found}.")


def _exit(sentence: str) -> None:
    print(f"mlperf_jax.prepare: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    _define_flags()
    app.run(_main)
