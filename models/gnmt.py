"""GNMT v2, MLPerf Training's recurrent translator, after Wu et al. (arXiv:1609.08144).

Source of every choice: mlcommons/training, rnn_translator/pytorch/seq2seq/models, and NVIDIA/DeepLearningExamples,
PyTorch/Translation/GNMT, where it lives on. LSTMs of one width, the encoder's first in both directions, residuals
from the third layer on. The decoder's first layer asks the attention (Bahdanau et al., arXiv:1409.0473, with the
normalisation of Salimans and Kingma, arXiv:1602.07868), whose answer all later decoder layers take beside their input.
So every layer reads a whole sentence at once in training. With 32,317 subwords it has 160,665,150 parameters.

Rows of a batch may hold several sentences one after the other ("packed"): segment ids say which token belongs to
which, and 0 marks padding.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.lstm import CHOICES, LSTM, State, uniform
from models.products import product
from models.random_bits import dropout
from models.transformer import segment_positions

_MASKED = -65504.0  # the least float16, as the reference has it
_BLOCK = 16  # target tokens whose energies are in memory at once


@dataclasses.dataclass(frozen=True)
class GNMTConfig:
    """Sizes of a GNMT.

    Attributes:
        vocab_size: V, subwords, 0 (padding) among them.
        width: D, of embeddings, layers and attention.
        num_layers: of the encoder, and of the decoder; at least two.
        dropout: of the inputs of layers.
        start: the token that stands before a target's first.
        attention_gain: of energies at first; 0 for width**-0.5, as the reference has it.
        embedding_spread: embeddings are drawn from within so far of 0.
        forget_bias: what is added to the bias of forget gates at first.
        lstm: a name of `models.lstm.CHOICES`.
        variant: "v2", or "tensorflow" for the model that MLPerf Inference measured (see `mlperf_jax.weights.gnmt`),
            which is served only: its decoder begins where the encoder ended, feeds its attention to the first layer
            too, and has a table of its own; its source has no start and no end.
    """

    vocab_size: int = 32317
    width: int = 1024
    num_layers: int = 4
    dropout: float = 0.2
    start: int = 2
    attention_gain: float = 0.0
    embedding_spread: float = 0.1
    forget_bias: float = 0.0
    lstm: str = "auto"
    variant: str = "v2"

    def __post_init__(self) -> None:
        if self.lstm not in CHOICES:
            raise ValueError(f"lstm {self.lstm!r} is none of {', '.join(CHOICES)}")
        if self.variant not in ("v2", "tensorflow"):
            raise ValueError(f"variant {self.variant!r} is neither v2 nor tensorflow")
        if self.num_layers < 2:
            raise ValueError(
                f"num_layers {self.num_layers} must be at least 2, the layer that attends and one after it"
            )


class Attention(nnx.Module):
    """Normalised Bahdanau attention: of query q and key k the energy is `gain * v / |v| . tanh(q + k + bias)`."""

    def __init__(self, width: int, gain: float, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the layer.

        Args:
            width: D, of queries, keys and inside.
            gain: at first.
            policy: dtypes; energies and weights are at least float32.
            rngs: holds the stream "params".
        """
        draw, dtype = uniform(_spread(width)), policy.param_dtype
        self.query = nnx.Param(draw(rngs.params(), (width, width), dtype), axes=("embed", "mlp"))
        self.key = nnx.Param(draw(rngs.params(), (width, width), dtype), axes=("embed", "mlp"))
        self.vector = nnx.Param(draw(rngs.params(), (width,), dtype), axes=("mlp",))
        self.gain = nnx.Param(jnp.full(1, gain, dtype), axes=(None,))
        self.bias = nnx.Param(jnp.zeros(width, dtype), axes=("mlp",))
        self.dtype = policy.compute_dtype
        self.score_dtype = jnp.promote_types(policy.compute_dtype, jnp.float32)

    def keys(self, encoded: jax.Array) -> jax.Array:
        """What energies are made of: [B, M, D] of the encoded source [B, M, D]."""
        return product(encoded, self.key[...].astype(self.dtype)) + self.bias[...].astype(self.dtype)

    def __call__(
        self, x: jax.Array, keys: jax.Array, encoded: jax.Array, seen: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Attends to the source.

        Args:
            x: [B, L, D].
            keys: of the source, see `keys`.
            encoded: [B, M, D].
            seen: [B, L, M] or [B, 1, M] bool.

        Returns:
            What was found [B, L, D], and weights [B, L, M].
        """
        queries = product(x, self.query[...].astype(self.dtype))
        vector = self.vector[...].astype(self.score_dtype)
        vector = vector * (self.gain[...].astype(self.score_dtype) / jnp.linalg.norm(vector))
        energies = jnp.where(seen, _energies(queries, keys, vector), _MASKED)
        weights = jax.nn.softmax(energies)
        return jnp.einsum("blm,bmd->bld", weights.astype(self.dtype), encoded), weights


def _energies(queries: jax.Array, keys: jax.Array, vector: jax.Array) -> jax.Array:
    """`vector . tanh(query + key)`, [B, L, M], of queries [B, L, D] and keys [B, M, D].

    The sums inside, [B, L, M, D], would be the largest array of all: some target tokens at a time are
    computed, and again in the backward pass.
    """

    def block(queries: jax.Array) -> jax.Array:
        inside = jnp.tanh(queries[:, :, None] + keys[:, None])
        return jnp.einsum("blmd,d->blm", inside, vector.astype(inside.dtype)).astype(vector.dtype)

    batch, length, width = queries.shape
    if length <= _BLOCK:
        return block(queries)
    padded = jnp.pad(queries, ((0, 0), (0, -length % _BLOCK), (0, 0)))
    blocks = padded.reshape(batch, -1, _BLOCK, width).swapaxes(0, 1)
    energies = jax.lax.map(jax.checkpoint(block), blocks)
    return energies.swapaxes(0, 1).reshape(batch, -1, keys.shape[1])[:, :length]


class GNMT(nnx.Module):
    """Encoder, decoder and classifier over one table of embeddings."""

    def __init__(self, config: GNMTConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.config = config
        self.dtype, self.output_dtype = policy.compute_dtype, policy.output_dtype
        width, vocab_size, dtype = config.width, config.vocab_size, policy.param_dtype
        draw = uniform(_spread(width))
        self.feeds_attention = config.variant == "tensorflow"

        def table() -> nnx.Param:
            drawn = uniform(config.embedding_spread)(rngs.params(), (vocab_size, width), dtype)
            return nnx.Param(drawn, axes=("vocab", "embed"))

        self.embedding = table()
        if self.feeds_attention:
            self.target_embedding = table()

        def layer(features_in: int, bidirectional: bool = False) -> LSTM:
            return LSTM(
                features_in,
                width,
                bidirectional=bidirectional,
                forget_bias=config.forget_bias,
                init=draw,
                choice=config.lstm,
                policy=policy,
                rngs=rngs,
            )

        later = range(config.num_layers - 2)
        self.encoder = nnx.List([layer(width, True), layer(2 * width), *(layer(width) for _ in later)])
        gain = config.attention_gain or width**-0.5
        self.attention = Attention(width, gain, policy=policy, rngs=rngs)
        first = layer(2 * width if self.feeds_attention else width)
        self.decoder = nnx.List([first, *(layer(2 * width) for _ in range(config.num_layers - 1))])
        # As PyTorch's linear layers start.
        draw = uniform(width**-0.5)
        self.kernel = nnx.Param(draw(rngs.params(), (width, vocab_size), dtype), axes=("embed", "vocab"))
        self.bias = nnx.Param(draw(rngs.params(), (vocab_size,), dtype), axes=("vocab",))

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
            target: [B, L] int tokens.
            target_segment: [B, L] int, as of the source; the same number belongs together.
            key: for dropout; None for none.

        Returns:
            [B, L, vocab_size] in the output dtype.

        Raises:
            ValueError: the variant is served only.
        """
        if self.feeds_attention:
            raise ValueError("the tensorflow variant of GNMT is served only")
        keys = [None] * 2 if key is None else list(jax.random.split(key))
        encoded = self.encode(source, source_segment, key=keys[0])
        drops = self._drops(keys[1])
        before = jnp.pad(target, ((0, 0), (1, 0)))[:, :-1]
        before = jnp.where(segment_positions(target_segment) == 0, self.config.start, before)
        seen = target_segment[:, :, None] == source_segment[:, None, :]
        x, _ = self.decoder[0](self._embedded(before), segments=target_segment)
        found, _ = self.attention(x, self.attention.keys(encoded), encoded, seen)
        for n, layer in enumerate(self.decoder[1:], 1):
            inputs = jnp.concatenate([dropout(x, self.config.dropout, drops[n]), found], -1)
            y, _ = layer(inputs, segments=target_segment)
            x = _pin(x + y if n > 1 else y)
        return self._logits(x)

    def encode(
        self, source: jax.Array, segment: jax.Array | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Encodes source tokens [B, M] with segments [B, M], or one sentence a row: [B, M, D]."""
        return self._encoded(source, segment, key)[0]

    def _encoded(
        self, source: jax.Array, segment: jax.Array | None, key: jax.Array | None
    ) -> tuple[jax.Array, list[State]]:
        """`encode`, and the states in which the layers ended; of the first the direction from the end."""
        x, drops, ends = self._embedded(source), self._drops(key), []
        lengths = (source > 0).sum(1) if segment is None else None
        for n, layer in enumerate(self.encoder):
            y, states = layer(dropout(x, self.config.dropout, drops[n]), lengths, segments=segment)
            x = _pin(x + y if n > 1 else y)
            ends.append(states[-1])
        return x, ends

    def decoder_step(self, source: jax.Array, beams: int) -> tuple[Any, Any]:
        """What `mlperf_jax.decoding.coverage_search` needs to translate whole sentences, without dropout.

        Args:
            source: [B, M] int tokens, one sentence a row, padded with 0.
            beams: K.

        Returns:
            The state before the first token, each of its arrays [B, K, D], and `step`.
        """
        rows, width = source.shape[0], self.config.width
        text = _without_marks(source) if self.feeds_attention else source
        encoded, ends = self._encoded(text, None, None)
        keys, seen = self.attention.keys(encoded), (text > 0)[:, None]
        starts = ends if self.feeds_attention else [layer.start(rows)[0] for layer in self.decoder]

        def flat(x: jax.Array) -> jax.Array:
            return x.reshape(rows * beams, -1)

        def each_beam(x: jax.Array) -> jax.Array:
            return x.reshape(rows, beams, -1)

        def step(tokens: jax.Array, state: Any) -> tuple[jax.Array, jax.Array, Any]:
            """(tokens [B, K], state) -> (logits [B, K, V], attention [B, K, M], state)."""
            states, found = jax.tree.map(flat, state)
            x = flat(self._embedded(tokens, of_target=True))
            inputs = jnp.concatenate([x, found], -1) if self.feeds_attention else x
            x, after = self.decoder[0].step(inputs, states[0])
            found, weights = self.attention(each_beam(x), keys, encoded, seen)
            found, new = flat(found), [after]
            for n, layer in enumerate(self.decoder[1:], 1):
                y, after = layer.step(jnp.concatenate([x, found], -1), states[n])
                x = x + y if n > 1 else y
                new.append(after)
            return self._logits(each_beam(x)), weights, jax.tree.map(each_beam, (new, found))

        def for_beams(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x[:, None], (rows, beams, width))

        return jax.tree.map(for_beams, (starts, jnp.zeros((rows, width), self.dtype))), step

    def _drops(self, key: jax.Array | None) -> list[Any]:
        """A key for the input of each layer of a side."""
        layers = self.config.num_layers
        return [None] * layers if key is None else list(jax.random.split(key, layers))

    def _embedded(self, tokens: jax.Array, *, of_target: bool = False) -> jax.Array:
        """[B, L] to [B, L, D]; token 0 is the zero vector."""
        table = self.target_embedding if of_target and self.feeds_attention else self.embedding
        rows = table[...].astype(self.dtype)[tokens]
        return _pin(jnp.where((tokens > 0)[..., None], rows, jnp.zeros((), self.dtype)))

    def _logits(self, x: jax.Array) -> jax.Array:
        """[B, L, D] to [B, L, V]."""
        logits = product(x, self.kernel[...].astype(self.dtype)).astype(self.output_dtype)
        return constrain(logits + self.bias[...].astype(self.output_dtype), "batch", None, "vocab")


def _spread(width: int) -> float:
    """Parameters are drawn from within so far of 0: 0.1 at the reference's width, and of sums as much at others."""
    return 0.1 * (1024 / width) ** 0.5


def _without_marks(source: jax.Array) -> jax.Array:
    """Sentences [B, M] without their first and last tokens."""
    last = (source > 0).sum(1, keepdims=True) - 1
    inside = jnp.where(jnp.arange(source.shape[1]) < last, source, 0)
    return jnp.pad(inside[:, 1:], ((0, 0), (0, 1)))


def _pin(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", None, "embed")


def train_flops_per_row(config: GNMTConfig, length: int) -> int:
    """Floating-point operations that the model asks for to train on a row of `length` source and target tokens.

    Products count 2 per multiply-add, three times for training; of the attention the sum over D of every energy
    and of what is found. Look-ups, cells and the optimizer count nothing.
    """
    d, layers = config.width, config.num_layers
    square = 4 * d * d  # what one input of width D, or the state, is multiplied with
    encoder = 4 * square + 3 * square + (layers - 2) * 2 * square
    decoder = 2 * square + (layers - 1) * 3 * square
    attention = 2 * d * d + 2 * length * d
    return 3 * 2 * length * (encoder + decoder + attention + d * config.vocab_size)
