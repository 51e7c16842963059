"""Reads the text of an optimised XLA program: instructions, loops, and how often each runs.

Only what `plan` needs of the format, which XLA writes but does not document (source:
openxla/xla, xla/hlo/ir/hlo_instruction.cc, `ToString`; xla/hlo/ir/tile_assignment.cc and
collective_device_list.cc for replica groups).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"(\w+)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
# What the condition of a counting loop is made of; anything else makes it depend on data.
_COUNTING = ("parameter", "constant", "get-tuple-element", "compare", "fusion", "copy", "bitcast")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array.

    Attributes:
        dtype: XLA's name, as bf16.
        dims: sizes.
        order: dimensions from minor to major; empty where the text does not say.
        tile: the outermost tile, to whose multiples the minor dimensions are padded in memory.
        space: memory space; 0 is the device's main memory (HBM), TPUs call on-chip memory 1 and up.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def itemsize(self) -> float:
        """Bytes of an element; half a byte for 4-bit numbers."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            digits = re.search(r"\d+", self.dtype)
            bits = int(digits.group()) if digits else 0
        return bits / 8

    @property
    def bytes(self) -> float:
        """Without padding."""
        return self.size * self.itemsize

    @property
    def padded_bytes(self) -> float:
        """As it lies in memory."""
        dims = [self.dims[d] for d in self.order]  # minor first
        for i, tile in enumerate(reversed(self.tile)):
            if i < len(dims):
                dims[i] = -(-dims[i] // tile) * tile
        return (math.prod(dims) if dims else self.size) * self.itemsize


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in its computation.
        opcode: as fusion, all-reduce, while.
        shapes: the result; several for a tuple.
        operands: names of instructions of the same computation.
        attributes: everything after the operands, as text.
        literal: what stands between the parentheses, for constants and parameters.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    literal: str

    def attribute(self, name: str) -> str | None:
        """The value of `name=...`, with its braces where it has any."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^, ]+)", self.attributes)
        return found.group(1) if found else None

    @functools.cached_property
    def backend_config(self) -> dict[str, Any]:
        """What the backend noted, {} where that is nothing or no JSON."""
        start = self.attributes.find("backend_config={")
        if start < 0:
            return {}
        try:
            return json.JSONDecoder().raw_decode(self.attributes, start + len("backend_config="))[0]
        except ValueError:
            return {}

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that run as part of this instruction; not the scalar functions of reductions."""
        names = ["calls", "body", "condition", "branch_computations", "true_computation", "false_computation"]
        if self.opcode in ("call", "async-start"):
            names.append("to_apply")
        found = (self.attribute(name) for name in names)
        return tuple(name for text in found if text for name in _NAME.findall(text))

    @property
    def op_name(self) -> str:
        """Where in the user's program it comes from, as jax names it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1).replace("\\'", "'") if found else ""

    @property
    def cycles(self) -> int | None:
        """The TPU compiler's estimate; None where it has none."""
        text = self.backend_config.get("window_config", {}).get("estimated_cycles")
        text = self.backend_config.get("estimated_cycles", text)
        return int(text) if text is not None else None


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
        computations: by name, each a dict of its instructions in order.
        entry: the name of the one that runs.
    """

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def executions(self) -> dict[str, int]:
        """Computation -> how often one run of the program goes through it; 0 where never."""
        counts = dict.fromkeys(self.computations, 0)

        def visit(name: str, times: int) -> None:
            counts[name] += times
            for instruction in self.computations[name].values():
                inner = times
                if instruction.opcode == "while":
                    inner *= self.trip_count(instruction, self.computations[name]) or 1
                for called in instruction.called:
                    visit(called, inner)

        visit(self.entry, 1)
        return counts

    @functools.cached_property
    def scheduled(self) -> tuple[str, ...]:
        """Computations whose instructions run one by one: the entry, loops, branches, calls; no fusions."""
        found: dict[str, None] = {}

        def visit(name: str) -> None:
            if name in found:
                return
            found[name] = None
            for instruction in self.computations[name].values():
                if instruction.opcode in ("while", "conditional", "call"):
                    for called in instruction.called:
                        visit(called)

        visit(self.entry)
        return tuple(found)

    @functools.cached_property
    def unknown_loops(self) -> tuple[str, ...]:
        """Loops whose trip count could not be found; their bodies count once."""
        return tuple(
            i.name
            for computation in self.computations.values()
            for i in computation.values()
            if i.opcode == "while" and self.trip_count(i, computation) is None
        )

    def trip_count(self, loop: Instruction, computation: Computation) -> int | None:
        """How often a loop's body runs; None where it depends on data."""
        known = loop.backend_config.get("known_trip_count", {}).get("n")
        if known is not None:
            return int(known)
        return self._bound(loop, computation)

    def _bound(self, loop: Instruction, computation: Computation) -> int | None:
        """The constant that a counter from 0 in steps of 1, as jax's scans have, is held against."""
        condition = self.computations[(loop.attribute("condition") or "").lstrip("%")]
        inner = [self.computations[c] for i in condition.values() for c in i.called]
        compares = [i for c in (condition, *inner) for i in c.values() if i.opcode == "compare"]
        if len(compares) != 1 or compares[0].attribute("direction") not in ("LT", "GT", "NE"):
            return None
        if any(i.opcode not in _COUNTING or _is_float(i) for c in (condition, *inner) for i in c.values()):
            return None
        bounds = [
            int(i.literal)
            for c in (condition, *inner)
            for i in c.values()
            if i.opcode == "constant" and i.shapes[0].dims == () and re.fullmatch(r"-?\d+", i.literal)
        ]
        if not bounds:
            bounds = self._carried_bounds(loop, condition, computation)
        return max(bounds[0], 0) if len(bounds) == 1 else None

    def _carried_bounds(
        self, loop: Instruction, condition: Computation, computation: Computation
    ) -> list[int]:
        """Bounds that the loop carries in its state: constants in the tuple that it starts from."""
        start = computation.get(loop.operands[0])
        if start is None or start.opcode != "tuple":
            return []
        used = [i.attribute("index") for i in condition.values() if i.opcode == "get-tuple-element"]
        sources = [computation[start.operands[int(index)]] for index in used if index]
        numbers = [
            int(i.literal) for i in sources if i.opcode == "constant" and re.fullmatch(r"-?\d+", i.literal)
        ]
        return [n for n in numbers if n > 0]


def _is_float(instruction: Instruction) -> bool:
    return len(instruction.shapes) == 1 and "f" in instruction.shapes[0].dtype


def parse(text: str) -> Module:
    """Reads a program.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation | None = None
    for line in text.splitlines():
        if current is None:
            found = _COMPUTATION.match(line)
            if found:
                current = computations[found.group(2)] = {}
                entry = found.group(2) if found.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text holds no entry computation of an HLO module")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if not found:
        return None
    end = _item_end(line, found.end())
    shape = line[found.end() : end]
    opening = line.find("(", end)
    if opening < 0:
        return None
    closing = _item_end(line, opening)
    literal = line[opening + 1 : closing - 1]
    return Instruction(
        name=found.group(2),
        opcode=line[end:opening].strip(),
        shapes=parse_shapes(shape),
        operands=tuple(_NAME.findall(literal)),
        attributes=line[closing:],
        literal=literal,
    )


def _item_end(line: str, start: int) -> int:
    """Where a shape or a parenthesis that begins at `start` ends: the first gap outside all brackets."""
    depth = 0
    for position in range(start, len(line)):
        character = line[position]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0 and line[start] == "(":
                return position + 1
        elif character == " " and depth == 0:
            return position
    return len(line)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Reads a shape, or each array of a tuple: `(f32[64]{0:T(128)S(1)}, bf16[8,128]{1,0})`."""
    return tuple(_shape(*found) for found in _SHAPE.findall(text))


def _shape(dtype: str, dims: str, layout: str) -> Shape:
    order, _, rest = layout.partition(":")
    tile = re.search(r"T\(([\d,]*)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    return Shape(
        dtype,
        tuple(int(n) for n in dims.replace("<=", "").split(",") if n.strip()),
        tuple(int(n) for n in order.split(",") if n.strip()),
        tuple(int(n) for n in tile.group(1).split(",")) if tile and tile.group(1) else (),
        int(space.group(1)) if space else 0,
    )


def replica_groups(instruction: Instruction, devices: int) -> list[list[int]]:
    """The groups of devices, by position in the mesh, that a collective runs over.

    XLA writes them as lists `{{0,1},{2,3}}`, as an iota `[2,2]<=[4]` or `[2,2]<=[2,2]T(1,0)`, or as
    axes of a mesh: `mesh['a'=2,'b'=2] {'b'}`. An empty list stands for all devices.

    Raises:
        ValueError: none of these forms.
    """
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{([\d,{} ]*)\}", text):
        return _connected([tuple(map(int, p)) for p in re.findall(r"(\d+),\s*(\d+)", pairs.group(1))])
    found = re.search(r"replica_groups=(.*)", text)
    if not found:
        return [list(range(devices))]
    text = found.group(1)
    if text.startswith("{"):
        lists = re.match(r"\{((?:\{[\d, ]*\},?\s*)*)\}", text)
        if not lists:
            raise ValueError(f"replica groups {text[:60]!r}")
        groups = [
            [int(n) for n in re.findall(r"\d+", g)] for g in re.findall(r"\{([\d, ]*)\}", lists.group(1))
        ]
        return groups or [list(range(devices))]
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _iota(*iota.groups()).tolist()
    if mesh := re.match(
        r"@?mesh\[([^\]]*)\](?:,? ?(?:device_ids=)?\(?\[([\d,]+)\](?:T\(([\d,]+)\))?\)?)? \{([^}]*)\}", text
    ):
        return _mesh_groups(*mesh.groups())
    raise ValueError(f"replica groups {text[:60]!r}")


def _iota(shape: str, reshape: str, transpose: str | None) -> np.ndarray:
    sizes = [int(n) for n in reshape.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    if transpose:
        ids = ids.transpose([int(n) for n in transpose.split(",")])
    return ids.reshape([int(n) for n in shape.split(",")])


def _mesh_groups(axes: str, reshape: str | None, transpose: str | None, over: str) -> list[list[int]]:
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if reshape:
        ids = _iota(str(ids.size), reshape, transpose)
    # A part of an axis, 'a':(2)3, is the axis split into 2 x 3 x the rest.
    split: list[tuple[str, int]] = []
    chosen: list[int] = []
    parts = {
        name: (int(pre), int(size)) for name, pre, size in re.findall(r"'?([\w.]+)'?:\((\d+)\)(\d+)", over)
    }
    whole = {
        name
        for name in re.findall(r"'?([\w.]+)'?(?=,|$)", re.sub(r"'?[\w.]+'?:\(\d+\)\d+", "", over))
        if name
    }
    for name, size in sizes.items():
        pieces = (size,)
        if name in parts:
            before, part = parts[name]
            pieces = (before, part, size // (before * part))
            chosen.append(len(split) + 1)
        elif name in whole:
            chosen.append(len(split))
        split += [(name, piece) for piece in pieces]
    ids = ids.reshape([size for _, size in split])
    others = [d for d in range(len(split)) if d not in chosen]
    group = math.prod(split[d][1] for d in chosen)
    return ids.transpose([*others, *chosen]).reshape(-1, group).tolist()


def _connected(pairs: list[tuple[int, int]]) -> list[list[int]]:
    """Devices that send to each other, directly or in a ring."""
    group = {device: {device} for pair in pairs for device in pair}
    for source, target in pairs:
        merged = group[source] | group[target]
        for device in merged:
            group[device] = merged
    return sorted({tuple(sorted(g)) for g in group.values()}) and [
        list(g) for g in sorted({tuple(sorted(g)) for g in group.values()})
    ]


def walk(module: Module) -> Iterator[tuple[Instruction, Computation, int]]:
    """Every instruction that runs, fused ones too, with its computation and how often it runs."""
    for name, times in module.executions.items():
        if times:
            for instruction in module.computations[name].values():
                yield instruction, module.computations[name], times
