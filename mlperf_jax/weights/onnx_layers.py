"""The layers of an ONNX graph by their place in it, for files whose names tell nothing.

Converters from TensorFlow name arrays after nodes of a graph that they have changed (`Conv__128`), and fold batch
norms into the convolutions before them, or some of them. What stays is how layers follow each other. So they are
numbered by how many layers lie before them at most; of those with as many, the one that more layers follow comes
first. In a residual block that is: its convolutions one after the other, the shortcut's after the first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from mlperf_jax.errors import Refused
from mlperf_jax.weights.lazy import LazyArray, shifted

OPERATORS = ("Conv", "Gemm", "MatMul")
"""Of nodes that have weights."""

EPSILON = 1e-5
"""ONNX's and PyTorch's, added to a variance."""

# What only moves numbers, so that a bias may still come after it.
_MOVES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Dropout", "Cast")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
_NORM = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")


@dataclasses.dataclass(frozen=True)
class Node:
    """What is needed of a NodeProto.

    Attributes:
        name: as the exporter calls it.
        operator: Conv, Add, ...
        inputs, outputs: names of tensors.
        epsilon: of a BatchNormalization.
        is_transposed: whether a Gemm's weights are [outputs, inputs].
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    epsilon: float = EPSILON
    is_transposed: bool = False


@dataclasses.dataclass
class _Layer:
    """Arrays as PyTorch has them, by what they are to the layer; and how many layers lie before and after it."""

    arrays: dict[str, LazyArray]
    before: int
    after: int = 0

    @property
    def features(self) -> int:
        return self.arrays["weight"].shape[0]


def numbered(nodes: Sequence[Node], tensors: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The arrays of all layers: graph.0.weight, graph.0.bias, graph.0.norm.running_var, ...

    Weights are [O, I, ...], norms as with an epsilon of 1e-5.

    Args:
        nodes: in the order of the file, in which each comes after those that it reads.
        tensors: the constants among their inputs.

    Raises:
        Refused: numbers are changed in a way that no layer here has.
    """
    layers = _found(nodes, tensors)
    in_order = sorted(layers, key=lambda layer: (layer.before, -layer.after))
    return {
        f"graph.{i}.{part}": array for i, layer in enumerate(in_order) for part, array in layer.arrays.items()
    }


def scales(nodes: Sequence[Node], tensors: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """What a norm that is frozen became: of a convolution whose weights are X.weight X.scale and X.shift, [O] both.

    PyTorch's exporter computes torchvision's FrozenBatchNorm2d beforehand, as far as it needs no image: a product with a
    constant comes after the convolution, and a sum with another.

    Args:
        nodes: in the order of the file.
        tensors: the constants among their inputs.
    """
    found: dict[str, LazyArray] = {}
    giver: dict[str, tuple[str, int]] = {}  # of a tensor the convolution, and its features
    for node in nodes:
        constants = [name for name in node.inputs if name in tensors]
        weight = node.inputs[1] if len(node.inputs) > 1 else ""
        if node.operator == "Conv" and weight.endswith(".weight") and weight in constants:
            following = (
                weight.removesuffix(".weight"),
                tensors[weight].shape[0] if tensors[weight].shape else 0,
            )
        elif node.operator in ("Mul", "Add") and len(node.inputs) == 2 and len(constants) == 1:
            (moving,) = (name for name in node.inputs if name not in tensors)
            conv, features = giver.get(moving, ("", 0))
            part = f"{conv}.{'scale' if node.operator == 'Mul' else 'shift'}"
            if tensors[constants[0]].size != features or part in found:
                continue
            found[part] = tensors[constants[0]].reshape(features)
            following = conv, features
        else:
            continue
        giver |= dict.fromkeys(node.outputs, following)
    return {name: array for name, array in found.items() if name.rpartition(".")[0] + ".scale" in found}


def _found(nodes: Sequence[Node], tensors: Mapping[str, LazyArray]) -> list[_Layer]:
    depth: dict[str, int] = {}
    giver: dict[str, _Layer] = {}  # of a tensor the layer that a norm or a bias after it belongs to
    made: dict[int, _Layer] = {}
    for i, node in enumerate(nodes):
        moving = [name for name in node.inputs if name not in tensors]
        before = max((depth.get(name, 0) for name in moving), default=0)
        layer = giver.get(moving[0]) if len(moving) == 1 else None
        weight = _weight(node, tensors)
        if weight is not None:
            made[i] = layer = _Layer({"weight": weight}, before)
            if len(node.inputs) > 2 and node.inputs[2] in tensors:
                layer.arrays["bias"] = tensors[node.inputs[2]]
            before += 1
        elif node.operator not in _MOVES and not _joined(node, layer, tensors):
            layer = None
        for name in node.outputs:
            depth[name] = before
            if layer is not None:
                giver[name] = layer
    after: dict[str, int] = {}
    for i, node in reversed(list(enumerate(nodes))):
        following = max((after.get(name, 0) for name in node.outputs), default=0)
        if i in made:
            made[i].after = following
            following += 1
        for name in node.inputs:
            after[name] = max(after.get(name, 0), following)
    return list(made.values())


def _weight(node: Node, tensors: Mapping[str, LazyArray]) -> LazyArray | None:
    """[O, I, ...] of a layer, None of anything else."""
    if node.operator not in OPERATORS or len(node.inputs) < 2 or node.inputs[1] not in tensors:
        return None
    weight = tensors[node.inputs[1]]
    if node.operator == "Conv":
        return weight if weight.ndim > 2 else None
    return None if weight.ndim != 2 else weight if node.is_transposed else weight.T


def _joined(node: Node, layer: _Layer | None, tensors: Mapping[str, LazyArray]) -> bool:
    """Whether it is a norm or a bias of a layer, which it is put into.

    Raises:
        Refused: it is neither, and changes numbers by such as are kept.
    """
    constants = [tensors[name] for name in node.inputs if name in tensors]
    sizes = [array.size for array in constants]
    is_norm = node.operator == "BatchNormalization"
    if not is_norm and (node.operator not in _ARITHMETIC or not any(map(_is_real, constants))):
        return False
    if layer is not None and not layer.arrays.keys() & {"bias", *_NORM}:
        features = layer.features
        if is_norm and sizes == [features] * 4:
            layer.arrays |= dict(zip(_NORM, constants, strict=True))
            layer.arrays[_NORM[-1]] = shifted(constants[-1], node.epsilon - EPSILON)
            return True
        if node.operator == "Add" and sizes == [features]:
            layer.arrays["bias"] = constants[0].reshape(features)
            return True
    raise Refused(f"its {node.operator} {node.name[:80]!r} is no part of a layer that can be taken")


def _is_real(array: LazyArray) -> bool:
    """Not of whole numbers, which shapes are computed with."""
    return bool(jnp.issubdtype(array.dtype, np.floating))
