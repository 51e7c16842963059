"""What the flags ask of an inference command, in one record."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mlperf_jax.inference.settings import Asked


@dataclasses.dataclass(frozen=True)
class InferOptions:
    """The flags, under their names, and what comes with them.

    Attributes:
        workload: as `--workload` names it.
        preset: mini or closed.
        platform: cpu, gpu or tpu.
        results_dir: RESULTS.
        overrides: `--config.KEY=value` arguments.
        checkpoint, weights: folder of another model than the newest trained one.
        data_dir, synthetic_data, prepare: where the samples come from.
        sharding, mesh: how a model lies on the devices.
        scenario: one of `SCENARIOS`, or "all".
        mode: one of `MODES`, or "compliance" for the tests of closed; None runs performance and accuracy.
        asked: numbers that the user fixed.
        count: samples of the data set in use; 0 all.
        system: name of the system; None takes one from the machine.
        org: who runs it.
        loadgen: "official" also runs the official package.
        profile: trace a second of each performance run.
        command: what was typed, for whoever wants to repeat it.
    """

    workload: str
    preset: str
    platform: str
    results_dir: Path
    overrides: tuple[str, ...] = ()
    checkpoint: str | None = None
    weights: str | None = None
    data_dir: Path = Path()
    synthetic_data: bool = False
    prepare: bool = False
    sharding: str = "dp"
    mesh: str | None = None
    scenario: str = "all"
    mode: str | None = None
    asked: Asked = Asked()
    count: int = 0
    system: str | None = None
    org: str = "mlperf_jax"
    loadgen: str = "ours"
    profile: bool = False
    command: tuple[str, ...] = ()

    @property
    def preset_dir(self) -> Path:
        """RESULTS[/mini]: what a preset has for itself."""
        return self.results_dir / "mini" if self.preset == "mini" else self.results_dir
