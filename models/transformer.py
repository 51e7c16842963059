"""The Transformer for translation (Vaswani et al., arXiv:1706.03762), as MLPerf Training's reference has it.

Source of every choice: mlcommons/training, retired_benchmarks/transformer/tensorflow/transformer/model.
Norms before each sublayer and after each stack, no bias in attention, one table of embeddings for
source, target and logits, scaled by the root of its width, sines and cosines of positions. The big
model with 33,708 subwords has 210,804,736 parameters.

Rows of a batch may hold several sentences one after the other ("packed"): segment ids say which token
belongs to which, and 0 marks padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.attention import Attention, FeedForward, LayerNorm, position_encoding, split
from models.attention_function import CHOICES
from models.attention_mask import Mask
from models.products import product
from models.random_bits import dropout
from models.stack import LAYER_REMAT, scan, stacked, unstacked


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a Transformer.

    Attributes:
        vocab_size: subwords, 0 (padding) and 1 (end of sentence) among them.
        width: D, of embeddings and between layers.
        mlp_width: inside feed-forward layers.
        num_heads: of every attention.
        num_layers: of the encoder, and of the decoder.
        dropout: of embeddings and of what sublayers add.
        attention_dropout: of attention weights.
        relu_dropout: inside feed-forward layers.
        attention: a name of `models.attention_function.CHOICES`, for training; without a key for dropout "auto".
        remat: a name of `models.stack.LAYER_REMAT`.
    """

    vocab_size: int = 33708
    width: int = 1024
    mlp_width: int = 4096
    num_heads: int = 16
    num_layers: int = 6
    dropout: float = 0.1
    attention_dropout: float = 0.1
    relu_dropout: float = 0.1
    attention: str = "auto"
    remat: str = "none"

    def __post_init__(self) -> None:
        if self.attention not in CHOICES:
            raise ValueError(f"attention {self.attention!r} is none of {', '.join(CHOICES)}")
        if self.remat not in LAYER_REMAT:
            raise ValueError(f"remat {self.remat!r} is none of {', '.join(LAYER_REMAT)}")

    @classmethod
    def big(cls) -> TransformerConfig:
        """MLPerf's model."""
        return cls()


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self, config: TransformerConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        self.attention_norm = LayerNorm(config.width, policy=policy)
        self.attention = _attention(config, to_self=True, policy=policy, rngs=rngs)
        self.mlp_norm = LayerNorm(config.width, policy=policy)
        self.mlp = _feed_forward(config, policy=policy, rngs=rngs)
        self.dropout_rate = config.dropout

    def __call__(self, x: jax.Array, mask: Mask, key: jax.Array | None) -> jax.Array:
        """Maps [B, L, D] to [B, L, D] under a mask."""
        keys = split(key, 4)
        q, k, v = self.attention.queries_keys_values(self.attention_norm(x))
        x = x + dropout(_pin(self.attention.attend(q, k, v, mask, keys[0])), self.dropout_rate, keys[1])
        x = x + dropout(_pin(self.mlp(self.mlp_norm(x), keys[2])), self.dropout_rate, keys[3])
        return _pin(x)


class DecoderLayer(nnx.Module):
    """Self-attention, attention to the source and feed-forward, each behind a norm and added to its input."""

    def __init__(self, config: TransformerConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        self.attention_norm = LayerNorm(config.width, policy=policy)
        self.attention = _attention(config, to_self=True, policy=policy, rngs=rngs)
        self.source_norm = LayerNorm(config.width, policy=policy)
        self.source_attention = _attention(config, to_self=False, policy=policy, rngs=rngs)
        self.mlp_norm = LayerNorm(config.width, policy=policy)
        self.mlp = _feed_forward(config, policy=policy, rngs=rngs)
        self.dropout_rate = config.dropout

    def __call__(
        self, x: jax.Array, source: jax.Array, mask: Mask, source_mask: Mask, key: jax.Array | None
    ) -> jax.Array:
        """Maps [B, L, D] to [B, L, D], under masks of itself and of a source [B, M, D]."""
        keys = split(key, 6)
        q, k, v = self.attention.queries_keys_values(self.attention_norm(x))
        x = x + dropout(_pin(self.attention.attend(q, k, v, mask, keys[0])), self.dropout_rate, keys[1])
        q, (k, v) = (
            self.source_attention.queries(self.source_norm(x)),
            self.source_attention.keys_values(source),
        )
        x = x + dropout(
            _pin(self.source_attention.attend(q, k, v, source_mask, keys[2])), self.dropout_rate, keys[3]
        )
        x = x + dropout(_pin(self.mlp(self.mlp_norm(x), keys[4])), self.dropout_rate, keys[5])
        return _pin(x)

    def decode(
        self,
        x: jax.Array,
        source: Sequence[jax.Array],
        source_mask: jax.Array,
        past: Sequence[jax.Array],
        past_mask: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One token of each of K beams, which is attended to together with the past.

        Args:
            x: [B, K, D].
            source: keys [B, H, W, M] and values [B, H, M, W] of the source, the same for all beams.
            source_mask: [B, M] bool, what of it is no padding.
            past: keys [B, H, W, P] and values [B, H, P, W] of what beams decoded so far.
            past_mask: [B, K, P] bool, what of it belongs to a beam's own past.

        Returns:
            [B, K, D], and the tokens' own keys and values [B, K, H, W].
        """
        attention = self.attention
        q, k, v = attention.queries_keys_values(self.attention_norm(x))
        past_scores = attention.scores(q, past[0], past_mask)
        own = jnp.einsum("bkhw,bkhw->bhk", q, k, preferred_element_type=attention.score_dtype)
        weights = jax.nn.softmax(jnp.concatenate([past_scores, own[..., None]], -1)).astype(attention.dtype)
        heads = jnp.einsum("bhkp,bhpw->bhkw", weights[..., :-1], past[1]).swapaxes(1, 2)
        x = x + attention.combine(heads + weights[..., -1].swapaxes(1, 2)[..., None] * v)
        attention = self.source_attention
        scores = attention.scores(attention.queries(self.source_norm(x)), source[0], source_mask[:, None])
        weights = jax.nn.softmax(scores).astype(attention.dtype)
        heads = jnp.einsum("bhkm,bhmw->bhkw", weights, source[1])
        x = x + attention.combine(heads.swapaxes(1, 2))
        return x + self.mlp(self.mlp_norm(x)), (k, v)


class Transformer(nnx.Module):
    """Encoder and decoder, each with the parameters of its layers stacked on a first axis "layers"."""

    def __init__(self, config: TransformerConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.config = config
        self.dtype, self.output_dtype = policy.compute_dtype, policy.output_dtype
        table = initializers.normal(config.width**-0.5)(
            rngs.params(), (config.vocab_size, config.width), policy.param_dtype
        )
        self.embedding = nnx.Param(table, axes=("vocab", "embed"))

        layers = range(config.num_layers)
        self.encoder = stacked([EncoderLayer(config, policy=policy, rngs=rngs) for _ in layers])
        self.encoder_norm = LayerNorm(config.width, policy=policy)
        self.decoder = stacked([DecoderLayer(config, policy=policy, rngs=rngs) for _ in layers])
        self.decoder_norm = LayerNorm(config.width, policy=policy)

    def __call__(
        self,
        source: jax.Array,
        source_segment: jax.Array,
        target: jax.Array,
        target_segment: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of every target token given those before it and the source.

        Args:
            source: [B, M] int tokens.
            source_segment: [B, M] int, numbers of the sentences from 1; 0 is padding.
            target: [B, L] int tokens; each sentence ends with 1.
            target_segment: [B, L] int, as of the source; the same number belongs together.
            key: for dropout; None for none.

        Returns:
            [B, L, vocab_size] in the output dtype.
        """
        encoder_key, decoder_key = split(key, 2)
        encoded = self.encode(source, source_segment, key=encoder_key)
        positions = segment_positions(target_segment)
        before = jnp.pad(target, ((0, 0), (1, 0)))[:, :-1]
        before = jnp.where(positions == 0, 0, before)  # token 0 stands for "nothing yet"
        mask = Mask(target_segment, target_segment, causal=True)
        source_mask = Mask(target_segment, source_segment)
        keys = split(decoder_key, 2)
        x = dropout(self._embed(before, positions), self.config.dropout, keys[0])

        def layer(module: DecoderLayer, x: jax.Array, key: jax.Array | None) -> jax.Array:
            return module(x, encoded, mask, source_mask, key)

        x = scan(self.decoder, layer, x, keys[1], remat=self.config.remat)
        return self._logits(self.decoder_norm(x))

    def encode(self, source: jax.Array, segment: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Encodes source tokens [B, M] with segments [B, M]: [B, M, D]."""
        keys = split(key, 2)
        x = dropout(self._embed(source, segment_positions(segment)), self.config.dropout, keys[0])
        mask = Mask(segment, segment)

        def layer(module: EncoderLayer, x: jax.Array, key: jax.Array | None) -> jax.Array:
            return module(x, mask, key)

        return self.encoder_norm(scan(self.encoder, layer, x, keys[1], remat=self.config.remat))

    def decoder_step(self, source: jax.Array, length: int, beams: int) -> tuple[Any, Callable[..., Any]]:
        """What beam search needs to translate whole sentences, without dropout.

        Args:
            source: [B, M] int tokens, one sentence a row, padded with 0.
            length: L, the most tokens of an answer.
            beams: K.

        Returns:
            The empty cache of keys and values, and `step` as `mlperf_jax.decoding.beam_search` takes it.
        """
        there = source > 0
        encoded = self.encode(source, there.astype(jnp.int32))
        layers = [unstacked(self.decoder, n) for n in range(self.config.num_layers)]
        of_source = [as_decoded(*layer.source_attention.keys_values(encoded)) for layer in layers]
        heads = self.config.num_heads, layers[0].attention.head_width
        empty = jnp.zeros((len(source), length * beams, *heads), self.dtype)
        cache = [as_decoded(empty, empty) for _ in layers]
        encoding = jnp.asarray(position_encoding(length, self.config.width), self.dtype)

        def step(
            tokens: jax.Array, position: jax.Array, ancestors: jax.Array, cache: Any
        ) -> tuple[jax.Array, Any]:
            x = self._embedded(tokens) + encoding[position]
            own = ancestors[..., None] == jnp.arange(beams)  # [B, K, L, K]: whose entries are a beam's past
            past_mask = (own & (jnp.arange(length) < position)[:, None]).reshape(*ancestors.shape[:2], -1)
            new_cache = []
            for layer, source_entries, entries in zip(layers, of_source, cache, strict=True):
                x, new = layer.decode(x, source_entries, there, entries, past_mask)
                keys, values = (
                    jax.lax.dynamic_update_slice_in_dim(entry, part, position * beams, axis)
                    for entry, part, axis in zip(entries, as_decoded(*new), (3, 2), strict=True)
                )
                new_cache.append((keys, values))
            return self._logits(self.decoder_norm(x)), new_cache

        return cache, step

    def _embedded(self, tokens: jax.Array) -> jax.Array:
        """[B, L] to [B, L, D]; token 0 is the zero vector."""
        rows = self.embedding[...].astype(self.dtype)[tokens]
        rows = rows * jnp.asarray(self.config.width**0.5, self.dtype)
        return jnp.where((tokens > 0)[..., None], rows, jnp.zeros((), self.dtype))

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        encoding = jnp.asarray(position_encoding(tokens.shape[1], self.config.width), self.dtype)
        return _pin(self._embedded(tokens) + encoding[positions])

    def _logits(self, x: jax.Array) -> jax.Array:
        """[B, L, D] to [B, L, V]."""
        table = self.embedding[...].astype(self.dtype)
        if self.output_dtype == self.dtype:
            logits = product(x, table.T)
        else:
            logits = jnp.einsum("bld,vd->blv", x, table, preferred_element_type=self.output_dtype)
        return constrain(logits, "batch", None, "vocab")


def as_decoded(keys: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, P, H, W] each, as `DecoderLayer.decode` takes them: [B, H, W, P] and [B, H, P, W].

    So products of few queries read them; otherwise all would be turned round at every token.
    """
    turned = keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2)
    keys, values = (constrain(part, "batch", "heads", None, None) for part in turned)
    return keys, values


def segment_positions(segment: jax.Array) -> jax.Array:
    """Position of each token in its sentence: [B, L] segments to [B, L] int32 from 0."""
    index = jnp.arange(segment.shape[1], dtype=jnp.int32)
    starts = jnp.pad(segment, ((0, 0), (1, 0)), constant_values=-1)[:, :-1] != segment
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def _pin(x: jax.Array) -> jax.Array:
    """Between sublayers a layout may split the length, where tensor parallelism has no axis to split."""
    return constrain(x, "batch", "length", "embed")


def _attention(config: TransformerConfig, *, to_self: bool, policy: Policy, rngs: nnx.Rngs) -> Attention:
    return Attention(
        config.width,
        config.num_heads,
        to_self=to_self,
        dropout_rate=config.attention_dropout,
        choice=config.attention,
        policy=policy,
        rngs=rngs,
    )


def _feed_forward(config: TransformerConfig, *, policy: Policy, rngs: nnx.Rngs) -> FeedForward:
    return FeedForward(
        config.width, config.mlp_width, dropout_rate=config.relu_dropout, policy=policy, rngs=rngs
    )


def train_flops_per_row(config: TransformerConfig, length: int) -> int:
    """Floating-point operations that the model asks for to train on a row of `length` source and target
    tokens.

    Products count 2 per multiply-add, three times for training. Scores count whole rows, as they are
    computed; look-ups, norms and the optimizer count nothing.
    """
    attention, mlp = 4 * config.width**2, 2 * config.width * config.mlp_width
    per_token = config.num_layers * (3 * attention + 2 * mlp) + config.width * config.vocab_size
    scores = config.num_layers * 3 * 2 * length * config.width
    return 3 * 2 * length * (per_token + scores)
