"""From logical axes to mesh axes: one small resolver for every sharding strategy.

Models name what a dimension means ("batch", "conv_out", "embed", ...); a `Strategy` says which
mesh axes may carry which meaning; a `Layout` (strategy + mesh) turns a shape into a
`PartitionSpec`. Two rules decide everything:

1. A dimension takes the first choice of its rule that is still free in this array and whose size
   divides it; if none does, the dimension stays whole. A choice is a mesh axis, or several that carry
   the dimension together: all must be free, and their product divides it. A height of which a device would
   hold one row also stays whole.
2. With `shard_params` (fsdp) or `shard_optimizer` (zero1) set, an array of two dimensions or more and at
   least `MIN_SHARDED_SIZE` elements also splits its largest dimension that is still whole and divisible
   over that axis. Convolutions pair well with this rule: their axes have no natural order.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from mlperf_jax.errors import UserError
from mlperf_jax.parallel.chips import Chip, find_chip

MIN_SHARDED_SIZE = 1024
"""Arrays with fewer elements stay replicated, and so do vectors: a gather would cost more than it saves."""

_LEAST = {"height": 2}
"""What a device must hold of a dimension that is split: of maps with a row a device XLA's partitioner gives
gradients of 3x3 convolutions that are several times too large (jaxlib 0.10.2)."""

_ASYNC_GATHERS = (
    "xla_tpu_prefer_async_allgather_to_allreduce",
    "xla_enable_async_all_gather",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
)

LogicalAxes = Sequence[str | None]

MeshAxes = str | tuple[str, ...]
"""A mesh axis, or several that carry a dimension together, the outermost first."""


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A sharding strategy, as data.

    Attributes:
        name: what the user types after `--sharding=`.
        mesh: mesh axis -> size; -1 for one axis that takes the devices left over.
        rules: logical axis -> what may carry it, in order of preference.
        shard_params: mesh axis over which parameters (and with them the optimizer state) are split.
        shard_optimizer: mesh axis over which only the optimizer state is split.
    """

    name: str
    mesh: Mapping[str, int]
    rules: Mapping[str, tuple[MeshAxes, ...]]
    shard_params: str | None = None
    shard_optimizer: str | None = None


_TENSOR_RULES = {
    "batch": ("data",),
    "conv_out": ("model",),
    "channels": ("model",),
    "mlp": ("model",),
    "heads": ("model",),
    "vocab": ("model",),
    "table_row": ("model",),
}

STRATEGIES: dict[str, Strategy] = {
    s.name: s
    for s in (
        Strategy("dp", {"data": -1}, {"batch": ("data",)}),
        Strategy("zero1", {"data": -1}, {"batch": ("data",)}, shard_optimizer="data"),
        Strategy("fsdp", {"data": -1}, {"batch": ("data",)}, shard_params="data"),
        Strategy("tp", {"data": -1, "model": 2}, _TENSOR_RULES),
        Strategy("fsdp_tp", {"data": -1, "model": 2}, _TENSOR_RULES, shard_params="data"),
        # Between the products of tensor parallelism activations are split by position (Korthikanti et al.,
        # arXiv:2205.05198): norms, dropout and what is kept for the backward pass.
        Strategy("sequence", {"data": -1, "model": 2}, _TENSOR_RULES | {"length": ("model",)}),
        # Rows are split by position throughout, for those that one device could not hold; what queries look at is gathered.
        Strategy(
            "context",
            {"data": -1, "context": 2},
            {"batch": ("data",), "position": ("context",), "length": ("context",)},
            shard_params="data",
        ),
        # Of a mixture's experts each device has some; see models.experts.
        Strategy(
            "expert",
            {"data": -1, "expert": 2},
            {"batch": (("data", "expert"),), "expert": ("expert",)},
            shard_params="data",
        ),
        # XLA exchanges the rows at the seams of convolutions and windows ("halos"). Source: Google's JAX SSD
        # in training_results_v0.7 splits the image's height over four cores, its 3D U-Net of v1.0 a volume's
        # first axis.
        Strategy(
            "spatial",
            {"data": -1, "space": 2},
            {"batch": ("data",), "height": ("space",), "depth": ("space",)},
        ),
        # Embedding tables over the devices, all else as in dp; see mlperf_jax.embedding.sharded.
        Strategy("row_wise", {"data": -1}, {"batch": ("data",), "table_row": ("data",)}),
        Strategy("column_wise", {"data": -1}, {"batch": ("data",), "table_column": ("data",)}),
        Strategy("table_wise", {"data": -1}, {"batch": ("data",), "table": ("data",)}),
    )
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A strategy on a mesh of devices: where every array lies.

    Attributes:
        strategy, mesh: the two.
        sharing: mesh axes that have carried a dimension by rule 1 so far, of a batch, a parameter or an
            activation: the devices along them share the work.
    """

    strategy: Strategy
    mesh: Mesh | AbstractMesh
    sharing: set[str] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)

    def choices(self, logical: str | None) -> list[tuple[str, ...]]:
        """What may carry a dimension of that meaning, in order of preference: mesh axes larger than 1."""
        rule = self.strategy.rules.get(logical, ()) if logical else ()
        large = [tuple(a for a in together(choice) if self.mesh.shape.get(a, 1) > 1) for choice in rule]
        return [axes for axes in large if axes]

    def size(self, axes: Iterable[str]) -> int:
        """How many parts mesh axes make together."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def spec(
        self, shape: Sequence[int], axes: LogicalAxes | None, *, also: str | None = None
    ) -> PartitionSpec:
        """Resolves one array.

        Args:
            shape: its dimensions.
            axes: a logical name or None per dimension; None for the whole where nothing is known.
            also: a mesh axis to split the largest whole dimension over (rule 2), if any.
        """
        names: list[MeshAxes | None] = [None] * len(shape)
        free = {axis for axis, size in self.mesh.shape.items() if size > 1}
        for d, logical in enumerate(axes or ()):
            for choice in self.choices(logical):
                each, rest = divmod(shape[d], self.size(choice))
                if free.issuperset(choice) and not rest and each >= _LEAST.get(logical or "", 0):
                    names[d] = joined(choice)
                    free.difference_update(choice)
                    self.sharing.update(choice)
                    break
        if also in free and len(shape) > 1 and math.prod(shape) >= MIN_SHARDED_SIZE:
            whole = [
                d for d in range(len(shape)) if names[d] is None and shape[d] % self.mesh.shape[also] == 0
            ]
            if whole:
                names[max(whole, key=lambda d: shape[d])] = also
        while names and names[-1] is None:
            names.pop()
        return PartitionSpec(*names)

    @property
    def chip(self) -> Chip | None:
        """What the devices are, None where there are none or they are not in the table."""
        return find_chip(self.mesh.devices.flat[0].device_kind) if isinstance(self.mesh, Mesh) else None

    @property
    def compiler_options(self) -> dict[str, str]:
        """XLA's options for a program under this layout, beside the flags of `mlperf_jax.platform`.

        What products of large matrices pay most for is on-chip memory; some chips have far more than the compiler lets an operation
        take. Where parameters are split, the TPU partitioner sends their parts round and multiplies by one after the other, in loops
        that cost more than one gather before the product (benchmarks/NOTES.md, "Compiler flags"). Tensor parallelism, which may
        live by such loops, keeps them. On a torus of three dimensions gathers, unless asynchronous ones are asked for, are sums of
        arrays that are zero elsewhere. There alone all-to-alls may be asynchronous: of a v5e:8x8 the compiler refuses them.
        """
        chip = self.chip
        if chip is None or chip.platform != "tpu":
            return {}
        options = {}
        if chip.scoped_vmem_kib:
            options["xla_tpu_scoped_vmem_limit_kib"] = str(chip.scoped_vmem_kib)
        products = ("conv_out", "channels", "mlp", "heads", "vocab")
        if self.strategy.shard_params and not any(map(self.choices, products)):
            options["xla_jf_spmd_threshold_for_windowed_einsum_mib"] = "1000000"
        if chip.torus_axes == 3:
            options["xla_tpu_enable_async_all_to_all"] = "true"
            if self.strategy.shard_params:
                options |= dict.fromkeys(_ASYNC_GATHERS, "true")
        return options

    def sharding(self, shape: Sequence[int], axes: LogicalAxes | None = None) -> NamedSharding:
        """Where an activation, a batch or a total lies."""
        return NamedSharding(self.mesh, self.spec(shape, axes))

    def param_sharding(self, shape: Sequence[int], axes: LogicalAxes | None) -> NamedSharding:
        """Where a parameter lies."""
        return NamedSharding(self.mesh, self.spec(shape, axes, also=self.strategy.shard_params))

    def optimizer_sharding(self, shape: Sequence[int], axes: LogicalAxes | None) -> NamedSharding:
        """Where an optimizer's array that has the shape of a parameter lies."""
        also = self.strategy.shard_params or self.strategy.shard_optimizer
        return NamedSharding(self.mesh, self.spec(shape, axes, also=also))

    def struct(
        self, shape: Sequence[int], dtype: DTypeLike, axes: LogicalAxes | None = None
    ) -> jax.ShapeDtypeStruct:
        """The shape, dtype and place of an array that need not exist yet."""
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=self.sharding(shape, axes))

    def rows(self, batch_size: int, key: str = "batch_size") -> slice:
        """The rows of every global batch that this process has to provide, from its first to its last.

        Args:
            batch_size: of the global batch.
            key: the config's name of it, for the message.

        Raises:
            UserError: the batch does not divide over the mesh axes that carry it.
        """
        choices = self.choices("batch")
        if choices and all(batch_size % self.size(axes) for axes in choices):
            size, names = self.size(choices[0]), " and ".join(map(repr, choices[0]))
            raise UserError(
                f"A batch of {batch_size} does not divide over {size} devices of mesh "
                f"{'axis' if len(choices[0]) == 1 else 'axes'} {names}; "
                f"use a multiple of {size}, as --config.{key}={-(-batch_size // size) * size}, or another --mesh."
            )
        if isinstance(self.mesh, AbstractMesh):  # of a topology that is not there: no process has a part
            return slice(0, batch_size)
        where = self.sharding((batch_size,), ("batch",)).addressable_devices_indices_map((batch_size,))
        bounds = [index[0].indices(batch_size) for index in where.values() if index is not None]
        return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())


def together(axes: MeshAxes | None) -> tuple[str, ...]:
    """The mesh axes of a choice, or of an entry of a `PartitionSpec`."""
    return (axes,) if isinstance(axes, str) else axes or ()


def joined(axes: Sequence[str]) -> MeshAxes | None:
    """The reverse: mesh axes as an entry of a `PartitionSpec`."""
    return tuple(axes) if len(axes) > 1 else axes[0] if axes else None


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of structs that say shape, dtype and place of arrays that need not exist yet.

    Args:
        shapes: a tree of arrays or structs.
        shardings: a sharding for each, or, as `jax.jit` takes them, one for a whole branch.
    """

    def branch(sharding: Sharding, shapes: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)

    return jax.tree.map(branch, shardings, shapes)


_active: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def use(layout: Layout | None) -> Iterator[None]:
    """Makes `layout` the one that `constrain` resolves against while functions are traced."""
    token = _active.set(layout)
    try:
        yield
    finally:
        _active.reset(token)


def active() -> Layout | None:
    """The layout in use while functions are traced, for code that exchanges data by itself."""
    return _active.get()


def on_own_rows(function: Callable[..., jax.Array], x: jax.Array, *whole: jax.Array) -> jax.Array:
    """`function(x, *whole)`, of which each device computes its own rows of x [B, ...], with all of the other arrays.

    For what XLA's partitioner gathers the batch for, or gets wrong. The result has x's rows and as many axes.
    """
    in_use = active()
    if in_use is None or in_use.mesh.size == 1:
        return function(x, *whole)
    rows = in_use.spec(x.shape, ("batch", *[None] * (x.ndim - 1)))
    specs = rows, *[PartitionSpec()] * len(whole)
    return jax.shard_map(function, mesh=in_use.mesh, in_specs=specs, out_specs=rows)(x, *whole)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to the layout in use, dimension by dimension.

    Without such pins the partitioner may keep the whole batch on every device and split the
    model instead. Outside `use` (tests of one model, plain inference) it changes nothing.
    """
    layout = _active.get()
    if layout is None:
        return x
    if len(axes) != x.ndim:
        raise ValueError(f"{len(axes)} logical axes {axes} for an array of shape {x.shape}")
    return jax.lax.with_sharding_constraint(x, layout.sharding(x.shape, axes))


def constrain_parameter(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins what is summed up like a parameter's gradient to where that parameter lies, as `constrain` does."""
    layout = _active.get()
    if layout is None:
        return x
    return jax.lax.with_sharding_constraint(x, layout.param_sharding(x.shape, axes))


def index_along(layout: Layout, axes: MeshAxes | None) -> jax.Array:
    """Inside of `jax.shard_map`: which part this device has of a dimension that these axes carry, int32 []."""
    index = jnp.zeros((), jnp.int32)
    for axis in together(axes):
        index = index * layout.mesh.shape[axis] + jax.lax.axis_index(axis)
    return index
