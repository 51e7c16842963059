"""A compiled JAX function and the samples that it answers. The only module of loadgen_py that imports jax.

A `Replica` is a function compiled ahead of time for a ladder of batch sizes, on one device or on a
mesh. `Samples` is the library whose loaded samples lie in arrays, from which batches are gathered
in one step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from loadgen_py.responses import Rows

Arrays = Mapping[str, np.ndarray]
SampleSpec = Mapping[str, tuple[tuple[int, ...], np.dtype]]
"""Shape (without batch axis) and dtype of each input of one sample."""

_TIMED_CALLS = 5
_TIMED_SECONDS = 0.5  # of one batch size; slow models are timed with fewer calls


class Replica:
    """`predict(variables, inputs)` where its variables lie, compiled for some batch sizes.

    Args:
        predict: traceable; inputs are arrays [B, ...] by name, the result one array [B, ...] whose
            rows are the answers.
        variables: a pytree of arrays in their places.
        spec: the inputs of one sample.
        capacity: the most samples that are loaded together.
        place: gives the sharding of an input of a certain shape, batch axis first.
        on_device: keep the loaded samples in device memory and gather there; otherwise batches are
            gathered on the host and sent.

    Attributes:
        batch_sizes: those compiled so far, ascending.
        seconds: batch size -> what a call takes from host to host, for those that were timed.
    """

    def __init__(
        self,
        predict: Callable[[Any, Mapping[str, jax.Array]], jax.Array],
        variables: Any,
        spec: SampleSpec,
        *,
        capacity: int,
        place: Callable[[tuple[int, ...]], jax.sharding.Sharding],
        on_device: bool = False,
    ) -> None:
        self._predict, self._variables, self._spec = predict, variables, dict(spec)
        self._capacity, self._place, self._on_device = capacity, place, on_device
        self._compiled: dict[int, jax.stages.Compiled] = {}
        self._pool: Mapping[str, Any] = {}
        self.batch_sizes: list[int] = []
        self.seconds: dict[int, float] = {}

    def compile(self, batch_sizes: Sequence[int]) -> None:
        """Compiles for these batch sizes too."""
        for size in sorted(set(batch_sizes) - set(self._compiled)):
            self._compiled[size] = self._lowered(size).compile()
        self.batch_sizes = sorted(self._compiled)

    def _lowered(self, size: int) -> jax.stages.Lowered:
        if not self._on_device:
            return jax.jit(self._predict).lower(self._variables, self._structs(size))

        def gathered(variables: Any, pool: Mapping[str, jax.Array], slots: jax.Array) -> jax.Array:
            return self._predict(variables, {name: rows[slots] for name, rows in pool.items()})

        slots = jax.ShapeDtypeStruct((size,), np.int32, sharding=self._place((size,)))
        return jax.jit(gathered).lower(self._variables, self._structs(self._capacity), slots)

    def _structs(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=self._place((size, *shape)))
            for name, (shape, dtype) in self._spec.items()
        }

    def hold(self, pool: Arrays) -> None:
        """Takes the loaded samples, [N, ...] each with N at most the capacity; none lets go of them."""
        if not self._on_device or not pool:
            self._pool = pool
            return
        structs = self._structs(self._capacity)
        placed = {}
        for name, rows in pool.items():
            whole = np.zeros(structs[name].shape, rows.dtype)
            whole[: len(rows)] = rows
            placed[name] = jax.device_put(whole, structs[name].sharding)
        self._pool = jax.block_until_ready(placed)

    def bucket(self, count: int) -> int:
        """The smallest compiled batch size that holds `count` samples."""
        return next(size for size in self.batch_sizes if size >= count)

    def start(self, slots: np.ndarray) -> jax.Array:
        """Sends a batch on its way, to the device and its answers back to the host, and returns at once.

        Args:
            slots: [n] int32 places in the pool, n at most the largest batch size.

        Returns:
            [B, ...] with B >= n; the rows from n on are padding.
        """
        answers = self._call(slots)
        answers.copy_to_host_async()
        return answers

    def answer(self, slots: np.ndarray) -> np.ndarray:
        """The answers [n, ...] to the samples in `slots`, [n] int32, on the host."""
        return np.asarray(self._call(slots))[: len(slots)]

    def _call(self, slots: np.ndarray) -> jax.Array:
        size = self.bucket(len(slots))
        if size > len(slots):
            slots = np.resize(slots, size)
        if self._on_device:
            return self._compiled[size](self._variables, self._pool, slots)
        inputs = {name: rows.take(slots, axis=0) for name, rows in self._pool.items()}
        return self._compiled[size](self._variables, inputs)

    def measure(self) -> None:
        """Runs each batch size a few times, and notes in `seconds` what it takes; samples must be loaded."""
        for size in self.batch_sizes:
            slots = np.zeros(size, np.int32)
            self.answer(slots)
            taken: list[float] = []
            while len(taken) < _TIMED_CALLS and sum(taken) < _TIMED_SECONDS:
                begin = time.perf_counter()
                self.answer(slots)
                taken.append(time.perf_counter() - begin)
            # Whatever else runs on the machine only adds to the time.
            self.seconds[size] = min(taken)


class Samples:
    """A sample library whose loaded samples lie in arrays, for some replicas.

    Args:
        name: what the logs call it.
        total_count, performance_count: as `SampleLibrary` has them.
        read: gives the inputs [N, ...] of samples [N] by name.
        replicas: what is to hold them.
        logged: (index of a sample, its answer) -> what is logged of it; None logs all.

    Attributes:
        slots: [total_count] int32, where in the pool each loaded sample lies.
    """

    def __init__(
        self,
        name: str,
        total_count: int,
        performance_count: int,
        read: Callable[[np.ndarray], Arrays],
        replicas: Sequence[Replica],
        *,
        logged: Callable[[int, np.ndarray], Any] | None = None,
    ) -> None:
        self.name, self.total_count, self.performance_count = name, total_count, performance_count
        self._read, self._replicas, self._logged = read, list(replicas), logged
        self.slots = np.full(total_count, -1, np.int32)
        self._loaded = np.zeros(0, np.int64)  # the sample in each slot

    def load(self, indices: np.ndarray) -> None:
        """Reads samples [N] into memory, in place of all others."""
        distinct = np.unique(indices)
        self.slots[:] = -1
        self.slots[distinct] = np.arange(len(distinct), dtype=np.int32)
        self._loaded = distinct
        pool = self._read(distinct)
        for replica in self._replicas:
            replica.hold(pool)

    def unload(self, indices: np.ndarray) -> None:
        """Lets go of the samples [N]."""
        self.slots[indices] = -1
        for replica in self._replicas:
            replica.hold({})

    def entries(self, slots: np.ndarray, answers: np.ndarray) -> Rows:
        """What `Responses.complete` is to log of answers [n, ...] to the samples in `slots` [n]."""
        return answers if self._logged is None else _Entries(self._logged, self._loaded[slots], answers)


class _Entries:
    """The logged part of each answer, made when it is asked for: most runs log none."""

    def __init__(
        self, logged: Callable[[int, np.ndarray], Any], indices: np.ndarray, answers: np.ndarray
    ) -> None:
        self._logged, self._indices, self._answers = logged, indices, answers

    def __getitem__(self, k: int) -> Any:
        return self._logged(int(self._indices[k]), self._answers[k])
