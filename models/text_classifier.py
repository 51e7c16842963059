"""Two classifiers of texts: parallel convolutions, and stacked recurrent layers.

    convolutions    an embedding, windows of several sizes side by side with ELU, the largest of each feature
                    over the text, a linear layer (after Johnson and Zhang, arXiv:1412.1058)
    lstm            an embedding and linear layers that each feed an LSTM, every second one read backwards; the
                    largest of each feature of the last pair, a linear layer (after arXiv:1602.02373)

Nothing crosses the end of a text: what follows it in a row counts as zeros to a window, is skipped by an LSTM, and
is never the largest. Parameters start as PaddlePaddle's do: weights uniform by Glorot and Bengio, biases zero.

Source: mlcommons/training, sentiment_analysis/paddle/train.py, and PaddlePaddle 0.11's fluid.layers.sequence_conv
(context_start is -(size // 2)) and dynamic_lstm (width a quarter of its `size`, with peepholes).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models import lstm
from models.layers import Conv
from models.products import product

_GLOROT = initializers.glorot_uniform()


@dataclasses.dataclass(frozen=True)
class TextClassifierConfig:
    """The shape of a model.

    Attributes:
        vocabulary_size: V.
        network: "convolutions" or "lstm".
        embedding: E.
        features: of each window, or of the linear layers, of which an LSTM's width is a quarter.
        windows: their sizes in words.
        layers: pairs of a linear layer and an LSTM, an odd number.
        dropout: share of the largest features that is dropped before the last layer in training.
        word_dropout: share of words that are taken for the last of the vocabulary, the unknown one, in training.
        classes: that a text may belong to.
    """

    vocabulary_size: int
    network: str
    embedding: int
    features: int
    windows: tuple[int, ...] = (3, 4)
    layers: int = 3
    dropout: float = 0.0
    word_dropout: float = 0.0
    classes: int = 2

    def __post_init__(self) -> None:
        if self.network not in ("convolutions", "lstm"):
            raise ValueError(f"model.network is {self.network!r}, neither 'convolutions' nor 'lstm'")
        if self.network == "lstm" and (self.layers % 2 == 0 or self.features % 4):
            raise ValueError(
                f"model.layers={self.layers} must be odd and model.features={self.features} a multiple of 4"
            )


class Linear(nnx.Module):
    """The sum of products with several inputs [..., I], and a bias [O]."""

    def __init__(
        self, inputs: tuple[int, ...], features: int, *, axis: str | None, policy: Policy, rngs: nnx.Rngs
    ):
        dtype = policy.param_dtype
        self.kernels = nnx.List(
            [nnx.Param(_GLOROT(rngs.params(), (size, features), dtype), axes=(None, axis)) for size in inputs]
        )
        self.bias = nnx.Param(jnp.zeros(features, dtype), axes=(axis,))
        self.dtype = policy.compute_dtype

    def __call__(self, *inputs: jax.Array) -> jax.Array:
        y = self.bias[...].astype(self.dtype)
        for x, kernel in zip(inputs, self.kernels, strict=True):
            y = y + product(x.astype(self.dtype), kernel[...].astype(self.dtype))
        return y


class Convolutions(nnx.Module):
    """Windows side by side: [B, T, E] to the largest features [B, windows * F]."""

    def __init__(self, config: TextClassifierConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        self.convolutions = nnx.List(
            [
                Conv(
                    config.embedding,
                    config.features,
                    (size,),
                    padding=((size // 2, size - 1 - size // 2),),
                    bias=True,
                    kernel_init=_GLOROT,
                    policy=policy,
                    rngs=rngs,
                )
                for size in config.windows
            ]
        )

    def __call__(self, x: jax.Array, length: jax.Array) -> jax.Array:
        return jnp.concatenate([largest(jax.nn.elu(conv(x)), length) for conv in self.convolutions], axis=1)


class PeepholeLSTM(nnx.Module):
    """PaddlePaddle's dynamic_lstm: gates [B, T, 4 H] that are made already, to outputs [B, T, H].

    The cell's state is part of the gates' sums, by one weight for each of its numbers: those of i and f see
    the state before, that of o the state after (Gers and Schmidhuber, 2000). The weights travel with the state,
    which is how `lstm.recurrence` gives their gradient.
    """

    def __init__(self, features: int, *, reverse: bool, policy: Policy, rngs: nnx.Rngs) -> None:
        dtype = policy.param_dtype
        kernel = _GLOROT(rngs.params(), (features, 4 * features), dtype).reshape(features, 4, features)
        self.kernel = nnx.Param(kernel, axes=(None, None, "mlp"))
        self.bias = nnx.Param(jnp.zeros((4, features), dtype), axes=(None, "mlp"))
        self.peepholes = nnx.Param(jnp.zeros((3, features), dtype), axes=(None, "mlp"))
        self.features, self.reverse = features, reverse
        self.dtype = policy.compute_dtype

    def __call__(self, gates: jax.Array, length: jax.Array) -> jax.Array:
        count, time = gates.shape[:2]
        gates = gates.reshape(count, time, 4, self.features).swapaxes(0, 1)
        kernel, bias = (x[...].astype(self.dtype) for x in (self.kernel, self.bias))
        state_dtype = jnp.promote_types(self.dtype, jnp.float32)
        zeros = jnp.zeros((count, self.features), state_dtype)
        weights = [jnp.broadcast_to(w.astype(state_dtype), zeros.shape) for w in self.peepholes[...]]
        real = (jnp.arange(time) < length[:, None]).T
        states = lstm.recurrence(
            _peephole_cell, self.reverse, gates, kernel, bias, (zeros, zeros, *weights), real, None
        )
        return states[0].swapaxes(0, 1).astype(self.dtype)


def _peephole_cell(inputs: lstm.Gates, recurrent: lstm.Gates, state: lstm.State) -> lstm.State:
    """Sums' gates i, f, g, o; state h, c and the three weights."""
    _, c, of_i, of_f, of_o = state
    i, f, g, o = (x.astype(c.dtype) + y.astype(c.dtype) for x, y in zip(inputs, recurrent, strict=True))
    i, f = jax.nn.sigmoid(i + of_i * c), jax.nn.sigmoid(f + of_f * c)
    c = f * c + i * jnp.tanh(g)
    return jax.nn.sigmoid(o + of_o * c) * jnp.tanh(c), c, of_i, of_f, of_o


class StackedLSTM(nnx.Module):
    """Pairs of a linear layer and an LSTM: [B, T, E] to the largest features of the last pair, [B, 5 F / 4]."""

    def __init__(self, config: TextClassifierConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        width, hidden = config.features, config.features // 4
        inputs = [(config.embedding,), *[(width, hidden)] * (config.layers - 1)]
        self.linear = nnx.List([Linear(size, width, axis="mlp", policy=policy, rngs=rngs) for size in inputs])
        self.recurrent = nnx.List(
            [PeepholeLSTM(hidden, reverse=i % 2 == 1, policy=policy, rngs=rngs) for i in range(config.layers)]
        )

    def __call__(self, x: jax.Array, length: jax.Array) -> jax.Array:
        pair: tuple[jax.Array, ...] = (x,)
        for linear, recurrent in zip(self.linear, self.recurrent, strict=True):
            gates = constrain(linear(*pair), "batch", None, None)
            pair = gates, recurrent(gates, length)
        return jnp.concatenate([largest(y, length) for y in pair], axis=1)


class TextClassifier(nnx.Module):
    """Logits of texts."""

    def __init__(self, config: TextClassifierConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        shape = (config.vocabulary_size, config.embedding)
        table = _GLOROT(rngs.params(), shape, policy.param_dtype)
        self.embedding = nnx.Param(table, axes=("vocab", "embed"))
        if config.network == "convolutions":
            self.reader: nnx.Module = Convolutions(config, policy=policy, rngs=rngs)
            features = len(config.windows) * config.features
        else:
            self.reader = StackedLSTM(config, policy=policy, rngs=rngs)
            features = config.features * 5 // 4
        self.last = Linear((features,), config.classes, axis=None, policy=policy, rngs=rngs)
        self.config, self.dtype, self.output_dtype = config, policy.compute_dtype, policy.output_dtype

    def __call__(self, words: jax.Array, length: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Logits [B, classes] in the output dtype.

        Args:
            words: [B, T] int32; what follows a text is not read.
            length: [B] int32, at least 1.
            key: of dropout; None for none, as in evaluation.
        """
        config = self.config
        if key is not None and config.word_dropout:
            lost = jax.random.bernoulli(jax.random.fold_in(key, 1), config.word_dropout, words.shape)
            words = jnp.where(lost, config.vocabulary_size - 1, words)
        table = self.embedding[...].astype(self.dtype)
        inside = _inside(words.shape[1], length)[..., None]
        x = jnp.where(inside, table[words], jnp.zeros((), self.dtype))
        features = constrain(self.reader(constrain(x, "batch", "length", None), length), "batch", None)
        if key is not None and config.dropout:
            kept = jax.random.bernoulli(key, 1 - config.dropout, features.shape)
            features = jnp.where(kept, features / (1 - config.dropout), 0)
        return self.last(features).astype(self.output_dtype)


def largest(x: jax.Array, length: jax.Array) -> jax.Array:
    """The largest of each feature over a text: [B, T, F] to [B, F]."""
    inside = _inside(x.shape[1], length)[..., None]
    return jnp.where(inside, x, jnp.array(-jnp.inf, x.dtype)).max(axis=1)


def _inside(time: int, length: jax.Array) -> jax.Array:
    """Which places of rows of `time` hold text, [B, T] bool."""
    return jnp.arange(time) < length[:, None]


def flops_per_word(config: TextClassifierConfig) -> float:
    """Model FLOPs (2 per multiply-add) of a forward pass for each place of a row; the last layer is nothing to them."""
    if config.network == "convolutions":
        return 2.0 * sum(config.windows) * config.embedding * config.features
    hidden = config.features // 4
    first = config.embedding * config.features
    later = (config.layers - 1) * (config.features + hidden) * config.features
    return 2.0 * (first + later + config.layers * hidden * config.features)
