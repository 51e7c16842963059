"""The train step that the loop calls, as it is compiled there, on synthetic data."""

from __future__ import annotations

from typing import Any

import jax

from benchmarks.speed.side import TRAIN, Side
from mlperf_jax import making
from mlperf_jax import platform as platforms
from mlperf_jax.errors import UserError
from mlperf_jax.parallel import mesh
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.planning import compare
from mlperf_jax.results import system
from mlperf_jax.supervised import GradientWorkload
from mlperf_jax.training.engine import Engine, named
from mlperf_jax.workload import State
from mlperf_jax.workloads.recommendation import Recommendation

MOST_BYTES = 8 << 30
"""Of a state; that of a row is handed to peers."""


class Training(Side):
    """A workload on one device, or data parallel on `spec["devices"]`."""

    def prepare(self) -> dict[str, Any]:
        spec = self.spec
        platforms.require_devices(spec["platform"])
        recipe = making.choose(
            spec["workload"], spec["preset"], spec["platform"], spec["overrides"], kind=GradientWorkload
        )
        self.workload = recipe.make(self.folder, synthetic=True)
        self.layout = mesh.make_layout(STRATEGIES["dp"], devices=jax.devices()[: spec.get("devices", 1)])
        self.engine = Engine(self.workload, self.layout)
        held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.engine.state))
        if held > MOST_BYTES:
            raise UserError(
                f"Its state takes {held / 2**30:.0f} GiB; make the model smaller by --config flags."
            )
        self.engine.compile("init")
        self.state: State = self.engine.init(spec["seed"])
        first = compare.first_batch(self.engine, spec["seed"])
        self.bucket, self.host_batch = first.bucket, first.batch
        self.batch = self.engine.place(first.batch, self.engine.buckets[first.bucket])
        return {
            "unit": self.workload.unit,
            "precision": self.workload.policy.compute,
            "batch": self.workload.batch_size,
        }

    def compile(self, program: str) -> None:
        self.engine.compile(named("train_step", self.bucket))
        self.runs[TRAIN] = self._train

    def steps(self, count: int) -> Any:
        """Trains; the metrics of the last step."""
        for _ in range(count):
            self.state, metrics = self.engine.train(self.state, self.batch, steps=1, bucket=self.bucket)
        return metrics

    def _train(self, calls: int) -> None:
        self.steps(calls)
        jax.block_until_ready(self.state)

    def table_rows(self) -> dict[str, Any]:
        """Of the embedding tables, all together, of a recommendation."""
        assert isinstance(self.workload, Recommendation)
        return {"table_rows": sum(self.workload.tables.sizes)}

    def here(self) -> dict[str, Any]:
        """The system's name, and its kind of device; nothing need be prepared."""
        devices = jax.devices()[:1]
        return {"system": system.default_system_name(devices), "device": devices[0].device_kind}

    @property
    def device_peak(self) -> int:
        return int((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))
