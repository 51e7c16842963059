"""The layers of an ONNX graph by their place in it, for files whose names tell nothing.

Converters from TensorFlow name arrays after nodes of a graph that they have changed (`Conv__128`), and fold batch
norms into the convolutions before them, or some of them. What stays is how layers follow each other. So they are
numbered by how many layers lie before them at most; of those with as many, the one that more layers follow comes
first. In a residual block that is: its convolutions one after the other, the shortcut's after the first. What comes
after the last layer, as a detector's boxes and their suppression, is passed over.
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
_AS_IT_IS = (1.0, 0.0)


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

    Weights are [O, I, ...], norms as with an epsilon of 1e-5. Where images are scaled before the first layer, `graph.input`
    has the factor and what is added then.

    Args:
        nodes: in the order of the file, in which each comes after those that it reads.
        tensors: the constants among their inputs.

    Raises:
        Refused: numbers are changed in a way that no layer here has.
    """
    layers, scaling = _found(nodes, tensors)
    in_order = sorted(layers, key=lambda layer: (layer.before, -layer.after))
    scaled = {} if scaling == _AS_IT_IS else {"graph.input": LazyArray.of(np.array(scaling, np.float32))}
    return scaled | {
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


def _found(
    nodes: Sequence[Node], tensors: Mapping[str, LazyArray]
) -> tuple[list[_Layer], tuple[float, float]]:
    """The layers in the order of the file, and by what images are multiplied before, and what is added."""
    depth: dict[str, int] = {}
    giver: dict[str, _Layer] = {}  # of a tensor the layer that a norm or a bias after it belongs to
    scaled: dict[str, tuple[float, float]] = {}  # of a tensor before any layer, how it comes from the image
    made: dict[int, _Layer] = {}
    changed: list[int] = []
    scaling = _AS_IT_IS
    for i, node in enumerate(nodes):
        moving = [name for name in node.inputs if name not in tensors]
        before = max((depth.get(name, 0) for name in moving), default=0)
        layer = giver.get(moving[0]) if len(moving) == 1 else None
        given = {scaled.get(name, _AS_IT_IS) for name in moving} - {_AS_IT_IS}
        weight = _weight(node, tensors)
        if weight is not None:
            scaling = next(iter(given), scaling)
            made[i] = layer = _Layer({"weight": weight}, before)
            if len(node.inputs) > 2 and node.inputs[2] in tensors:
                layer.arrays["bias"] = tensors[node.inputs[2]]
            before += 1
        elif (scale := _scaled(node, tensors, given)) and before == 0:
            scaled |= dict.fromkeys(node.outputs, scale)
        elif _joined(node, layer, tensors):
            pass
        else:
            layer = None if node.operator not in _MOVES else layer
            if _changes(node, tensors) or len(given) > 1:
                changed.append(i)
            scaled |= dict.fromkeys(node.outputs, next(iter(given), _AS_IT_IS))
        for name in node.outputs:
            depth[name] = before
            if layer is not None:
                giver[name] = layer
    after = _layers_after(nodes, made)
    for i in changed:
        if after[i]:
            node = nodes[i]
            raise Refused(f"its {node.operator} {node.name[:80]!r} is no part of a layer that can be taken")
    for i, layer in made.items():
        layer.after = after[i]
        layer.arrays.pop("norm.halved", None)
    return list(made.values()), scaling


def _layers_after(nodes: Sequence[Node], made: Mapping[int, _Layer]) -> list[int]:
    """How many layers follow each node at most."""
    after: dict[str, int] = {}
    found = [0] * len(nodes)
    for i, node in reversed(list(enumerate(nodes))):
        found[i] = max((after.get(name, 0) for name in node.outputs), default=0)
        for name in node.inputs:
            after[name] = max(after.get(name, 0), found[i] + (i in made))
    return found


def _weight(node: Node, tensors: Mapping[str, LazyArray]) -> LazyArray | None:
    """[O, I, ...] of a layer, None of anything else."""
    if node.operator not in OPERATORS or len(node.inputs) < 2 or node.inputs[1] not in tensors:
        return None
    weight = tensors[node.inputs[1]]
    if node.operator == "Conv":
        return weight if weight.ndim > 2 else None
    return None if weight.ndim != 2 else weight if node.is_transposed else weight.T


def _joined(node: Node, layer: _Layer | None, tensors: Mapping[str, LazyArray]) -> bool:
    """Whether it is a norm or a bias of a layer, or the half of a norm, which it is put into."""
    if layer is None:
        return False
    constants = [tensors[name] for name in node.inputs if name in tensors]
    sizes, features = [array.size for array in constants], layer.features
    if "norm.halved" in layer.arrays and node.operator == "Add" and sizes == [features]:
        del layer.arrays["norm.halved"]
        layer.arrays["norm.bias"] = constants[0].reshape(features)
        return True
    if layer.arrays.keys() & {"bias", *_NORM}:
        return False
    if node.operator == "BatchNormalization" and sizes == [features] * 4:
        layer.arrays |= dict(zip(_NORM, constants, strict=True))
        layer.arrays[_NORM[-1]] = shifted(constants[-1], node.epsilon - EPSILON)
        return True
    if node.operator == "Add" and sizes == [features]:
        layer.arrays["bias"] = constants[0].reshape(features)
        return True
    if node.operator == "Mul" and sizes == [features] and features > 1:
        # A norm of mean 0 and variance 1, of which what is added comes next, if anything.
        values = (0.0, 0.0, 1.0 - EPSILON)
        rest = [LazyArray.of(np.full(features, value, np.float32)) for value in values]
        layer.arrays |= dict(zip(_NORM, (constants[0].reshape(features), *rest), strict=True))
        layer.arrays["norm.halved"] = rest[0]
        return True
    return False


def _scaled(
    node: Node, tensors: Mapping[str, LazyArray], given: set[tuple[float, float]]
) -> tuple[float, float] | None:
    """Factor and summand of an image after a node that multiplies it by one number or adds one, else None."""
    constant = next((tensors[name] for name in node.inputs if name in tensors), None)
    if node.operator not in _ARITHMETIC or constant is None or constant.size != 1 or not _is_real(constant):
        return None
    if (
        len(node.inputs) != 2
        or len(given) > 1
        or (node.operator in ("Sub", "Div") and node.inputs[0] in tensors)
    ):
        return None
    number = float(np.asarray(constant).reshape(()))
    factor, summand = next(iter(given), _AS_IT_IS)
    if node.operator in ("Add", "Sub"):
        return factor, summand + (number if node.operator == "Add" else -number)
    number = number if node.operator == "Mul" else 1 / number if number else np.inf
    return factor * number, summand * number


def _changes(node: Node, tensors: Mapping[str, LazyArray]) -> bool:
    """Whether it changes numbers by such as are kept."""
    constants = [tensors[name] for name in node.inputs if name in tensors]
    return node.operator == "BatchNormalization" or (
        node.operator in _ARITHMETIC and any(map(_is_real, constants))
    )


def _is_real(array: LazyArray) -> bool:
    """Not of whole numbers, which shapes are computed with."""
    return bool(jnp.issubdtype(array.dtype, np.floating))
