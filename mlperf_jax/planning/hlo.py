"""Reads the text of an optimised XLA program: instructions, loops, and how often each runs.

Only what `plan` needs of the format, which XLA writes but does not document (source:
openxla/xla, xla/hlo/ir/hlo_instruction.cc, `ToString`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from mlperf_jax.usual_loops import usual_times

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"(\w+)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
# What the condition of a counting loop is made of; anything else makes it depend on data.
_COUNTING = ("parameter", "constant", "get-tuple-element", "compare", "fusion", "copy", "bitcast")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_END = re.compile(r"\}(, |$)")  # of a computation; the thread it runs on may follow


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
                    inner *= self.counted_trips(instruction, self.computations[name])
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
        """Loops whose trip count could not be found, and of which the program says nothing; their bodies count once."""
        return tuple(i.name for i in self._open_loops if usual_times(i.op_name) is None)

    @functools.cached_property
    def usual_loops(self) -> dict[str, int]:
        """Loops whose trip count the data decide, and what the program says of it: their bodies count so often."""
        said = ((i.name, usual_times(i.op_name)) for i in self._open_loops)
        return {name: times for name, times in said if times is not None}

    @functools.cached_property
    def _open_loops(self) -> list[Instruction]:
        return [
            i
            for computation in self.computations.values()
            for i in computation.values()
            if i.opcode == "while" and self.trip_count(i, computation) is None
        ]

    def counted_trips(self, loop: Instruction, computation: Computation) -> int:
        """How often a loop's body counts."""
        known = self.trip_count(loop, computation)
        return self.usual_loops.get(loop.name, 1) if known is None else known

    def trip_count(self, loop: Instruction, computation: Computation) -> int | None:
        """How often a loop's body runs; None where it depends on data."""
        known = loop.backend_config.get("known_trip_count", {}).get("n")
        if known is not None:
            return int(known)
        return self._bound(loop, computation)

    def _bound(self, loop: Instruction, computation: Computation) -> int | None:
        """The constant that a counter from 0 in steps of 1, as jax's scans have, is held against.

        For example 6, where a loop is `while(%start), condition=%condition` with the condition

            %n = s32[] get-tuple-element(%c), index=0
            %limit = s32[] constant(6)
            ROOT %less = pred[] compare(%n, %limit), direction=LT

        or where its `%limit` is get-tuple-element(%c), index=2, and what the loop starts from

            %six = s32[] constant(6)
            %start = (s32[], f32[8], s32[]) tuple(%zero, %x, %six)

        The comparison may also be in a fusion. None where more is compared, or something else: then data
        may end the loop.
        """
        condition = self.computations[(loop.attribute("condition") or "").lstrip("%")]
        fused = [self.computations[c] for i in condition.values() for c in i.called]
        test = [i for c in (condition, *fused) for i in c.values()]
        compared = [i.attribute("direction") for i in test if i.opcode == "compare"]
        if len(compared) != 1 or compared[0] not in ("LT", "GT", "NE"):
            return None
        if any(i.opcode not in _COUNTING or _is_float(i) for i in test):
            return None
        bounds = [n for i in test if (n := _whole_number(i)) is not None]
        if not bounds:
            bounds = self._carried_bounds(loop, condition, computation)
        return max(bounds[0], 0) if len(bounds) == 1 else None

    def _carried_bounds(
        self, loop: Instruction, condition: Computation, computation: Computation
    ) -> list[int]:
        """Bounds that the loop carries in its state: constants in the tuple that it starts from, but for 0."""
        start = computation.get(loop.operands[0])
        if start is None or start.opcode != "tuple":
            return []
        used = [i.attribute("index") for i in condition.values() if i.opcode == "get-tuple-element"]
        numbers = [_whole_number(computation[start.operands[int(index)]]) for index in used if index]
        return [n for n in numbers if n is not None and n > 0]


def _whole_number(instruction: Instruction) -> int | None:
    """The value of a constant that is one whole number."""
    is_one = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.literal)
    return int(instruction.literal) if is_one else None


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
    for line in _whole_lines(text):
        if current is None:
            found = _COMPUTATION.match(line)
            if found:
                current = computations[found.group(2)] = {}
                entry = found.group(2) if found.group(1) else entry
        elif _END.match(line):
            current = None
        elif instruction := _instruction(line):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text holds no entry computation of an HLO module")
    return Module(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """Lines, of which an instruction's are one: what a Pallas kernel says of itself has lines of its own, "}}" among them."""
    whole = ""
    for line in text.splitlines():
        if any(start.match(line) for start in (_INSTRUCTION, _COMPUTATION, _END)):
            yield whole
            whole = line
        else:
            whole += line
    yield whole


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


def walk(module: Module) -> Iterator[tuple[Instruction, Computation, int]]:
    """Every instruction that runs, fused ones too, with its computation and how often it runs."""
    for name, times in module.executions.items():
        if times:
            for instruction in module.computations[name].values():
                yield instruction, module.computations[name], times
