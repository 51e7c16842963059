"""RNN-T, MLPerf's recogniser of speech: a recurrent neural network transducer (Graves, arXiv:1211.3711).

Source of every choice: mlcommons/training, rnn_speech_recognition/pytorch/rnnt/model.py and common/rnn.py. An encoder of
LSTMs reads features, puts frames together after its first layers, and reads on; a prediction network of LSTMs reads the
symbols said so far; a joint network adds both and has a class for every symbol, and the last one for nothing, the blank.
With 1,023 pieces of words it has 49,006,080 parameters. The model that MLPerf Inference measures writes characters and
has a narrower prediction network: 45,323,549, of which 512 are a bias too many (the checkpoint's joint network is one
layer over both inputs).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.platform import compiled_for
from mlperf_jax.precision import Policy
from models import random_bits, sound
from models.lstm import CHOICES, LSTM, State, uniform
from models.products import product

_FORGET = 1  # an LSTM's forget gate


@dataclasses.dataclass(frozen=True)
class RNNTConfig:
    """Sizes of an RNN-T.

    Attributes:
        features: of a frame.
        classes: V + 1, symbols and the blank, which is the last.
        encoder_width, layers_before, stack, layers_after: the encoder's LSTMs, how many are before `stack` frames become
            one, and how many after.
        prediction_width, prediction_layers: LSTMs.
        joint_width: J.
        encoder_dropout, prediction_dropout: of the outputs of LSTMs.
        joint_dropout: of what the classes are computed from.
        init_scale: what freshly drawn LSTMs are multiplied with, their biases among them.
        forget_bias: of forget gates, before that.
        joint_frames: of which the joint network's classes are in memory at once.
        lstm: a name of `models.lstm.CHOICES`.
    """

    features: int = 240
    classes: int = 1024
    encoder_width: int = 1024
    layers_before: int = 2
    stack: int = 2
    layers_after: int = 3
    prediction_width: int = 512
    prediction_layers: int = 2
    joint_width: int = 512
    encoder_dropout: float = 0.1
    prediction_dropout: float = 0.3
    joint_dropout: float = 0.3
    init_scale: float = 1.0
    forget_bias: float = 1.0
    joint_frames: int = 16
    lstm: str = "auto"

    def __post_init__(self) -> None:
        if self.lstm not in CHOICES:
            raise ValueError(f"lstm {self.lstm!r} is none of {', '.join(CHOICES)}")

    @property
    def blank(self) -> int:
        """The class of nothing."""
        return self.classes - 1


class Linear(nnx.Module):
    """A dense layer as PyTorch starts it."""

    def __init__(
        self, features_in: int, features: int, axes: tuple[str, str], *, policy: Policy, rngs: nnx.Rngs
    ) -> None:
        """Builds the layer.

        Args:
            features_in, features: sizes.
            axes: logical axes of both.
            policy: dtypes.
            rngs: holds the stream "params".
        """
        draw, dtype = uniform(features_in**-0.5), policy.param_dtype
        self.kernel = nnx.Param(draw(rngs.params(), (features_in, features), dtype), axes=axes)
        self.bias = nnx.Param(draw(rngs.params(), (features,), dtype), axes=axes[1:])
        self.dtype = policy.compute_dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., I] to [..., O] in the compute dtype."""
        return product(x.astype(self.dtype), self.kernel[...].astype(self.dtype)) + self.bias[...].astype(
            self.dtype
        )


class RNNT(nnx.Module):
    """Encoder, prediction network and joint network."""

    def __init__(self, config: RNNTConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.config = config
        self.dtype, self.output_dtype = policy.compute_dtype, policy.output_dtype

        def layers(features_in: int, width: int, count: int) -> nnx.List:
            widths = [features_in] + [width] * (count - 1)
            made = [LSTM(w, width, choice=config.lstm, policy=policy, rngs=rngs) for w in widths]
            for layer in made:
                _start(layer, config)
            return nnx.List(made)

        width, joint = config.encoder_width, config.joint_width
        self.before = layers(config.features, width, config.layers_before)
        self.after = layers(config.stack * width, width, config.layers_after)
        table = jax.random.normal(
            rngs.params(), (config.classes - 1, config.prediction_width), policy.param_dtype
        )
        self.embedding = nnx.Param(table, axes=("vocab", "embed"))
        self.prediction = layers(config.prediction_width, config.prediction_width, config.prediction_layers)
        self.of_encoder = Linear(width, joint, ("embed", "mlp"), policy=policy, rngs=rngs)
        self.of_prediction = Linear(
            config.prediction_width, joint, ("embed", "mlp"), policy=policy, rngs=rngs
        )
        self.classes = Linear(joint, config.classes, ("embed", "vocab"), policy=policy, rngs=rngs)

    def __call__(
        self,
        features: jax.Array,
        frames: jax.Array,
        symbols: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the transducer's loss asks for.

        Args:
            features: [B, T, features].
            frames: [B] int, what of each row is no padding.
            symbols: [B, U] int, the transcript.
            key: for dropout; None for none.

        Returns:
            Log probabilities of the blank [B, T', U + 1] and of the next symbol [B, T', U] in the output dtype, and
            frames [B] of the encoder's.
        """
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        encoded, frames = self.encode(features, frames, key=keys[0])
        predicted = self.predict(symbols, key=keys[1])
        blank, label = self.log_probabilities(encoded, predicted, symbols, key=keys[2])
        return blank, label, frames

    def encode(
        self, features: jax.Array, frames: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Features [B, T, F] of utterances of frames [B] to what the joint network adds, [B, T', J], and frames [B]."""
        config = self.config
        keys = [None, None] if key is None else list(jax.random.split(key))
        x = _through(self.before, features, config.encoder_dropout, keys[0])
        # Frames beyond an utterance's last would else be part of its last one after stacking.
        x = jnp.where(sound.real(x.shape[1], frames)[..., None], x, jnp.zeros((), x.dtype))
        x, frames = sound.spliced(x, frames, config.stack)
        x = _through(self.after, x, config.encoder_dropout, keys[1])
        return self.of_encoder(x), frames

    def predict(self, symbols: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Symbols [B, U] to what the joint network adds after so many of them, [B, U + 1, J]."""
        x = jnp.pad(self._embedded(symbols), ((0, 0), (1, 0), (0, 0)))
        return self.of_prediction(_through(self.prediction, x, self.config.prediction_dropout, key))

    def log_probabilities(
        self,
        encoded: jax.Array,
        predicted: jax.Array,
        symbols: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Log probabilities of the blank and of each next symbol.

        All classes of all points of the lattice, [B, T, U + 1, V + 1], would be the largest array by far: those of some
        frames at a time are computed, and again in the backward pass. Of 64 utterances of 16.7 s, slowed to 19.6, and 110
        pieces they are 9.5 GB in float32, of 16 frames 0.47 GB; what is kept of the lattice is 19 MB.

        Args:
            encoded: [B, T, J].
            predicted: [B, U + 1, J].
            symbols: [B, U] int.
            key: for dropout; None for none.

        Returns:
            [B, T, U + 1] and [B, T, U] in the output dtype.
        """
        size = min(self.config.joint_frames, encoded.shape[1])
        batch, length, width = encoded.shape
        padded = jnp.pad(encoded, ((0, 0), (0, -length % size), (0, 0)))
        blocks = padded.reshape(batch, -1, size, width).swapaxes(0, 1)
        count = len(blocks)
        seeds = None if key is None else jax.random.bits(key, (count, 2), jnp.uint32)
        following = jnp.pad(symbols, ((0, 0), (0, 1)))[:, None]

        def block(entries: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
            frames, seed = entries
            hidden = jax.nn.relu(frames[:, :, None] + predicted[:, None])
            if seed is not None:
                hidden = random_bits.dropped(hidden, self.config.joint_dropout, seed)
            points, hidden = hidden.shape[:-1], hidden.reshape(-1, width)
            if compiled_for() == "gpu":
                # Else XLA makes what has four axes a part of the product, for which it then finds no tiles.
                hidden = jax.lax.optimization_barrier(hidden)
            logits = self.classes(hidden).astype(self.output_dtype)
            logits = constrain(logits, "batch", "vocab")
            total = jax.nn.logsumexp(logits, axis=-1)
            # A mask and a sum rather than a gather: they fuse, and stay on the devices that hold their part of V.
            wanted = jnp.broadcast_to(following, points).reshape(-1, 1)
            said = jnp.where(jnp.arange(logits.shape[-1]) == wanted, logits, 0).sum(-1)
            blank, label = ((x - total).reshape(points) for x in (logits[:, -1], said))
            return blank, label[:, :, :-1]

        found = jax.lax.map(jax.checkpoint(block), (blocks, seeds))
        blank, label = (x.swapaxes(0, 1).reshape(batch, count * size, -1)[:, :length] for x in found)
        return blank, label

    def predict_first(self, batch: int) -> tuple[jax.Array, list[State]]:
        """What the joint network adds before any symbol, [B, J], and the states after that."""
        nothing = jnp.zeros((batch, self.config.prediction_width), self.dtype)
        return self._predict_step(nothing, [layer.start(batch)[0] for layer in self.prediction])

    def predict_next(self, symbols: jax.Array, states: list[State]) -> tuple[jax.Array, list[State]]:
        """The same after one more symbol [B]."""
        return self._predict_step(self._embedded(symbols), states)

    def _predict_step(self, x: jax.Array, states: list[State]) -> tuple[jax.Array, list[State]]:
        after = []
        for layer, state in zip(self.prediction, states, strict=True):
            x, state = layer.step(x, state)
            after.append(state)
        return self.of_prediction(x), after

    def joint(self, encoded: jax.Array, predicted: jax.Array) -> jax.Array:
        """Logits [B, V + 1] in the output dtype of a frame [B, J] after some symbols [B, J]."""
        return self.classes(jax.nn.relu(encoded + predicted)).astype(self.output_dtype)

    def _embedded(self, symbols: jax.Array) -> jax.Array:
        return constrain(
            self.embedding[...].astype(self.dtype)[symbols], "batch", *[None] * (symbols.ndim - 1), "embed"
        )


def _start(layer: LSTM, config: RNNTConfig) -> None:
    """Gives a new LSTM the biases and the scale that the reference's begin with."""
    for direction in layer.directions:
        bias = direction.bias[...].at[_FORGET].set(config.forget_bias)
        direction.bias.set_value(bias * config.init_scale)
        for kernel in (direction.kernel, direction.recurrent):
            kernel.set_value(kernel[...] * config.init_scale)


def _through(layers: nnx.List, x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """[B, T, I] through LSTMs, with dropout after each: [B, T, H]."""
    keys = [None] * len(layers) if key is None else list(jax.random.split(key, len(layers)))
    for layer, of_layer in zip(layers, keys, strict=True):
        x, _ = layer(x)
        x = random_bits.dropout(constrain(x, "batch", None, "embed"), rate, of_layer)
    return x


def train_flops_per_utterance(config: RNNTConfig, frames: float, symbols: float) -> float:
    """Floating-point operations that the model asks for to train on an utterance of so many frames and symbols.

    Products count 2 per multiply-add, three times for training. Cells, look-ups and the lattice count nothing.
    """

    def layers(features_in: int, width: int, count: int) -> int:
        return 4 * width * (features_in + width + (count - 1) * 2 * width)

    width, joint, after = config.encoder_width, config.joint_width, frames / config.stack
    encoder = frames * layers(config.features, width, config.layers_before)
    encoder += after * (layers(config.stack * width, width, config.layers_after) + width * joint)
    prediction: Any = layers(config.prediction_width, config.prediction_width, config.prediction_layers)
    prediction = (symbols + 1) * (prediction + config.prediction_width * joint)
    return 3 * 2 * (encoder + prediction + after * (symbols + 1) * joint * config.classes)
