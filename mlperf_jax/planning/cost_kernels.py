"""What Pallas kernels cost: compilers estimate no cycles for them, so the jaxpr of each is counted.

On a TPU a program of a kernel's grid works on small arrays in on-chip memory, and its time is that of the matrix
units and of the vector units. Both are counted, and added up rather than laid side by side: of the
attention kernels here, whose schedules libtpu can be made to write (LIBTPU_INIT_ARGS=--xla_jf_dump_to=...),
the sum is within a fifth of the bundles scheduled (benchmarks/NOTES.md).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlperf_jax.parallel.chips import Chip
from mlperf_jax.planning.cost import inner_jaxprs, programs_of, stated_flops
from mlperf_jax.planning.hlo import Instruction, Module, walk

TILES = {"tpu": 128, "gpu": 16}
"""Rows and columns of a matrix unit, to whose multiples a product's contraction and columns are filled up."""

VECTOR_LANES = 4 * 8 * 128
"""Elements that one device's vector units work on in a cycle: four of 8 x 128 in libtpu's schedules for v5e."""

# Views, and what is read or written beside the work.
_FREE = frozenset(
    ["get", "swap", "addupdate", "broadcast_in_dim", "iota", "reshape", "squeeze", "slice", "program_id"]
    + ["num_programs", "bitcast_convert_type", "masked_load", "masked_swap"]
)

Key = tuple[str, tuple[tuple[int, ...], ...], str]
"""A kernel's name, the shapes of its results, and the scope `window_N` that it is in, or "".

A window hides most of what there is, so kernels of one name and one shape do unlike work, one layer this and the next that."""

_SCOPE = re.compile(r"window_\d+")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What one run of a kernel does on one device.

    Attributes:
        matrix: FLOPs of its products, filled up to whole tiles.
        vector: elements that its other operations give, or take where they sum them up.
    """

    matrix: int = 0
    vector: int = 0

    def __add__(self, other: Kernel) -> Kernel:
        return Kernel(self.matrix + other.matrix, self.vector + other.vector)

    def times(self, count: int) -> Kernel:
        return Kernel(self.matrix * count, self.vector * count)

    def seconds(self, chip: Chip) -> float:
        """On a TPU; on a GPU of the products alone."""
        if chip.platform == "gpu":
            return self.matrix / chip.bf16
        return self.matrix / chip.bf16 + self.vector / (VECTOR_LANES * chip.clock)


def kernels(
    jaxpr: Any, known: Mapping[Any, Any] | None = None, *, tile: int = TILES["tpu"], scope: str = ""
) -> dict[Key, Kernel]:
    """The kernels of a (closed) jaxpr; of several with one key the dearest.

    Args:
        jaxpr: the program.
        known: values of variables of it that were there while it was traced, as masks are.
        tile: the chip's, of `TILES`.
        scope: that of the whole jaxpr, of `Key`.
    """
    inside = getattr(jaxpr, "jaxpr", jaxpr)
    known = dict(zip(inside.constvars, getattr(jaxpr, "consts", ()), strict=False)) | dict(known or {})
    found: dict[Key, Kernel] = {}
    for equation in inside.eqns:
        found_scope = _SCOPE.search(str(equation.source_info.name_stack))
        here = found_scope.group() if found_scope else scope
        if equation.primitive.name == "pallas_call":
            params = equation.params
            key = params["name"] or "", tuple(tuple(x.shape) for x in params["out_avals"]), here
            programs = programs_of(equation) * _working(equation, known)
            stated = stated_flops(equation)
            work = Kernel(stated) if stated else _work(params["jaxpr"], tile).times(round(programs))
            one = {key: work}
        else:
            inner = [
                kernels(jaxpr, _handed_on(equation, jaxpr, known), tile=tile, scope=here)
                for jaxpr in inner_jaxprs(equation.params.values())
            ]
            one = {key: kernel for part in inner for key, kernel in part.items()}
        for key, kernel in one.items():
            found[key] = max(found.get(key, kernel), kernel, key=lambda k: k.matrix + k.vector)
    return found


def _handed_on(equation: Any, jaxpr: Any, known: Mapping[Any, Any]) -> dict[Any, Any]:
    """What an inner jaxpr knows: its inputs are an equation's, or the last of them."""
    own = jaxpr.invars
    passed = equation.invars[len(equation.invars) - len(own) :]
    pairs = (
        (mine, known.get(theirs)) for mine, theirs in zip(own, passed, strict=False) if _is_variable(theirs)
    )
    return {mine: value for mine, value in pairs if value is not None and value.shape == mine.aval.shape}


def _is_variable(operand: Any) -> bool:
    return not hasattr(operand, "val")  # as a literal has


def _working(equation: Any, known: Mapping[Any, Any]) -> float:
    """The share of a grid's programs that do anything.

    Splash attention passes over blocks of which its mask lets nothing be seen; its second operand says which, by a 0.
    """
    if not str(equation.params["name"]).startswith("splash_mha"):
        return 1.0
    blocks = equation.invars[1]
    seen = known.get(blocks) if _is_variable(blocks) else None
    return 1.0 if seen is None else float((np.asarray(seen) > 0).mean())


def _work(jaxpr: Any, tile: int) -> Kernel:
    """Of one program; of branches the dearest, and of loops whose length is not known one round."""
    total = Kernel()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += Kernel(matrix=_product(equation, tile))
        elif name == "cond":
            branches = [_work(branch.jaxpr, tile) for branch in equation.params["branches"]]
            total += max(branches, key=lambda k: k.matrix + k.vector)
        elif inner := inner_jaxprs(equation.params.values()):
            rounds = equation.params["length"] if name == "scan" else 1
            for one in inner:
                total += _work(one, tile).times(rounds)
        elif name not in _FREE:
            sizes = [math.prod(v.aval.shape) for v in (*equation.invars, *equation.outvars)]
            total += Kernel(vector=max(sizes, default=0))
    return total


def _product(equation: Any, tile: int) -> int:
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left, right = (v.aval.shape for v in equation.invars)
    depth = math.prod(left[d] for d in contracted)
    rows = math.prod(left) // depth
    columns = math.prod(right) // (depth * math.prod(left[d] for d in batch))
    filled = (-(-size // tile) * tile for size in (depth, columns))
    return 2 * rows * math.prod(filled)


_TRITON = "__gpu$xla.gpu.triton"


def unstated_flops(module: Module, found: dict[Key, Kernel]) -> int:
    """FLOPs that one device executes in kernels of which the compiled program, as those for GPUs, says nothing."""
    return sum(
        times * kernel.matrix
        for instruction, _, times in walk(module)
        if _TRITON in instruction.attributes and (kernel := of_instruction(instruction, found))
    )


def of_instruction(instruction: Instruction, found: dict[Key, Kernel]) -> Kernel | None:
    """What a custom call of a compiled program runs, by its kernel's name, results and scope; None for anything else."""
    marks = ("tpu_custom_call", _TRITON)
    if instruction.opcode != "custom-call" or not any(mark in instruction.attributes for mark in marks):
        return None
    shapes = tuple(shape.dims for shape in instruction.shapes)
    named = {
        scope: kernel
        for (name, of, scope), kernel in found.items()
        if of == shapes and name in instruction.op_name
    }
    scope = _SCOPE.search(instruction.op_name)
    return named.get(scope.group() if scope else "")
