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

from mlperf_jax import compilation_cache
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.precision import Policy
from mlperf_jax.workload import Batch, Buckets, Metrics, Program, State, TrainedWorkload


@contextlib.contextmanager
def tracing(layout: Layout, policy: Policy) -> Iterator[None]:
    """The context in which every function of a workload is traced."""
    with layouts.use(layout), jax.default_matmul_precision(policy.matmul):
        yield


def lower(program: Program, layout: Layout, policy: Policy) -> jax.stages.Lowered:
    """Traces a program against its shapes and places."""

    # A function of its own for every lowering: jax keeps traces by function, and a bound method of the
    # same workload would bring back the constraints of the layout that it was first traced under.
    @functools.wraps(program.function)
    def traced(*args: Any) -> Any:
        return program.function(*args)

    jitted = jax.jit(
        traced,
        donate_argnums=program.donate,
        out_shardings=program.out_shardings,
        compiler_options=layout.compiler_options,
    )
    with tracing(layout, policy):
        return jitted.lower(*program.args)


def named(program: str, bucket: str) -> str:
    """What a bucket's program is called."""
    return f"{program}[{bucket}]" if bucket else program


class Engine:
    """A workload on a layout.

    Attributes:
        state: the training state as structs with shardings.
        buckets: a global training batch as structs, by bucket; one that is called "" where there are no several.
        stacks: `steps_per_dispatch` of them, stacked on a new leading axis.
        compile_seconds: what each program took to compile, by name.
        cached: the names of those that were kept of an earlier time, and read.
        programs: what there is to compile, by name.
    """

    def __init__(self, workload: TrainedWorkload, layout: Layout, *, steps_per_dispatch: int = 1) -> None:
        self.workload = workload
        self.layout = layout
        self.steps_per_dispatch = steps_per_dispatch
        self.rows = layout.rows(workload.batch_size)
        self.compile_seconds: dict[str, float] = {}
        self.cached: list[str] = []
        self._compiled: dict[str, jax.stages.Compiled] = {}
        seed = layout.struct((), jnp.uint32)
        with tracing(layout, workload.policy):
            shapes = jax.eval_shape(workload.init, seed)
        shardings = workload.state_shardings(shapes, layout)
        self.state: State = layouts.with_shardings(shapes, shardings)
        batch = workload.batch_struct(layout)
        self.buckets = batch if isinstance(batch, Buckets) else Buckets({"": batch})
        self.stacks = {bucket: self._stacked(one) for bucket, one in self.buckets.items()}
        self.programs = self._programs(seed, shardings)

    @property
    def batch(self) -> Batch:
        """The structs of the only bucket."""
        (batch,) = self.buckets.values()
        return batch

    def _programs(self, seed: jax.ShapeDtypeStruct, shardings: Any) -> dict[str, Program]:
        stay = (shardings, self.layout.replicated)
        drawn = self.saved(shardings)
        programs = {"init": Program(self._draw, (seed,), out_shardings=drawn)}
        many = functools.partial(jax.lax.scan, self.workload.train_step)
        for bucket, batch in self.buckets.items():
            step = Program(self.workload.train_step, (self.state, batch), (0,), stay)
            programs[named("train_step", bucket)] = step
            if self.steps_per_dispatch > 1:
                steps = Program(many, (self.state, self.stacks[bucket]), (0,), stay)
                programs[named("train_steps", bucket)] = steps
        return programs | dict(self.workload.programs(self.state, self.layout))

    def _draw(self, seed: jax.Array) -> State:
        return self.saved(self.workload.init(seed))

    def saved(self, state: State) -> State:
        """A state, or what is built like one, without what is frozen: what checkpoints hold."""
        return {name: part for name, part in state.items() if name not in self.workload.frozen_entries}

    def frozen(self, seed: int) -> State:
        """What is frozen, in its place."""
        struct = {name: self.state[name] for name in self.workload.frozen_entries}
        return self.workload.frozen_state(struct, seed)

    def _stacked(self, batch: Batch) -> Batch:
        def stack(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            spec = jax.sharding.PartitionSpec(None, *x.sharding.spec)
            sharding = jax.sharding.NamedSharding(self.layout.mesh, spec)
            return jax.ShapeDtypeStruct((self.steps_per_dispatch, *x.shape), x.dtype, sharding=sharding)

        return jax.tree.map(stack, batch)

    def lower(self, name: str) -> jax.stages.Lowered:
        """Traces one program against its shapes and places."""
        return lower(self.programs[name], self.layout, self.workload.policy)

    def compile(self, *names: str) -> None:
        """Compiles the programs named, or all: then nothing is left to compile while the clock runs."""
        for name in names or self.programs:
            start = time.perf_counter()
            lowered, found = self.lower(name), compilation_cache.found()
            self._compiled[name] = lowered.compile()
            self.compile_seconds[name] = time.perf_counter() - start
            if compilation_cache.found() > found:
                self.cached.append(name)

    def compiled(self, name: str) -> jax.stages.Compiled:
        return self._compiled[name]

    def run(self, name: str, *args: Any) -> Any:
        """Calls a compiled program. Its donated arguments must not be used again."""
        return self._compiled[name](*args)

    def init(self, seed: int) -> State:
        """Makes the state, every array in its final place."""
        drawn = self.run("init", jax.device_put(np.uint32(seed % 2**32), self.layout.replicated))
        return drawn | self.frozen(seed)

    def train(self, state: State, batch: Batch, *, steps: int, bucket: str = "") -> tuple[State, Metrics]:
        """One dispatch of `steps` steps: 1, or `steps_per_dispatch` on stacked batches."""
        return self.run(named("train_step" if steps == 1 else "train_steps", bucket), state, batch)

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
