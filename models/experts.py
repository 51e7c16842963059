"""A mixture of experts: of many feed-forward networks each token goes through the few that a router chooses for it.

Nothing is dropped and nothing is padded to a capacity: tokens are sorted by their experts, and each expert's rows are
multiplied by its own kernels (Gale et al., arXiv:2211.15841). The router is a product without bias, the chosen are those of
the largest logits, and they weigh by the softmax over these alone, as in MLPerf's gpt_oss_20b. Source: AMD-AGI/Primus,
configs/models/megatron/gpt_oss_20B.yaml.

Where a layout splits the experts over few devices, the devices that hold parts of them gather their tokens, each puts them all
through the experts that it has, and the sums go back to where the tokens are from. Over more devices than a token chooses experts
that would send more than there is to be computed: there each pair of a token and an expert goes to the device that has the
expert, and comes back (`models.row_exchange`).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers

from mlperf_jax.ordering import ordered
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.layout import together
from mlperf_jax.precision import Policy
from models.grouped_product import grouped_product
from models.row_exchange import exchanged


class Experts(nnx.Module):
    """Networks of two products and a gate, `silu(x gate) * (x up)` times down, and their router."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        num_experts: int,
        num_chosen: int,
        *,
        deviation: float,
        deviation_out: float,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer.

        Args:
            width: D.
            mlp_width: F, inside each expert.
            num_experts: E.
            num_chosen: experts for each token.
            deviation, deviation_out: of first values, the second of those that lead out.
            policy: dtypes.
            rngs: holds the stream "params".
        """

        def kernel(deviation: float, *shape: int) -> jax.Array:
            return initializers.normal(deviation)(rngs.params(), shape, policy.param_dtype)

        of_experts = ("expert", "embed", "mlp")
        self.router = nnx.Param(kernel(deviation, width, num_experts), axes=("embed", None))
        self.gate = nnx.Param(kernel(deviation, num_experts, width, mlp_width), axes=of_experts)
        self.up = nnx.Param(kernel(deviation, num_experts, width, mlp_width), axes=of_experts)
        down = kernel(deviation_out, num_experts, mlp_width, width)
        self.down = nnx.Param(down, axes=("expert", "mlp", "embed"))
        self.num_experts, self.num_chosen = num_experts, num_chosen
        self.dtype = policy.compute_dtype
        self.score_dtype = jnp.promote_types(policy.compute_dtype, jnp.float32)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps [B, L, D] to [B, L, D], and tells the load: how many tokens of each row chose each expert, [B, E] float32."""
        chosen, weights = self.route(x)
        load = (chosen[..., None] == jnp.arange(self.num_experts)).sum((1, 2), dtype=jnp.float32)
        kernels = [kernel[...].astype(self.dtype) for kernel in (self.gate, self.up, self.down)]
        return _on_each_device(x.astype(self.dtype), chosen, weights.astype(self.dtype), kernels), load

    def route(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The experts of each token [B, L, N] int32, and their weights, which add up to 1, at least float32."""
        router = self.router[...].astype(self.score_dtype)
        largest, chosen = lax.top_k(x.astype(self.score_dtype) @ router, self.num_chosen)
        return chosen, jax.nn.softmax(largest)


def _on_each_device(
    x: jax.Array, chosen: jax.Array, weights: jax.Array, kernels: Sequence[jax.Array]
) -> jax.Array:
    """What the experts give of tokens [B, L, D]: every device its own tokens, or those of its group, and its own experts."""
    layout = layouts.active()
    if layout is None or layout.mesh.size == 1:
        return _through_experts(x, chosen, weights, kernels, jnp.zeros((), jnp.int32), kernels[0].shape[0])
    tokens = layout.spec(x.shape, ("batch", "position", None))
    rows = together(tokens[0] if tokens else None)
    into, out = (
        layout.spec(kernels[n].shape, axes)
        for n, axes in ((0, ("expert", None, "mlp")), (2, ("expert", "mlp", None)))
    )
    of_experts, of_mlp = (together(entry) for entry in (*into, None, None, None)[0:3:2])
    num_experts = kernels[0].shape[0]

    def local(x: jax.Array, chosen: jax.Array, weights: jax.Array, *kernels: jax.Array) -> jax.Array:
        gathered = [axis for axis in of_experts if axis in rows]
        if len(gathered) == len(of_experts) == 1 and lax.axis_size(gathered[0]) > chosen.shape[-1]:
            y = _through_experts_elsewhere(x, chosen, weights, kernels, num_experts, gathered[0])
            return lax.psum(y, of_mlp) if of_mlp else y
        for axis in reversed(gathered):
            x, chosen, weights = (lax.all_gather(part, axis, tiled=True) for part in (x, chosen, weights))
        first = layouts.index_along(layout, of_experts) * kernels[0].shape[0]
        y = _through_experts(x, chosen, weights, kernels, first, num_experts)
        for axis in gathered:
            y = lax.psum_scatter(y, axis, tiled=True)
        rest = tuple(axis for axis in (*of_experts, *of_mlp) if axis not in gathered)
        return lax.psum(y, rest) if rest else y

    mapped = jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(tokens, tokens, tokens, into, into, out),
        out_specs=tokens,
        check_vma=False,
    )
    return mapped(x, chosen, weights, *kernels)


def _through_experts(
    x: jax.Array,
    chosen: jax.Array,
    weights: jax.Array,
    kernels: Sequence[jax.Array],
    first: jax.Array,
    num_experts: int,
) -> jax.Array:
    """What some of the experts add of tokens.

    Args:
        x: [B, L, D].
        chosen, weights: [B, L, N].
        kernels: gate and up [G, D, F] and down [G, F, D] of the experts `first` to `first` + G.
        first: [] int32.
        num_experts: of all.
    """
    gate, up, down = kernels
    own, width = gate.shape[0], x.shape[-1]
    number = (chosen.reshape(-1) - first) % num_experts  # those of the experts here come first
    order = _order(number, num_experts)
    sizes = (number[:, None] == jnp.arange(own)).sum(0, dtype=jnp.int32)
    here = jnp.arange(len(order)) < sizes.sum()

    def masked(rows: jax.Array) -> jax.Array:
        """Without what belongs to experts that are elsewhere."""
        return rows if own == num_experts else jnp.where(here[:, None], rows, 0)

    def product(rows: jax.Array, kernels: jax.Array) -> jax.Array:
        return masked(grouped_product(rows, kernels, sizes))

    rows = masked(x.reshape(-1, width)[order // chosen.shape[-1]])
    found = product(jax.nn.silu(product(rows, gate)) * product(rows, up), down)
    each = found[_order(order, len(order))].reshape(*chosen.shape, width)
    return (each * weights[..., None]).sum(-2)


def _order(numbers: jax.Array, count: int) -> jax.Array:
    """`jnp.argsort` of numbers [N] from 0 to `count` - 1, of equal ones the first first: int32 [N]."""
    places = jnp.arange(len(numbers), dtype=jnp.int32)
    return ordered(numbers.astype(jnp.int32), places, (count - 1, len(numbers) - 1))[1]


def _through_experts_elsewhere(
    x: jax.Array,
    chosen: jax.Array,
    weights: jax.Array,
    kernels: Sequence[jax.Array],
    num_experts: int,
    axis: str,
) -> jax.Array:
    """What all experts give of this device's tokens [B, L, D], where each device of a mesh axis has as many of them.

    Args:
        x: [B, L, D].
        chosen, weights: [B, L, N].
        kernels: of this device's G experts, as in `_through_experts`.
        num_experts: of all.
        axis: its name.
    """
    own, width, count = kernels[0].shape[0], x.shape[-1], chosen.shape[-1]
    asked = chosen.reshape(-1)
    order = _order(asked, num_experts)  # by expert, so by device too
    loads = (asked[:, None] == jnp.arange(num_experts)).sum(0, dtype=jnp.int32)
    loads = lax.all_gather(loads, axis).reshape(-1, num_experts // own, own)  # [from, to, expert there]
    sizes = loads.sum(2)
    room = len(sizes) * len(order)  # all could choose the same expert
    came = exchanged(x.reshape(-1, width)[order // count], sizes, room, axis)

    # What came lies by device, and of each by expert: as tokens that chose one expert each.
    here = loads[:, lax.axis_index(axis)]
    place = jnp.searchsorted(jnp.cumsum(here.reshape(-1)), jnp.arange(room), side="right")
    number = jnp.where(place < here.size, place % own, num_experts - 1)  # behind what came, elsewhere
    ones = jnp.ones((1, room, 1), x.dtype)
    y = _through_experts(came[None], number[None, :, None], ones, kernels, jnp.int32(0), num_experts)
    found = exchanged(y[0], sizes.T, len(order), axis)
    each = found[_order(order, len(order))].reshape(*chosen.shape, width)
    return (each * weights[..., None]).sum(-2)
