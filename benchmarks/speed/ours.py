"""Our side: the train step that the loop calls, and the predict program that is served, as they are compiled there."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed import handed, roofline
from benchmarks.speed.side import MANY, ONE, TRAIN
from benchmarks.speed.telling import Telling
from benchmarks.speed.training import Training
from loadgen_py.replica import Replica
from mlperf_jax.inference import replicas
from mlperf_jax.inference.settings import ladder
from mlperf_jax.parallel.chips import find_chip
from mlperf_jax.planning import compilation, cost, cost_time, hlo
from mlperf_jax.training.engine import named, tracing
from mlperf_jax.workload import ServedWorkload, TokenWorkload

_RATES = 4096  # learning rates that peers are told


class Ours(Training):
    """A workload on one device, on synthetic data, that peers are handed the beginning of."""

    def prepare(self) -> dict[str, Any]:
        facts = super().prepare()
        handed.write(
            self.folder / "state.npz", _named({k: v for k, v in self.state.items() if k != "opt_state"})
        )
        handed.write(self.folder / "batch.npz", _named(self.host_batch))
        handed.write(self.folder / "rates.npz", {"rates": self._rates()})
        return facts | self._serve() | self.here()

    def _rates(self) -> np.ndarray:
        """Learning rates of the first steps."""
        return np.asarray(jax.jit(jax.vmap(self.workload.schedule()))(jnp.arange(_RATES)), np.float64)

    def _serve(self) -> dict[str, Any]:
        """The model as it is served, with as many samples as make the largest batch."""
        self.served = jax.tree.map(jnp.copy, self.workload.served_state(self.state))
        if isinstance(self.workload, TokenWorkload):
            return self._serve_by_token(self.workload)
        buckets = np.array(self.workload.sample_buckets(np.arange(self.workload.num_samples)))
        self.served_bucket = collections.Counter(buckets.tolist()).most_common(1)[0][0]
        there = np.flatnonzero(buckets == self.served_bucket)
        most = max(ladder(self.workload.config.inference, self.served_bucket))
        ends = np.cumsum(self.workload.sample_rows(there[:most]))
        counts = {ONE: 1, MANY: max(int(np.searchsorted(ends, most, "right")), 1)}
        samples = self._samples(there[: counts[MANY]])
        self.rows = {program: int(ends[count - 1]) for program, count in counts.items()}
        for program, rows in self.rows.items():
            handed.write(
                self.folder / f"{program}_inputs.npz", _named({k: x[:rows] for k, x in samples.items()})
            )
        self.replica: Replica = replicas.replica(
            self.workload, self.served, self.layout, {self.served_bucket: self.rows[MANY]}, on_device=False
        )
        self.replica.hold({self.served_bucket: samples})
        return {"sizes": {TRAIN: self.workload.batch_size, **counts}}

    def _serve_by_token(self, workload: TokenWorkload) -> dict[str, Any]:
        """As above, by the engine: a text alone, and one in every slot."""
        self.telling = Telling(workload, self.served, self.layout, seed=self.spec["seed"])
        counts = {ONE: 1, MANY: self.telling.slots}
        for program, texts in counts.items():
            handed.write(self.folder / f"{program}_inputs.npz", self.telling.asked(texts))
        return {"sizes": {TRAIN: self.workload.batch_size, **counts}}

    def _samples(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Samples of the data; of a workload that has the model make them, by games say, any of that shape."""
        if type(self.workload).make_samples is ServedWorkload.make_samples:
            return self.workload.read_samples(indices)
        random = np.random.default_rng(self.spec["seed"])
        spec = self.workload.sample_specs()[self.served_bucket]
        return {
            name: random.integers(0, 2, (len(indices), *shape)).astype(dtype)
            for name, (shape, dtype) in spec.items()
        }

    def compile(self, program: str) -> None:
        if program == TRAIN:
            super().compile(program)
            handed.write(self.folder / "loss.npz", {"first": np.asarray(self.steps(1)["loss"])})
            return
        answer = self._answering(program)
        handed.write(self.folder / f"{program}.npz", {"answers": answer()})

        def run(calls: int) -> None:
            for _ in range(calls):
                answer()

        self.runs[program] = run

    def _answering(self, program: str) -> Callable[[], np.ndarray]:
        """Compiles what answers a program's samples."""
        if isinstance(self.workload, TokenWorkload):
            self.telling.compile()
            return functools.partial(self.telling.answer, 1 if program == ONE else self.telling.slots)
        slots = np.arange(self.rows[program], dtype=np.int32)
        self.replica.compile({self.served_bucket: [len(slots)]})
        return functools.partial(self.replica.answer, self.served_bucket, slots)

    def costs(self) -> dict[str, Any]:
        """What the train step costs by the project's own counting, what the device reaches, what `plan` expects."""
        name = named("train_step", self.bucket)
        program = self.engine.programs[name]
        with tracing(self.layout, self.workload.policy):
            counted = cost.jaxpr_flops(jax.make_jaxpr(lambda *args: program.function(*args))(*program.args))
        text, memory = compilation.text_and_memory(self.engine.compiled(name))
        module = hlo.parse(text)
        chip = find_chip(jax.devices()[0].device_kind)
        model = self.workload.train_flops_per_example() * self.workload.batch_size
        return {
            "flops": {"model": model, "program": counted.total},
            "moved_bytes": cost.hlo_bytes(module),
            "planned_bytes": memory.total,
            "reached": roofline.measure(self.workload.policy),
            "peak_flops": chip.bf16 if chip else None,
            "predicted_step": cost_time.timeline(module, chip, []).seconds if chip else None,
        }


def _named(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
