"""What a program's collectives send, over which mesh axes, and how long that takes at best.

The model is that of rings (Thakur et al., "Optimization of collective communication operations in
MPICH", 2005; for tori: Austin et al., "How to Scale Your Model", 2025, part 3): a group that spans
several axes of a torus uses the links of all of them; an axis that closes to a ring is used in both
directions. An all-to-all takes what crosses the middle of an axis takes: a quarter of all that a row of n chips
sends goes each way, over one link, or two of a ring. A message also pays `HOP_SECONDS` for every chip on its way.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlperf_jax.planning.hlo import Instruction, Module
from mlperf_jax.planning.replica_groups import replica_groups
from mlperf_jax.planning.topology import Topology

HOP_SECONDS = 1e-6
"""From a TPU chip to its neighbour ("How to Scale Your Model", part 2: about a microsecond)."""

GPU_LATENCY_SECONDS = 10e-6
"""Of a small collective between GPUs: an assumption of ours, of the order that NCCL's tests show."""

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
_EXCHANGES = ("all-to-all", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
        name: the instruction's.
        kind: one of `KINDS`.
        axes: mesh axes that its groups span.
        group: devices in a group.
        bytes: payload per device and run: what is reduced, the whole of what is gathered, or what a device sends.
        times: how often a step runs it.
        seconds: of one run, at best.
        copies: names of the instructions that the compiler spread it over.
    """

    name: str
    kind: str
    axes: tuple[str, ...]
    group: int
    bytes: float
    times: int
    seconds: float
    copies: tuple[str, ...] = ()


def collective_kind(instruction: Instruction) -> str | None:
    """The kind of a collective, or of its start where it runs in the background; None for anything else."""
    opcode = instruction.opcode.removesuffix("-start")
    return opcode if opcode in KINDS else None


class Network:
    """The links between the devices of a mesh."""

    def __init__(self, topology: Topology, mesh: Any) -> None:
        """Remembers where the devices lie.

        Args:
            topology: what they are part of.
            mesh: a `jax.sharding.Mesh` of its devices.
        """
        self.topology = topology
        self.axes: dict[str, int] = dict(mesh.shape)
        self.devices = list(mesh.devices.flat)

    def collective(self, instruction: Instruction, kind: str, operand_bytes: float, times: int) -> Collective:
        """Describes a collective instruction of a kind."""
        group = max(replica_groups(instruction, len(self.devices)), key=len)
        payload = operand_bytes
        if kind == "all-gather":
            payload *= len(group)
        return Collective(
            name=instruction.name,
            kind=kind,
            axes=self.spanned(group),
            group=len(group),
            bytes=payload,
            times=times,
            seconds=self.seconds(kind, payload, group),
        )

    def spanned(self, group: Sequence[int]) -> tuple[str, ...]:
        """The mesh axes along which the members of a group differ."""
        places = np.array(np.unravel_index(list(group), tuple(self.axes.values())))
        return tuple(axis for axis, row in zip(self.axes, places, strict=True) if len(set(row.tolist())) > 1)

    def seconds(self, kind: str, payload: float, group: Sequence[int]) -> float:
        """How long a collective takes at best.

        Args:
            kind: one of `KINDS`.
            payload: bytes that are reduced, the whole of what is gathered, or what a device sends.
            group: positions of its devices in the mesh.
        """
        if len(group) < 2:
            return 0.0
        members = [self.devices[i] for i in group]
        if self.topology.platform == "cpu":
            return _passes(kind) * payload / self.topology.chip.hbm_bandwidth
        if self.topology.platform == "gpu":
            return self._gpu_seconds(kind, payload, [d.id for d in members])
        slices = len({getattr(d, "slice_index", 0) for d in members})
        inside = self._torus_seconds(kind, payload, [tuple(d.coords) for d in members])
        if slices == 1:
            return inside
        # Each chip carries its own part of the payload to the other slices; in an exchange all that it has.
        part = payload if kind in _EXCHANGES else payload * slices / len(group)
        return inside + _passes(kind) * part * (slices - 1) / slices / self.topology.chip.node_bandwidth

    def _torus_seconds(self, kind: str, payload: float, coordinates: list[tuple[int, ...]]) -> float:
        chip = self.topology.chip
        chips = len(set(coordinates))
        if chips == 1:  # two devices of one chip
            return _passes(kind) * payload / chip.hbm_bandwidth
        extents = [len(set(values)) for values in zip(*coordinates, strict=True)]
        bandwidth, crossing, hops = 0.0, 0.0, 0
        for extent, size in zip(extents, (*self.topology.shape, 1, 1), strict=False):
            if extent > 1:
                ring = extent == size and self._closes(size)
                links = chip.link_bandwidth * (2 if ring else 1)
                bandwidth += links
                crossing = max(crossing, extent / 4 / links)
                hops += extent // 2 if ring else extent - 1
        if kind == "collective-permute":
            return max(payload / chip.link_bandwidth, HOP_SECONDS)
        share = (chips - 1) / chips / bandwidth
        if kind in _EXCHANGES:
            share = crossing
        return max(_passes(kind) * payload * share, _passes(kind) * hops * HOP_SECONDS)

    def _closes(self, size: int) -> bool:
        """Whether an axis of so many chips is a ring."""
        chip = self.topology.chip
        return size % chip.wraps == 0 if chip.torus_axes == 3 else size >= chip.wraps

    def _gpu_seconds(self, kind: str, payload: float, ids: list[int]) -> float:
        chip = self.topology.chip
        per_node = self.topology.shape[1]
        nodes = len({i // per_node for i in ids})
        inside = math.ceil(len(ids) / nodes)
        if kind in _EXCHANGES:
            within, without = (inside - 1) / len(ids), (nodes - 1) / nodes
            seconds = payload * (within / chip.link_bandwidth + (without and without / chip.node_bandwidth))
            return max(seconds, GPU_LATENCY_SECONDS)
        seconds = _passes(kind) * payload * (inside - 1) / inside / chip.link_bandwidth
        if nodes > 1:
            seconds += _passes(kind) * payload * (nodes - 1) / nodes / (inside * chip.node_bandwidth)
        return max(seconds, GPU_LATENCY_SECONDS)


def _passes(kind: str) -> int:
    """An all-reduce is a reduce-scatter and an all-gather."""
    return 2 if kind == "all-reduce" else 1


def collectives(module: Module, network: Network) -> list[Collective]:
    """Every collective of a program, in no order.

    The TPU compiler may spread one over several fusions, which work beside it and each hold a copy of
    it: these count as one. (A channel does not tell them apart: all that a `shard_map` makes share one.)
    """
    fused = {
        called
        for computation in module.computations.values()
        for instruction in computation.values()
        if instruction.opcode == "fusion"
        for called in instruction.called
    }
    found: dict[Any, Collective] = {}
    for name, times in module.executions.items():
        computation = module.computations[name] if times else {}
        for instruction in computation.values():
            kind = collective_kind(instruction)
            if kind is None:
                continue
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # written as an all-reduce of which each device keeps its part
            operands = [computation[o] for o in instruction.operands if o in computation]
            if kind == "ragged-all-to-all":
                operands = operands[:1]  # the others are where the result goes, offsets and sizes
            sent = sum(shape.bytes for operand in operands for shape in operand.shapes)
            if kind == "ragged-all-to-all":
                # Either side may have room to spare; on average as much goes as comes.
                sent = min(sent, sum(shape.bytes for shape in instruction.shapes))
            key = _identity(instruction) if name in fused else instruction.name
            new = network.collective(instruction, kind, sent, times)
            old = found.get(key, new)
            best = old if old.times >= times else new
            found[key] = dataclasses.replace(best, copies=(*old.copies, instruction.name))
    return list(found.values())


def _identity(instruction: Instruction) -> tuple[Any, ...]:
    """What the copies of one collective have in common."""
    chain = re.search(r'chain_id="(\w+)"', instruction.attributes)
    place = instruction.attribute("channel_id"), chain and chain.group(1), instruction.op_name
    return instruction.opcode, instruction.shapes, *place


def by_kind_and_axis(found: Sequence[Collective]) -> list[dict[str, Any]]:
    """Sums over collectives of one kind and axis, the largest first: count, bytes and seconds a step."""
    rows: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    for c in found:
        row = rows.setdefault(
            (c.kind, c.axes),
            {
                "kind": c.kind,
                "axes": list(c.axes),
                "group": c.group,
                "count": 0,
                "bytes": 0.0,
                "seconds": 0.0,
            },
        )
        row["group"] = max(row["group"], c.group)
        row["count"] += c.times
        row["bytes"] += c.bytes * c.times
        row["seconds"] += c.seconds * c.times
    return sorted(rows.values(), key=lambda row: -row["bytes"])
