"""Layers of one kind as one module: their parameters lie on a first axis "layers", and a scan applies them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

NARROW = "narrow"
"""What a model calls products that are no wider than what lies between its layers (`jax.ad_checkpoint.checkpoint_name`)."""

LAYER_REMAT = {
    "none": None,
    "save_products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "save_narrow": jax.checkpoint_policies.save_only_these_names(NARROW),
    "save_nothing": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass finds in memory of a layer: everything; its products with parameters, so that
scores, norms and dropout are computed again; of these the narrow ones, in models that name them; or its input alone, so
that the layer is computed a second time. Not `mlperf_jax.training.gradients.LOSS_REMAT`, whose products are all of them."""

Layer = TypeVar("Layer", bound=nnx.Module)


def stacked(layers: Sequence[Layer]) -> Layer:
    """One module whose variables hold those of all layers, on a new first axis "layers"."""
    graph, _ = nnx.split(layers[0])
    states = [nnx.split(layer)[1] for layer in layers]
    return _named(nnx.merge(graph, jax.tree.map(lambda *values: jnp.stack(values), *states)))


def _named(module: Layer) -> Layer:
    """Says that the first axis of every variable is that of layers."""
    for _, variable in nnx.iter_graph(module):
        if isinstance(variable, nnx.Variable):
            variable.set_metadata(axes=("layers", *variable.get_metadata()["axes"]))
    return module


def drawn(make: Callable[[nnx.Rngs], Layer], rngs: nnx.Rngs, count: int) -> Layer:
    """`stacked` of `count` layers as `make` draws them, traced once however many they are."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    keys = jax.random.split(rngs.params(), count)
    values = jax.vmap(lambda key: nnx.to_pure_dict(nnx.split(make(nnx.Rngs(params=key)))[1]))(keys)
    nnx.replace_by_pure_dict(state, values)
    return _named(nnx.merge(graph, state))


def grouped(layers: Layer, size: int) -> Layer:
    """Of stacked layers as many groups of `size`, whose layers lie on a second axis: for layers that take turns."""
    graph, state = nnx.split(layers)
    return nnx.merge(graph, jax.tree.map(lambda value: value.reshape(-1, size, *value.shape[1:]), state))


def unstacked(layers: Layer, index: int) -> Layer:
    """One of the layers in `stacked`."""
    graph, state = nnx.split(layers)
    return nnx.merge(graph, jax.tree.map(lambda value: value[index], state))


def scan(
    layers: Layer,
    apply: Callable[[Layer, jax.Array, jax.Array | None], jax.Array],
    x: jax.Array,
    key: jax.Array | None,
    *,
    remat: str,
) -> jax.Array:
    """Applies stacked layers one after the other.

    With rematerialisation the compiler sees one layer, in a loop. Without it the layers are unrolled: a loop keeps what
    its backward pass needs in arrays of all layers, which it begins as zeros and writes a part at a time, and on TPUs
    that took a third of the Transformer's step (benchmarks/NOTES.md).

    Args:
        layers: as `stacked` made them.
        apply: (layer, what the one before it gave, key) -> of the same shape.
        x: what the first gets.
        key: each layer has its own of it; None for none.
        remat: one of `LAYER_REMAT`.
    """
    keys = None if key is None else jax.random.split(key, len(jax.tree.leaves(nnx.state(layers))[0]))
    return scan_cached(
        layers,
        lambda layer, x, key: (apply(layer, x, key), None),
        x,
        keys,
        remat=remat,
        unroll=remat == "none",
    )[0]


def scan_cached(
    layers: Layer,
    apply: Callable[[Layer, jax.Array, Any], tuple[jax.Array, Any]],
    x: jax.Array,
    entries: Any,
    *,
    remat: str = "none",
    unroll: bool = False,
) -> tuple[jax.Array, Any]:
    """Applies stacked layers one after the other, each with what was kept for it: for decoding token by token.

    Args:
        layers: as `stacked` made them.
        apply: (layer, what the one before it gave, its entries) -> of the same shape, and what to keep of it.
        x: what the first gets.
        entries: arrays [layers, ...], as the caches of keys and values; they are read only.
        remat: one of `LAYER_REMAT`.
        unroll: whether the compiler sees every layer, rather than one in a loop.

    Returns:
        What the last gives, and what is to be kept of each, [layers, ...]: of one token its own keys and
        values, for the caller to write to their position in the caches at once.
    """
    graph, state = nnx.split(layers)

    def body(x: jax.Array, layer: Any) -> tuple[jax.Array, Any]:
        state, own = layer
        return apply(nnx.merge(graph, state), x, own)

    if remat != "none":
        body = jax.checkpoint(body, policy=LAYER_REMAT[remat], prevent_cse=False)
    return jax.lax.scan(body, x, (state, entries), unroll=unroll)
