"""A compiled JAX function and the samples that it answers. The only module of loadgen_py that imports jax.

Samples of one shape make a bucket, with a name; where all have one shape, there is one. A `Replica` is a
function compiled ahead of time, on one device or on a mesh, for a ladder of batch sizes of each bucket.
`Samples` is the library whose loaded samples lie in arrays, a pool for each bucket, from which batches are
gathered in one step. A sample is a row of its pool, or several rows one after the other: batches are of rows, and
samples of many sizes lie in one batch with nothing between them.
"""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loadgen_py.responses import Rows

Arrays = Mapping[str, np.ndarray]
SampleSpec = Mapping[str, tuple[tuple[int, ...], np.dtype]]
"""Shape (without batch axis) and dtype of each input of one sample."""

Ids = Sequence[int] | np.ndarray
"""[n] samples as LoadGen calls them."""
Part = tuple[str, Ids, np.ndarray]
"""Samples of one bucket: its name, ids [n], and [n] int32 places in its pool."""

ONE_BUCKET = ""
"""The bucket's name where there is one."""

_SMALL = 256  # elements of an array that is packed with others
_TIMED_CALLS = 5
_TIMED_SECONDS = 0.5  # of one batch size; slow models are timed with fewer calls


class Replica:
    """`predict(variables, inputs)` where its variables lie, compiled for some batch sizes of each bucket.

    Args:
        predict: traceable; inputs are arrays [B, ...] by name, the result one array [B, ...] whose
            rows are the answers.
        variables: a pytree of arrays in their places.
        specs: bucket -> the inputs of one row.
        capacity: bucket -> the most of its rows that are loaded together.
        place: gives the sharding of an input of a certain shape, batch axis first.
        on_device: keep the loaded samples in device memory and gather there; otherwise batches are
            gathered on the host and sent.
        compile: what makes a program of one that was lowered.

    Attributes:
        batch_sizes: bucket -> those compiled so far, ascending.
        seconds: bucket -> batch size -> what a call takes from host to host, for those that were timed.
    """

    def __init__(
        self,
        predict: Callable[[Any, Mapping[str, jax.Array]], jax.Array],
        variables: Any,
        specs: Mapping[str, SampleSpec],
        *,
        capacity: Mapping[str, int],
        place: Callable[[tuple[int, ...]], jax.sharding.Sharding],
        on_device: bool = False,
        compile: Callable[[jax.stages.Lowered], jax.stages.Compiled] = jax.stages.Lowered.compile,
    ) -> None:
        self._predict, self._specs, self._compile = predict, specs, compile
        self._held, self._whole = _packed(variables)
        self._capacity, self._place, self._on_device = capacity, place, on_device
        self._compiled: dict[str, dict[int, jax.stages.Compiled]] = {bucket: {} for bucket in specs}
        self._pools: Mapping[str, Mapping[str, Any]] = {}
        self.batch_sizes: dict[str, list[int]] = {bucket: [] for bucket in specs}
        self.seconds: dict[str, dict[int, float]] = {bucket: {} for bucket in specs}

    def compile(self, batch_sizes: Mapping[str, Iterable[int]]) -> None:
        """Compiles for these batch sizes of each bucket too."""
        for bucket, sizes in batch_sizes.items():
            compiled = self._compiled[bucket]
            for size in sorted(set(sizes) - set(compiled)):
                compiled[size] = self._compile(self._lowered(bucket, size))
            self.batch_sizes[bucket] = sorted(compiled)

    def _lowered(self, bucket: str, size: int) -> jax.stages.Lowered:
        def predict(held: Any, inputs: Mapping[str, jax.Array]) -> jax.Array:
            return self._predict(self._whole(held), inputs)

        if not self._on_device:
            return jax.jit(predict).lower(self._held, self._structs(bucket, size))

        def gathered(held: Any, pool: Mapping[str, jax.Array], slots: jax.Array) -> jax.Array:
            return predict(held, {name: rows[slots] for name, rows in pool.items()})

        pool = self._structs(bucket, self._capacity[bucket])
        slots = jax.ShapeDtypeStruct((size,), np.int32, sharding=self._place((size,)))
        return jax.jit(gathered).lower(self._held, pool, slots)

    def _structs(self, bucket: str, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=self._place((size, *shape)))
            for name, (shape, dtype) in self._specs[bucket].items()
        }

    def hold(self, pools: Mapping[str, Arrays]) -> None:
        """Takes the loaded samples in place of all others.

        Args:
            pools: bucket -> [N, ...] by name, with N at most its capacity.
        """
        if not self._on_device:
            self._pools = pools
            return
        self._pools = jax.block_until_ready(
            {bucket: self._on_devices(bucket, pool) for bucket, pool in pools.items()}
        )

    def _on_devices(self, bucket: str, pool: Arrays) -> dict[str, jax.Array]:
        structs = self._structs(bucket, self._capacity[bucket])
        placed = {}
        for name, rows in pool.items():
            whole = np.zeros(structs[name].shape, rows.dtype)
            whole[: len(rows)] = rows
            placed[name] = jax.device_put(whole, structs[name].sharding)
        return placed

    def start(self, bucket: str, slots: np.ndarray) -> jax.Array:
        """Sends a batch on its way, to the device and its answers back to the host, and returns at once.

        Args:
            bucket: whose samples these are.
            slots: [n] int32 rows of its pool, n at most the largest batch size.

        Returns:
            [B, ...] with B >= n; the rows from n on are padding.
        """
        answers = self._call(bucket, slots)
        answers.copy_to_host_async()
        return answers

    def answer(self, bucket: str, slots: np.ndarray) -> np.ndarray:
        """The answers [n, ...] to the rows `slots`, [n] int32, of a bucket's pool, on the host."""
        return np.asarray(self._call(bucket, slots))[: len(slots)]

    def _call(self, bucket: str, slots: np.ndarray) -> jax.Array:
        sizes = self.batch_sizes[bucket]
        size = sizes[bisect.bisect_left(sizes, len(slots))]
        if size > len(slots):
            slots = np.resize(slots, size)
        program, pool = self._compiled[bucket][size], self._pools[bucket]
        if self._on_device:
            return program(self._held, pool, slots)
        return program(self._held, {name: rows.take(slots, axis=0) for name, rows in pool.items()})

    def measure(self) -> None:
        """Runs every program a few times, and notes in `seconds` what it takes.

        Of each bucket a sample must be loaded.
        """
        for bucket, sizes in self.batch_sizes.items():
            for size in sizes:
                self.seconds[bucket][size] = self._timed(bucket, size)

    def _timed(self, bucket: str, size: int) -> float:
        slots = np.zeros(size, np.int32)
        self.answer(bucket, slots)
        taken: list[float] = []
        while len(taken) < _TIMED_CALLS and sum(taken) < _TIMED_SECONDS:
            begin = time.perf_counter()
            self.answer(bucket, slots)
            taken.append(time.perf_counter() - begin)
        # Whatever else runs on the machine only adds to the time.
        return min(taken)


def _packed(variables: Any) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], Any]]:
    """Few arrays that hold what many did, and what makes `variables` of them again, inside a compiled function.

    To jax a call costs about half a microsecond an array, of which a small network has dozens: kernels, and four
    vectors a norm. Small arrays of one dtype, whole on the same devices, become one; slices of it are fused into what
    reads them.
    """
    leaves, tree = jax.tree.flatten(variables)
    alike: dict[Any, list[int]] = {}
    for k, x in enumerate(leaves):
        small = isinstance(x, jax.Array) and x.size <= _SMALL and jnp.issubdtype(x.dtype, np.number)
        kind = (x.dtype, _without_axes(x.sharding)) if small and x.sharding.is_fully_replicated else k
        alike.setdefault(kind, []).append(k)
    groups = list(alike.values())
    shapes = [np.shape(x) for x in leaves]
    ends = [np.cumsum([math.prod(shapes[k]) for k in group]) for group in groups]

    def together(group: Sequence[int]) -> jax.Array:
        first = leaves[group[0]]
        if len(group) == 1:
            return first
        return jax.device_put(
            np.concatenate([np.ravel(leaves[k]) for k in group]), _without_axes(first.sharding)
        )

    def whole(held: Sequence[jax.Array]) -> Any:
        parts: dict[int, jax.Array] = {}
        for group, stops, x in zip(groups, ends, held, strict=True):
            pieces = jnp.split(x, stops[:-1]) if len(group) > 1 else [x]
            parts |= {k: piece.reshape(shapes[k]) for k, piece in zip(group, pieces, strict=True)}
        return jax.tree.unflatten(tree, [parts[k] for k in range(len(leaves))])

    return [together(group) for group in groups], whole


def _without_axes(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Of an array that is whole everywhere, for one of any other shape."""
    if isinstance(sharding, jax.NamedSharding):
        return jax.NamedSharding(sharding.mesh, jax.P())
    return sharding


class Samples:
    """A sample library whose loaded samples lie in arrays, for some replicas.

    Args:
        name: what the logs call it.
        total_count, performance_count: as `SampleLibrary` has them.
        read: gives the inputs [rows, ...] of samples [N], all of one bucket, by name.
        replicas: what is to hold them.
        buckets: [total_count] the bucket of each sample; None has all in one.
        rows: [total_count] how many rows each sample has; None where each is one.
        logged: (index of a sample, its answer) -> what is logged of it; None logs all.

    Attributes:
        buckets: names of those that have samples.
        counts: how many each has.
        firsts: the first sample of each.
        most_rows, mean_rows: of each of these buckets, what its largest sample has, and a sample on average.
        slots: [total_count] int32, the place of each loaded sample among those of its bucket.
    """

    def __init__(
        self,
        name: str,
        total_count: int,
        performance_count: int,
        read: Callable[[np.ndarray], Arrays],
        replicas: Sequence[Replica],
        *,
        buckets: Sequence[str] | None = None,
        rows: np.ndarray | None = None,
        logged: Callable[[int, np.ndarray], Any] | None = None,
    ) -> None:
        self.name, self.total_count, self.performance_count = name, total_count, performance_count
        self._read, self._replicas, self._logged = read, list(replicas), logged
        names, self.firsts, self._bucket_of, self.counts = np.unique(
            [ONE_BUCKET] * total_count if buckets is None else list(buckets),
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        self.buckets: tuple[str, ...] = tuple(names.tolist())
        self._rows = rows
        of = {
            name: [1] if rows is None else rows[self._bucket_of == k] for k, name in enumerate(self.buckets)
        }
        self.most_rows = {bucket: int(np.max(its)) for bucket, its in of.items()}
        self.mean_rows = {bucket: float(np.mean(its)) for bucket, its in of.items()}
        self.slots = np.full(total_count, -1, np.int32)
        self._bounds: dict[
            str, np.ndarray
        ] = {}  # bucket -> where each slot's rows begin, and behind the last
        self._loaded: dict[str, np.ndarray] = {}  # bucket -> the sample in each slot

    def load(self, indices: np.ndarray) -> None:
        """Reads samples [N] into memory, in place of all others."""
        distinct = np.unique(indices)
        bucket_of = self._bucket_of[distinct]
        self.slots[:] = -1
        self._loaded = {self.buckets[k]: distinct[bucket_of == k] for k in np.unique(bucket_of)}
        for samples in self._loaded.values():
            self.slots[samples] = np.arange(len(samples), dtype=np.int32)
        if self._rows is not None:
            self._bounds = {
                bucket: np.concatenate([[0], np.cumsum(self._rows[samples])]).astype(np.int32)
                for bucket, samples in self._loaded.items()
            }
        pools = {bucket: self._read(samples) for bucket, samples in self._loaded.items()}
        for replica in self._replicas:
            replica.hold(pools)

    def unload(self, indices: np.ndarray) -> None:
        """Lets go of the samples [N]."""
        self.slots[indices] = -1
        for replica in self._replicas:
            replica.hold({})

    def parts(self, ids: Ids, indices: np.ndarray) -> Sequence[Part]:
        """A query by buckets: one part for each that has samples in it.

        Args:
            ids: [N] of LoadGen.
            indices: [N] loaded samples.
        """
        slots = self.slots[indices]
        if len(self.buckets) == 1:
            return ((self.buckets[0], ids, slots),)
        bucket_of = self._bucket_of[indices]
        if len(slots) == 1:
            return ((self.buckets[bucket_of[0]], ids, slots),)
        found = [(k, np.flatnonzero(bucket_of == k)) for k in range(len(self.buckets))]
        all_ids = np.asarray(ids)
        return [(self.buckets[k], all_ids[here], slots[here]) for k, here in found if len(here)]

    def sizes(self, bucket: str, slots: np.ndarray) -> np.ndarray | None:
        """Rows of samples of a bucket in `slots` [n]; None where each is one."""
        if self._rows is None:
            return None
        bounds = self._bounds[bucket]
        return bounds[slots + 1] - bounds[slots]

    def rows(self, bucket: str, slots: np.ndarray) -> np.ndarray:
        """Where in its pool the rows of samples of a bucket in `slots` [n] lie, sample after sample: int32."""
        sizes = self.sizes(bucket, slots)
        if sizes is None:
            return slots
        ends = np.cumsum(sizes, dtype=np.int32)
        return np.arange(ends[-1], dtype=np.int32) + np.repeat(
            self._bounds[bucket][slots] - ends + sizes, sizes
        )

    def entries(self, bucket: str, slots: np.ndarray, answers: np.ndarray) -> Rows:
        """What `Responses.complete` is to log of the answers [rows, ...] to samples of a bucket in `slots` [n]."""
        sizes = self.sizes(bucket, slots)
        if self._logged is None and sizes is None:
            return answers
        ends = None if sizes is None else np.cumsum(sizes)
        return _Entries(self._logged, self._loaded[bucket][slots], answers, ends)


class _Entries:
    """The logged part of each answer, made when it is asked for: most runs log none.

    Args:
        logged: as `Samples` has it.
        indices: [n] samples.
        answers: a row for each, or their rows one sample's after the other's.
        ends: [n] where each sample's rows end; None where each has one.
    """

    def __init__(
        self,
        logged: Callable[[int, np.ndarray], Any] | None,
        indices: np.ndarray,
        answers: np.ndarray,
        ends: np.ndarray | None,
    ) -> None:
        self._logged, self._indices, self._answers, self._ends = logged, indices, answers, ends

    def __getitem__(self, k: int) -> Any:
        if self._ends is None:
            answer = self._answers[k]
        else:
            answer = self._answers[self._ends[k - 1] if k else 0 : self._ends[k]]
        return answer if self._logged is None else self._logged(int(self._indices[k]), answer)
