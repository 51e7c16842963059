"""A trained MiniGo network, for the commands that let it play: the flags that name one, and loading it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mlperf_jax import cli, common_flags, compilation_cache
from mlperf_jax import platform as platforms

if TYPE_CHECKING:
    from mlperf_jax.workload import State
    from mlperf_jax.workloads.reinforcement_learning import MiniGo

FLAGS = (
    common_flags.PLATFORM,
    common_flags.PRESET,
    cli.text("results_dir", "Where the newest trained network is looked for.", "results"),
    cli.text("checkpoint", "A training run's folder, instead of the newest one."),
    cli.text("weights", "A folder that import_weights wrote, instead."),
    common_flags.COMPILATION_CACHE,
    cli.HELP,
)


def load(values: flags.FlagValues, overrides: Sequence[str]) -> tuple[MiniGo, State]:
    """The network that the flags name: the workload as it was trained, and its variables on the first device.

    Raises:
        UserError: there is none.
    """
    platforms.configure(values.platform)
    compilation_cache.use(values.compilation_cache)
    from mlperf_jax.inference.options import InferOptions
    from mlperf_jax.inference.trained import open_model
    from mlperf_jax.parallel import mesh
    from mlperf_jax.workloads.reinforcement_learning import MiniGo

    options = cli.record(
        InferOptions,
        values,
        workload="minigo",
        preset=common_flags.preset(values),
        results_dir=Path(values.results_dir),
        overrides=tuple(overrides),
    )
    workload, model = open_model(options)
    assert isinstance(workload, MiniGo)
    return workload, model.load(workload, mesh.single_device_layout())
