"""Counts what a program asks for: FLOPs from the jaxpr and, independently, from the compiled HLO.

Both count a multiply and an add as 2, products of matrices and convolutions only. A convolution
counts its taps on padding, as closed formulas of models do, but not the zeros that a transposed
convolution puts between its inputs: those are no work of the model's.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from mlperf_jax.planning.hlo import Computation, Instruction, Module, Shape, walk


@dataclasses.dataclass(frozen=True)
class JaxprFlops:
    """FLOPs of a traced program, over all devices.

    Attributes:
        total: everything, loops times their lengths.
        rematerialised: the part of it that computes again what was thrown away (`jax.checkpoint`).
    """

    total: int
    rematerialised: int


def jaxpr_flops(jaxpr: Any) -> JaxprFlops:
    """Counts a (closed) jaxpr; what is computed again is found by the name that jax gives it."""
    return JaxprFlops(*_count(getattr(jaxpr, "jaxpr", jaxpr), again=False))


def _count(jaxpr: Any, *, again: bool) -> tuple[int, int]:
    """FLOPs of a jaxpr, and the part of them that is rematerialised: all, where it is `again` itself."""
    total = repeated = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        here = again or "rematted_computation" in str(equation.source_info.name_stack)
        if name in ("dot_general", "conv_general_dilated"):
            flops = (_dot_equation if name == "dot_general" else _conv_equation)(equation)
            part = flops, flops if here else 0
        elif name == "cond":
            part = max(_count(branch.jaxpr, again=here) for branch in equation.params["branches"])
        elif stated := stated_flops(equation):
            part = stated, stated if here else 0
        else:
            times = _repeats(equation)
            counts = [_count(inner, again=here) for inner in inner_jaxprs(equation.params.values())]
            part = times * sum(c[0] for c in counts), times * sum(c[1] for c in counts)
        total, repeated = total + part[0], repeated + part[1]
    return total, repeated


def _repeats(equation: Any) -> int:
    """How often what is in an equation runs: a scan's length, a kernel's grid, and once on every device of a shard_map."""
    params = equation.params
    if equation.primitive.name == "shard_map":
        axes = next(value for name, value in params.items() if name.endswith("manual_axes"))
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    if equation.primitive.name == "pallas_call":
        return programs_of(equation)
    return params["length"] if equation.primitive.name == "scan" else 1


def programs_of(equation: Any) -> int:
    """How many programs the grid of a Pallas kernel has.

    How many tiles of rows a grouped product ("megablox") visits depends on its groups: counted are as many as its list of them has
    room for, all rows' and one more for each further group.
    """
    listed = [v.aval.size for v in equation.invars if v.aval.ndim == 1 and v.aval.dtype.kind == "i"]
    grid = equation.params["grid_mapping"].grid
    return math.prod(size if isinstance(size, int) else max(listed) for size in grid)


def stated_flops(equation: Any) -> int:
    """What a Pallas kernel says of itself, where how often its loop goes round is not known before it runs; else 0."""
    if equation.primitive.name != "pallas_call" or not equation.params["cost_estimate"]:
        return 0
    turns = any(inner.primitive.name == "while" for inner in equation.params["jaxpr"].eqns)
    return int(equation.params["cost_estimate"].flops) if turns else 0


def inner_jaxprs(values: Iterable[Any]) -> list[Any]:
    """The jaxprs among an equation's parameters."""
    found = []
    for value in values:
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            found.append(value)
    return found


def _dot_equation(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[d] for d in contracted)


def _conv_equation(equation: Any) -> int:
    params = equation.params
    numbers = params["dimension_numbers"]
    (image, kernel), out = (v.aval.shape for v in equation.invars), equation.outvars[0].aval.shape
    taps = math.prod(
        _taps(image[i], out[o], kernel[k], stride, padding[0], hole, gap)
        for i, o, k, stride, padding, hole, gap in zip(
            numbers.lhs_spec[2:],
            numbers.out_spec[2:],
            numbers.rhs_spec[2:],
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    )
    batch, features = (out[d] for d in numbers.out_spec[:2])
    return 2 * batch * features * kernel[numbers.rhs_spec[1]] * taps


def _taps(
    size: int, out: int, kernel: int, stride: int, padding: int, lhs_dilation: int, rhs_dilation: int
) -> int:
    """Products along one dimension: pairs of output and kernel element that do not meet a hole.

    Any two of input, output and kernel element determine the third, so no two sizes' product is
    exceeded: that matters where the compiler swaps input and kernel and pads by the whole image.
    """
    pairs = out * kernel
    if lhs_dilation > 1:
        offsets = ((o * stride + k * rhs_dilation - padding) for o in range(out) for k in range(kernel))
        pairs = sum(offset % lhs_dilation == 0 for offset in offsets)
    return min(pairs, size * kernel, size * out)


def hlo_flops(module: Module) -> int:
    """FLOPs that one device executes in one run of the compiled program, loops times their trips."""
    return sum(
        times * instruction_flops(instruction, computation)
        for instruction, computation, times in walk(module)
        if instruction.opcode in ("dot", "convolution", "custom-call")
    )


def instruction_flops(instruction: Instruction, computation: Computation) -> int:
    """FLOPs of one product or convolution, 0 for anything else."""
    if instruction.opcode == "convolution" or "__cudnn$conv" in instruction.attributes:
        return _convolution_flops(instruction, computation)
    if instruction.opcode == "dot":
        contracted = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims") or "")
    elif "__cublas$" in instruction.attributes:  # stands for a dot: its output is the first of its results
        config = instruction.backend_config.get("gemm_backend_config", {})
        contracted = config.get("dot_dimension_numbers", {}).get("lhs_contracting_dimensions", [])
    else:
        estimate = instruction.backend_config.get("custom_call_config", {}).get("cost_estimate", {})
        return int(estimate.get("flops", 0))  # a Pallas kernel's own
    left = computation[instruction.operands[0]].shapes[0]
    return 2 * instruction.shapes[0].size * math.prod(left.dims[int(d)] for d in contracted)


def _convolution_flops(instruction: Instruction, computation: Computation) -> int:
    """A convolution, or cuDNN's forward one or its gradients, which all do the forward one's products."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if not labels:
        return 0
    operands = [computation[name].shapes[0] for name in instruction.operands[:2]]
    target = instruction.attributes
    if "BackwardInput" in target:
        image, kernel, out = instruction.shapes[0], operands[1], operands[0]
    elif "BackwardFilter" in target:
        image, kernel, out = operands[0], instruction.shapes[0], operands[1]
    else:
        image, kernel, out = operands[0], operands[1], instruction.shapes[0]
    image_labels, kernel_labels, out_labels = labels.groups()
    window = _window(instruction.attribute("window") or "{}")
    taps = 1
    for label in (c for c in kernel_labels if c.isdigit()):
        d, o = kernel_labels.index(label), out_labels.index(label)
        get = window[int(label)] if int(label) < len(window) else {}
        taps *= _taps(
            image.dims[image_labels.index(label)],
            out.dims[o],
            kernel.dims[d],
            get.get("stride", 1),
            get.get("pad", 0),
            get.get("lhs_dilate", 1),
            get.get("rhs_dilate", 1),
        )
    batch, features = out.dims[out_labels.index("b")], out.dims[out_labels.index("f")]
    return 2 * batch * features * kernel.dims[kernel_labels.index("i")] * taps


def _window(text: str) -> list[dict[str, int]]:
    """`{size=3x3 stride=2x2 pad=0_1x0_1}`, one dict for each spatial dimension; of padding the low side."""
    window: dict[int, dict[str, int]] = collections.defaultdict(dict)
    for key, value in re.findall(r"(\w+)=(-?[\w\-]+)", text):
        for d, part in enumerate(value.split("x")):
            number = re.match(r"-?\d+", part)
            if number:
                window[d][key] = int(number.group())
    return [window[d] for d in range(len(window))]


# Instructions that move no data: names for what is already there, or control.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "opt-barrier",
        "iota",
        "partition-id",
        "replica-id",
        "copy-done",
        "slice-done",
        "all-reduce-done",
        "all-gather-done",
        "collective-permute-done",
        "async-done",
        "async-update",
        "send-done",
        "recv-done",
        "domain",
    ]
)


def instruction_bytes(instruction: Instruction, computation: Computation, module: Module) -> float:
    """Bytes that an instruction reads from and writes to the device's main memory, padding included.

    Arrays that the compiler keeps in on-chip memory count nothing, and of an array that is only
    sliced (as the stacked layers of a scan are) only the slice counts.
    """
    if instruction.opcode in _FREE or _names_only(instruction):
        return 0.0
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * _main_memory(instruction.shapes)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _main_memory(computation[instruction.operands[1]].shapes)
    if instruction.opcode == "scatter":  # each update is read, and added to what it meets
        return 3 * _main_memory(computation[instruction.operands[-1]].shapes)
    if instruction.opcode in ("copy-start", "slice-start"):
        source, result = instruction.shapes[:2]
        return min(source.padded_bytes, result.padded_bytes) * ((source.space == 0) + (result.space == 0))
    handed, kept = _handed_on(instruction, module)
    written = _main_memory(shape for i, shape in enumerate(instruction.shapes) if i not in kept)
    read = 0.0
    sliced = _sliced_operands(instruction, module)
    for position, name in enumerate(instruction.operands):
        operand = computation.get(name)
        if operand is None or position in handed:
            continue
        if position in sliced:
            part, in_place = sliced[position]
            read += part
            written -= _main_memory(operand.shapes) - part if in_place else 0
        else:
            read += _main_memory(operand.shapes)
    return read + max(written, 0.0)


def _names_only(instruction: Instruction) -> bool:
    """Whether it is a call of the TPU compiler's own that only makes room or says what something is."""
    if instruction.opcode != "custom-call":
        return False
    target = (instruction.attribute("custom_call_target") or "").strip('"')
    return target in ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")


def _main_memory(shapes: Iterable[Shape]) -> float:
    return sum(shape.padded_bytes for shape in shapes if shape.space == 0)


def _handed_on(instruction: Instruction, module: Module) -> tuple[set[int], set[int]]:
    """Operands and results of a fusion that works beside a collective and only hands its buffers on."""
    if instruction.opcode != "fusion" or not any(
        'chain_id="' in inner.attributes
        for called in instruction.called
        for inner in module.computations[called].values()
    ):
        return set(), set()
    text = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", instruction.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+)", text.group(1)) if text else []
    return {int(operand) for _, operand in pairs}, {int(result or 0) for result, _ in pairs}


def _sliced_operands(instruction: Instruction, module: Module) -> dict[int, tuple[float, bool]]:
    """Operands of a fusion of which it touches only a part: position -> (bytes of it, updated in place)."""
    if instruction.opcode != "fusion":
        return {}
    body = module.computations[instruction.called[0]]
    parts = {
        int(inner.literal): _touched(inner.name, body, module)
        for inner in body.values()
        if inner.opcode == "parameter"
    }
    return {position: part for position, part in parts.items() if part}


def _touched(name: str, body: Computation, module: Module) -> tuple[float, bool] | None:
    """How many bytes of an array the rest of a fusion reads or updates in place; None for all of it."""
    total, in_place = 0.0, False
    users = [inner for inner in body.values() if name in inner.operands]
    for user in users:
        found: tuple[float, bool] | None = None
        first = user.operands[0] == name
        if first and user.opcode in ("dynamic-slice", "gather", "slice"):
            # A gather may round what it reads.
            (read,), (given,) = body[name].shapes, user.shapes
            found = given.padded_bytes * read.itemsize / given.itemsize, False
        elif first and user.opcode == "dynamic-update-slice":
            found = body[user.operands[1]].shapes[0].padded_bytes, True
        elif first and user.opcode == "scatter":
            found = body[user.operands[-1]].shapes[0].padded_bytes, True
        elif user.opcode == "fusion":
            inner = module.computations[user.called[0]]
            places = [str(i) for i, operand in enumerate(user.operands) if operand == name]
            parameters = [i for i in inner.values() if i.opcode == "parameter" and i.literal in places]
            found = _touched(parameters[0].name, inner, module) if len(parameters) == 1 else None
        if found is None:
            return None
        total, in_place = total + found[0], in_place or found[1]
    # Slices that overlap, as shifted images do, are read once.
    return (min(total, body[name].shapes[0].padded_bytes), in_place) if users else None


def hlo_bytes(module: Module) -> float:
    """Bytes that one device moves to and from its main memory in one run of the program."""
    return sum(
        module.executions[name] * instruction_bytes(instruction, module.computations[name], module)
        for name in module.scheduled
        for instruction in module.computations[name].values()
    )
