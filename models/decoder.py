"""Decoders that tell the next token: Llama's, and with windows, norms of queries and keys and experts MLPerf's gpt_oss_20b.

Norms before each sublayer and after the last, no bias anywhere, rotary positions, fewer heads of keys and values than of
queries, and feed-forward networks with a gate (Touvron et al., arXiv:2302.13971; Dubey et al., arXiv:2407.21783). Sources of
the sizes: mlcommons/training, small_llm_pretraining/nemo, llama2_70b_lora and small_llm_moe_pretraining/primus.

A layer is in two halves, up to queries, keys and values, and from what these found on, so that whoever keeps keys and values
of earlier tokens attends between them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models import low_rank
from models.attention import RMSNorm, split
from models.attention_function import CHOICES, attend
from models.attention_mask import Mask
from models.experts import Experts
from models.held import Held, hold
from models.products import product
from models.rotary import Turns, frequencies, turned, turns
from models.stack import LAYER_REMAT, NARROW, drawn, grouped, scan_cached, unstacked


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder.

    Attributes:
        vocab_size: V, tokens.
        width: D, of embeddings and between layers.
        mlp_width: F, inside feed-forward networks, or inside each expert.
        num_heads, num_key_heads: H of queries, G of keys and values; G divides H.
        head_width: K.
        num_layers: of the decoder.
        tied: whether the table of embeddings is also the last product.
        rope_theta, rope_stretch: of rotary positions, see `models.rotary.frequencies`.
        window: tokens that a query sees, itself among them, in the first layer and every `window_every`th; 0 for all.
        window_every: divides the layers.
        query_key_norm: whether queries and keys are normed, head by head.
        num_experts, num_chosen: in the place of each feed-forward network, and for each token; 0 for none.
        epsilon: of norms.
        initializer_range: deviation of first values; of those that lead out of a sublayer it is less by the root of twice
            the layers.
        low_rank, low_rank_alpha, low_rank_dropout: of changes to the products of attention, see `models.low_rank`; rank 0
            for none. What is added is scaled by alpha over the rank.
        attention: a name of `models.attention_function.CHOICES`, for training.
        remat: a name of `models.stack.LAYER_REMAT`.
    """

    vocab_size: int = 128_256
    width: int = 4096
    mlp_width: int = 14_336
    num_heads: int = 32
    num_key_heads: int = 8
    head_width: int = 128
    num_layers: int = 32
    tied: bool = False
    rope_theta: float = 500_000.0
    rope_stretch: float = 8.0
    window: int = 0
    window_every: int = 1
    query_key_norm: bool = False
    num_experts: int = 0
    num_chosen: int = 0
    epsilon: float = 1e-5
    initializer_range: float = 0.02
    low_rank: int = 0
    low_rank_alpha: float = 32.0
    low_rank_dropout: float = 0.1
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self) -> None:
        for name, value, offered in (
            ("attention", self.attention, CHOICES),
            ("remat", self.remat, LAYER_REMAT),
        ):
            if value not in offered:
                raise ValueError(f"{name} {value!r} is none of {', '.join(offered)}")
        for part, name, whole in (
            (self.num_key_heads, "heads of keys", self.num_heads),
            (self.window_every, "layers", self.num_layers),
        ):
            if whole % part:
                raise ValueError(f"{part} {name} do not divide {whole}")
        if self.num_chosen > self.num_experts:
            raise ValueError(f"{self.num_chosen} of {self.num_experts} experts cannot be chosen")

    @classmethod
    def llama31_8b(cls) -> DecoderConfig:
        """Llama 3.1 8B: 8,030,261,248 parameters."""
        return cls()

    @classmethod
    def llama2_70b(cls) -> DecoderConfig:
        """Llama 2 70B: 68,976,648,192 parameters; with low-rank changes of rank 16 there are 44,564,480 more to train."""
        return cls(
            vocab_size=32_000,
            width=8192,
            mlp_width=28_672,
            num_heads=64,
            num_layers=80,
            rope_theta=10_000.0,
            rope_stretch=1.0,
            low_rank=16,
        )

    @classmethod
    def smollm2_135m(cls) -> DecoderConfig:
        """SmolLM2 135M (Allal et al., arXiv:2502.02737): 134,515,008 parameters."""
        return cls(
            vocab_size=49_152,
            width=576,
            mlp_width=1536,
            num_heads=9,
            num_key_heads=3,
            head_width=64,
            num_layers=30,
            tied=True,
            rope_theta=100_000.0,
            rope_stretch=1.0,
        )

    @classmethod
    def gpt_oss_20b(cls) -> DecoderConfig:
        """MLPerf's, which is not OpenAI's of that name: 20,488,418,112 parameters."""
        return cls(
            width=2880,
            mlp_width=2880,
            num_heads=64,
            head_width=64,
            num_layers=24,
            rope_theta=150_000.0,
            rope_stretch=1.0,
            window=129,
            window_every=2,
            query_key_norm=True,
            num_experts=32,
            num_chosen=4,
            epsilon=1e-6,
            initializer_range=0.008,
        )


class Hidden(NamedTuple):
    """What the layers make of rows of tokens.

    Attributes:
        states: [B, L, D], normed, in the compute dtype.
        loads: [layers, B, E] float32, how many tokens of each row chose each expert; None where there are none.
    """

    states: jax.Array
    loads: jax.Array | None


class Linear(nnx.Module):
    """A product with a kernel [*shape_in, *shape_out] over the last axes of its input."""

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        *,
        axes: tuple[str | None, ...],
        deviation: float,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (*shape_in, *shape_out)
        values = initializers.normal(deviation)(rngs.params(), shape, policy.param_dtype)
        self.kernel = nnx.Param(values, axes=axes)
        self.shape_in, self.shape_out = shape_in, shape_out
        self.dtype = policy.compute_dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., *shape_in] to [..., *shape_out] in the compute dtype."""
        batch = x.shape[: x.ndim - len(self.shape_in)]
        x, kernel = x.astype(self.dtype).reshape(*batch, -1), self.kernel.get_value()
        if isinstance(kernel, Held):
            y = kernel.product(x)
        else:
            y = product(x, kernel.astype(self.dtype).reshape(math.prod(self.shape_in), -1))
        return y.reshape(*batch, *self.shape_out)

    def held(self, kernel: jax.Array, weights: str) -> Held:
        """A kernel of it as it is held to be served, in the place of which it goes; see `models.held.hold`."""
        turned = kernel.reshape(math.prod(self.shape_in), -1).T
        return hold(turned, weights, self.dtype)


class SelfAttention(nnx.Module):
    """Projections around attention; what they are changed by, where all else is frozen, beside them."""

    def __init__(self, config: DecoderConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        width, width_out = (config.width,), _deviation_out(config)
        heads, key_heads = ((n, config.head_width) for n in (config.num_heads, config.num_key_heads))
        into, out = ("embed", "heads", "kv"), ("heads", "kv", "embed")
        made: dict[str, Any] = dict(policy=policy, rngs=rngs)
        deviation = config.initializer_range
        self.query = Linear(width, heads, axes=into, deviation=deviation, **made)
        self.key = Linear(width, key_heads, axes=into, deviation=deviation, **made)
        self.value = Linear(width, key_heads, axes=into, deviation=deviation, **made)
        self.out = Linear(heads, width, axes=out, deviation=width_out, **made)
        self.has_norms, self.has_low_rank = config.query_key_norm, config.low_rank > 0
        if self.has_norms:
            norm: dict[str, Any] = dict(epsilon=config.epsilon, axis="kv", policy=policy)
            self.query_norm = RMSNorm(config.head_width, **norm)
            self.key_norm = RMSNorm(config.head_width, **norm)
        if self.has_low_rank:
            made |= dict(
                rank=config.low_rank,
                scale=config.low_rank_alpha / config.low_rank,
                dropout_rate=config.low_rank_dropout,
            )
            shapes = heads, key_heads, key_heads
            self.low_rank_in = low_rank.LowRank(width, shapes, axes_in=into[:1], axes_out=into[1:], **made)
            self.low_rank_out = low_rank.LowRank(heads, [width], axes_in=out[:2], axes_out=out[2:], **made)

    def queries_keys_values(
        self, x: jax.Array, by: Turns, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, L, D] to queries [B, L, H, K], and keys and values [B, L, G, K], the first two normed and turned.

        What a layout splits of the length are the queries; every query sees keys of all.
        """
        parts = [projection(x) for projection in (self.query, self.key, self.value)]
        if self.has_low_rank:
            parts = [a + b for a, b in zip(parts, self.low_rank_in(x, key), strict=True)]
        q, k, v = (checkpoint_name(part, NARROW) for part in parts)
        if self.has_norms:
            q, k = self.query_norm(q), self.key_norm(k)
        q = constrain(turned(q, by), "batch", "position", "heads", None)
        k = constrain(turned(k, by), "batch", None, "heads", None)
        return q, k, constrain(v, "batch", None, "heads", None)

    def combine(self, found: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """What queries found, [B, L, H, K], to [B, L, D]."""
        found = constrain(found, "batch", "position", "heads", None)
        y = self.out(found)
        if self.has_low_rank:
            y += self.low_rank_out(found, key)[0]
        return checkpoint_name(y, NARROW)


class GatedFeedForward(nnx.Module):
    """`silu(x gate) * (x up)` times down (SwiGLU; Shazeer, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        width, mlp = (config.width,), (config.mlp_width,)
        made: dict[str, Any] = dict(policy=policy, rngs=rngs)
        self.gate = Linear(width, mlp, axes=("embed", "mlp"), deviation=config.initializer_range, **made)
        self.up = Linear(width, mlp, axes=("embed", "mlp"), deviation=config.initializer_range, **made)
        self.down = Linear(mlp, width, axes=("mlp", "embed"), deviation=_deviation_out(config), **made)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, L, D] to [B, L, D]."""
        inner = jax.nn.silu(self.gate(x)) * self.up(x)
        return checkpoint_name(self.down(constrain(inner, "batch", "position", "mlp")), NARROW)


class DecoderLayer(nnx.Module):
    """Self-attention and a feed-forward network, each behind a norm and added to its input."""

    def __init__(self, config: DecoderConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        self.attention_norm = RMSNorm(config.width, epsilon=config.epsilon, policy=policy)
        self.attention = SelfAttention(config, policy=policy, rngs=rngs)
        self.mlp_norm = RMSNorm(config.width, epsilon=config.epsilon, policy=policy)
        self.has_experts = config.num_experts > 0
        if self.has_experts:
            self.mlp: Experts | GatedFeedForward = Experts(
                config.width,
                config.mlp_width,
                config.num_experts,
                config.num_chosen,
                deviation=config.initializer_range,
                deviation_out=_deviation_out(config),
                policy=policy,
                rngs=rngs,
            )
        else:
            self.mlp = GatedFeedForward(config, policy=policy, rngs=rngs)

    def queries_keys_values(
        self, x: jax.Array, by: Turns, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of what the layer is given, [B, L, D]; see `SelfAttention`."""
        return self.attention.queries_keys_values(self.attention_norm(x), by, key)

    def finish(
        self, x: jax.Array, found: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """What the layer gives, [B, L, D], of what it was given and of what its queries found, and the experts' load."""
        x = _pin(x + self.attention.combine(found, key))
        added = self.mlp(self.mlp_norm(x))
        added, load = added if isinstance(added, tuple) else (added, None)
        return _pin(x + added), load

    def __call__(
        self, x: jax.Array, by: Turns, mask: Mask, *, choice: str = "auto", key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Maps whole rows [B, L, D] to [B, L, D], and gives the experts' load."""
        keys = split(key, 2)
        q, k, v = self.queries_keys_values(x, by, keys[0])
        return self.finish(x, attend(q, k, v, mask, choice=choice), keys[1])


class Decoder(nnx.Module):
    """Embeddings, layers whose parameters are stacked on a first axis "layers", and the last product."""

    def __init__(self, config: DecoderConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """

        def table(*shape: int) -> jax.Array:
            return initializers.normal(config.initializer_range)(rngs.params(), shape, policy.param_dtype)

        self.config, self.dtype = config, policy.compute_dtype
        self.output_dtype = policy.output_dtype
        self.embedding = nnx.Param(table(config.vocab_size, config.width), axes=("vocab", "embed"))
        self.layers = drawn(
            lambda rngs: DecoderLayer(config, policy=policy, rngs=rngs), rngs, config.num_layers
        )
        self.norm = RMSNorm(config.width, epsilon=config.epsilon, policy=policy)
        if not config.tied:
            self.head = nnx.Param(table(config.width, config.vocab_size), axes=("embed", "vocab"))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """[B, L] int to [B, L, D]."""
        table = self.embedding.get_value()
        if isinstance(table, Held):
            return _pin(table.rows(tokens, self.dtype))
        return _pin(table.astype(self.dtype)[tokens])

    def turns(self, positions: jax.Array) -> Turns:
        """How features turn at positions [L] or [B, L] int."""
        config = self.config
        waves = frequencies(config.head_width, config.rope_theta, config.rope_stretch)
        return turns(positions, waves, self.dtype)

    @property
    def masks(self) -> tuple[Mask, ...]:
        """Who sees whom in layers that take turns: in the first of so many, the second, and so on."""
        config = self.config
        windows = [config.window or None, *[None] * (config.window_every - 1)]
        return tuple(Mask(causal=True, window=window) for window in windows)

    def hidden(self, tokens: jax.Array, *, key: jax.Array | None = None) -> Hidden:
        """What stands at each token for the next.

        Args:
            tokens: [B, L] int.
            key: for dropout, of low-rank changes; None for none.
        """
        config, by = self.config, self.turns(jnp.arange(tokens.shape[1]))
        keys = (
            None
            if key is None
            else jax.random.split(key, (config.num_layers // len(self.masks), len(self.masks)))
        )

        def group(layers: DecoderLayer, x: jax.Array, keys: jax.Array | None) -> tuple[jax.Array, Any]:
            loads: list[jax.Array] = []
            for number, mask in enumerate(self.masks):
                own = None if keys is None else keys[number]
                x, load = unstacked(layers, number)(x, by, mask, choice=config.attention, key=own)
                loads += [] if load is None else [load]
            return x, jnp.stack(loads) if loads else None

        x, loads = scan_cached(
            grouped(self.layers, len(self.masks)),
            group,
            self.embed(tokens),
            keys,
            remat=config.remat,
            unroll=config.remat == "none",
        )
        return Hidden(self.norm(x), None if loads is None else loads.reshape(-1, *loads.shape[2:]))

    @property
    def last_kernel(self) -> jax.Array:
        """Of the product that makes logits of hidden states: [D, V] in the compute dtype."""
        return (self.embedding[...].T if self.config.tied else self.head[...]).astype(self.dtype)

    def logits(self, states: jax.Array) -> jax.Array:
        """[B, L, D] to [B, L, V] in the output dtype."""
        held = (self.embedding if self.config.tied else self.head).get_value()
        if isinstance(held, Held):
            logits = held.product(states, self.output_dtype)
        else:
            logits = jnp.einsum(
                "bld,dv->blv", states, self.last_kernel, preferred_element_type=self.output_dtype
            )
        return constrain(logits, "batch", "position", "vocab")

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the token after each: [B, L] int to [B, L, V]."""
        return self.logits(self.hidden(tokens).states)


def merged(config: DecoderConfig, params: Any) -> Any:
    """Parameters without low-rank changes, with which a decoder tells the same: each is added to the kernel that it changes.

    Args:
        config: of the decoder with changes.
        params: all its parameters. Kernels keep their dtype; sums are in the wider one.
    """
    attention = dict(params["layers"]["attention"])
    into, out = (attention.pop(name) for name in ("low_rank_in", "low_rank_out"))
    changes = [("query", into, 0), ("key", into, 1), ("value", into, 2), ("out", out, 0)]
    for name, change, number in changes:
        kernel, scale = attention[name]["kernel"], config.low_rank_alpha / config.low_rank
        added = jax.vmap(low_rank.kernel)(change["down"], change[f"up_{number}"])
        attention[name] = {"kernel": (kernel + scale * added).astype(kernel.dtype)}
    return params | {"layers": params["layers"] | {"attention": attention}}


def held(layer: DecoderLayer, params: dict[str, Any], weights: str) -> dict[str, Any]:
    """A layer's parameters with its kernels held to be served, but for those of experts and of low-rank changes.

    Args:
        layer: the module, of shapes alone.
        params: of one layer, a tree of arrays.
        weights: one of `models.held.WEIGHTS`.
    """
    params = dict(params)
    for sublayer in ("attention", "mlp"):
        for name, part in vars(getattr(layer, sublayer)).items():
            if isinstance(part, Linear):
                own = {"kernel": part.held(params[sublayer][name]["kernel"], weights)}
                params[sublayer] = params[sublayer] | {name: own}
    return params


def _deviation_out(config: DecoderConfig) -> float:
    return config.initializer_range / math.sqrt(2 * config.num_layers)


def _pin(x: jax.Array) -> jax.Array:
    """Between sublayers a layout may split the length, where tensor parallelism has no axis to split."""
    return constrain(x, "batch", "length", "embed")


def train_flops_per_row(config: DecoderConfig, length: int) -> int:
    """Floating-point operations that the model asks for to train on a row of `length` tokens.

    Products count 2 per multiply-add, three times for training; of the experts those that are chosen. Scores count what
    masks let through; look-ups, norms and the optimizer count nothing. Where there are low-rank changes all else is frozen, and
    has no gradients of its own.
    """
    of_queries, of_keys = (config.head_width * n for n in (config.num_heads, config.num_key_heads))
    attention = 2 * config.width * (of_queries + of_keys)
    mlp = 3 * config.width * config.mlp_width * (config.num_chosen or 1)
    router = config.width * config.num_experts
    per_token = config.num_layers * (attention + mlp + router) + config.width * config.vocab_size
    changes = config.num_layers * config.low_rank * 2 * (config.width + of_queries + of_keys)
    windowed = config.num_layers // config.window_every if config.window else 0
    pairs = windowed * _pairs(length, config.window) + (config.num_layers - windowed) * _pairs(length, length)
    times = 2 if config.low_rank else 3
    return 2 * (length * (times * per_token + 3 * changes) + 3 * 2 * of_queries * pairs)


def _pairs(length: int, window: int) -> int:
    """Of queries and the keys that they see: those up to their own, of the last `window`."""
    full = min(length, window)
    return full * (full + 1) // 2 + (length - full) * window
