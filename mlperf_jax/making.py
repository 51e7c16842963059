"""From a workload's name to the workload: the one place where commands make one.

In two steps, since what is decided first (config, dtypes) must be right before devices are started, and
says what they are started for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Generic

from ml_collections import ConfigDict

from mlperf_jax import config as configs
from mlperf_jax import registry
from mlperf_jax.precision import Policy, resolve_policy
from mlperf_jax.registry import W


@dataclasses.dataclass(frozen=True)
class Recipe(Generic[W]):
    """What a workload is made from.

    Attributes:
        cls: its class.
        config: resolved.
        policy: dtypes.
    """

    cls: type[W]
    config: ConfigDict
    policy: Policy

    def make(self, data_dir: Path = Path(), *, synthetic: bool = False) -> W:
        """The workload; its data need not be there."""
        if self.policy.needs_x64:
            import jax

            jax.config.update("jax_enable_x64", True)
        return self.cls(self.config, self.policy, data_dir=data_dir, synthetic=synthetic)

    def make_with_data(self, data_dir: Path, *, synthetic: bool, prepare: bool) -> W:
        """The workload, whose data is there.

        Args:
            data_dir: where prepared data lies.
            synthetic: random data instead.
            prepare: fetch or check the data first, where that was not done yet.

        Raises:
            UserError: the data is not there, or cannot be had.
        """
        if prepare and not synthetic:
            self.cls.prepare(self.config, data_dir)
        workload = self.make(data_dir, synthetic=synthetic)
        workload.check_data()
        return workload


def choose(
    name: str, preset: str, platform: str, overrides: Sequence[str], *, kind: type[W], batch: int = 0
) -> Recipe[W]:
    """What a workload is made from, by what the flags say.

    Args:
        name, preset: of the workload and its config.
        platform: whose precision "auto" stands for.
        overrides: `--config.KEY=value` arguments.
        kind: what the workload must be, `TrainedWorkload` or `ServedWorkload`.
        batch: the global batch, with the numbers of MLPerf's reference point if there is one; 0 for the
            config's own.

    Raises:
        UserError: no such workload, key or value.
    """
    cls = registry.find(name, kind)
    base = configs.base_config(name, preset)
    if batch:
        known = str(batch) in base.get("reference_points", {})
        overrides = [f"--config.{'reference_point' if known else 'batch_size'}={batch}", *overrides]
    config = configs.resolve(base, overrides)
    return Recipe(cls, config, resolve_policy(config.precision, platform))
