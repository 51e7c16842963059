"""Flags that several commands have, and what follows from them."""

from __future__ import annotations

from absl import flags

from mlperf_jax import cli
from mlperf_jax import config as configs
from mlperf_jax import platform as platforms

PLATFORM = cli.choice("platform", platforms.PLATFORMS, "Where to run it.", "cpu")
PRESET = cli.choice("preset", configs.PRESETS, "mini (default on cpu) or closed (default elsewhere).")
MESH = cli.text(
    "mesh",
    "Sizes of mesh axes, as data:4,model:2, for strategies that have them; default from the devices.",
)
COMPILATION_CACHE = cli.text(
    "compilation_cache",
    "Where compiled programs are kept, or none; default $JAX_COMPILATION_CACHE_DIR or ~/.cache/mlperf_jax/xla.",
)
CPU_DEVICES = cli.integer("cpu_devices", "Show the CPU as so many virtual devices.", most=1024)
COORDINATOR = cli.text(
    "coordinator",
    "Several processes: host:port of process 0. TPU pods, SLURM and Kubernetes need none.",
)
NUM_PROCESSES = cli.integer("num_processes", "Several processes: how many.")
PROCESS_ID = cli.integer("process_id", "Several processes: which one this is, from 0.", -1, least=-1)


def preset(values: flags.FlagValues) -> str:
    """The preset asked for, or the platform's."""
    return values.preset or configs.default_preset(values.platform)


def start(values: flags.FlagValues) -> None:
    """Joins the other processes that `PLATFORM`, `COORDINATOR` ... speak of, and starts the backend.

    Raises:
        UserError: as `distributed.start` and `platforms.require_devices`.
    """
    from mlperf_jax.parallel import distributed

    distributed.start(
        values.platform,
        coordinator=values.coordinator,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )
    platforms.require_devices(values.platform)
