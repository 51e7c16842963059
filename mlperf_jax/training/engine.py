"""Compiles a workload from shapes, and holds what was compiled.

Nothing here touches data: shapes, dtypes and places are enough, so that compilation ends before
the clock starts (MLPerf training rules, "Timing"), and so that the same code compiles for a
topology that is not there.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.workload import Batch, Metrics, Program, State, Workload


class Engine:
    """A workload on a layout.

    Attributes:
        state: the training state as structs with shardings.
        batch: a global training batch as structs.
        batches: `steps_per_dispatch` of them, stacked on a new leading axis.
        compile_seconds: what each program took to compile, by name.
        programs: what there is to compile, by name.
    """

    def __init__(self, workload: Workload, layout: Layout, *, steps_per_dispatch: int = 1) -> None:
        self.workload = workload
        self.layout = layout
        self.steps_per_dispatch = steps_per_dispatch
        self.rows = layout.rows(workload.batch_size)
        self.compile_seconds: dict[str, float] = {}
        self._compiled: dict[str, jax.stages.Compiled] = {}
        seed = layout.struct((), jnp.uint32)
        with self._tracing():
            shapes = jax.eval_shape(workload.init, seed)
        shardings = workload.state_shardings(shapes, layout)
        self.state: State = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )
        self.batch = workload.batch_struct(layout)
        self.batches = self._stacked()
        self.programs = self._programs(seed, shardings)

    def _programs(self, seed: jax.ShapeDtypeStruct, shardings: Any) -> dict[str, Program]:
        stay = (shardings, self.layout.replicated)
        programs = {
            "init": Program(self.workload.init, (seed,), out_shardings=shardings),
            "train_step": Program(self.workload.train_step, (self.state, self.batch), (0,), stay),
        }
        if self.steps_per_dispatch > 1:
            many = functools.partial(jax.lax.scan, self.workload.train_step)
            programs["train_steps"] = Program(many, (self.state, self.batches), (0,), stay)
        return programs | dict(self.workload.programs(self.state, self.layout))

    def _stacked(self) -> Batch:
        def stack(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            spec = jax.sharding.PartitionSpec(None, *x.sharding.spec)
            sharding = jax.sharding.NamedSharding(self.layout.mesh, spec)
            return jax.ShapeDtypeStruct((self.steps_per_dispatch, *x.shape), x.dtype, sharding=sharding)

        return jax.tree.map(stack, self.batch)

    @contextlib.contextmanager
    def _tracing(self) -> Iterator[None]:
        """The context in which every function of the workload is traced."""
        with layouts.use(self.layout), jax.default_matmul_precision(self.workload.policy.matmul):
            yield

    def lower(self, name: str) -> jax.stages.Lowered:
        """Traces one program against its shapes and places."""
        program = self.programs[name]

        # A function of its own for every lowering: jax keeps traces by function, and a bound method of the
        # same workload would bring back the constraints of the layout that it was first traced under.
        @functools.wraps(program.function)
        def traced(*args: Any) -> Any:
            return program.function(*args)

        jitted = jax.jit(traced, donate_argnums=program.donate, out_shardings=program.out_shardings)
        with self._tracing():
            return jitted.lower(*program.args)

    def compile(self, *names: str) -> None:
        """Compiles the programs named, or all: then nothing is left to compile while the clock runs."""
        for name in names or self.programs:
            start = time.perf_counter()
            self._compiled[name] = self.lower(name).compile()
            self.compile_seconds[name] = time.perf_counter() - start

    def compiled(self, name: str) -> jax.stages.Compiled:
        return self._compiled[name]

    def run(self, name: str, *args: Any) -> Any:
        """Calls a compiled program. Its donated arguments must not be used again."""
        return self._compiled[name](*args)

    def init(self, seed: int) -> State:
        """Makes the state, every array in its final place."""
        return self.run("init", jax.device_put(np.uint32(seed % 2**32), self.layout.replicated))

    def train(self, state: State, batch: Batch, *, steps: int) -> tuple[State, Metrics]:
        """One dispatch of `steps` steps: 1, or `steps_per_dispatch` on stacked batches."""
        return self.run("train_step" if steps == 1 else "train_steps", state, batch)

    def place(self, batch: Any, struct: Any) -> Any:
        """Puts this process's rows of a global batch (a pytree of arrays) where `struct` says.

        Raises:
            ValueError: the batch has not the shapes that were compiled for.
        """
        return jax.tree.map(self._place, batch, struct)

    def _place(self, local: np.ndarray, struct: jax.ShapeDtypeStruct) -> jax.Array:
        local = np.asarray(local, struct.dtype)
        if jax.process_count() == 1:
            if local.shape != struct.shape:
                raise ValueError(f"a batch of shape {local.shape} where {struct.shape} was compiled")
            return jax.device_put(local, struct.sharding)
        first = _offsets(local.shape, struct)

        def piece(index: tuple[slice, ...] | None) -> np.ndarray:
            bounds = (i.indices(n) for i, n in zip(index or (), struct.shape, strict=True))
            return local[tuple(slice(b[0] - f, b[1] - f) for b, f in zip(bounds, first, strict=True))]

        return jax.make_array_from_callback(struct.shape, struct.sharding, piece)


def _offsets(local_shape: tuple[int, ...], struct: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """Where a process's rows begin in the global array: 0 in every dimension that it holds whole."""
    held = struct.sharding.addressable_devices_indices_map(struct.shape).values()
    return tuple(
        0 if local == n else min(index[d].indices(n)[0] for index in held)
        for d, (local, n) in enumerate(zip(local_shape, struct.shape, strict=True))
    )
