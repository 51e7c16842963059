"""BERT (Devlin et al., arXiv:1810.04805): pre-training by masked words and next sentences, and answers as spans.

Source of every choice: mlcommons/training, language_model/tensorflow/bert/modeling.py and run_pretraining.py. Norms
after each sublayer's sum, biases everywhere, learned positions, and the words' table once more as the last product of
masked words. Its GELU is the approximation by a hyperbolic tangent; PyTorch's ports, MLPerf Inference's SQuAD model
and MiniLM among them, have the error function ("erf"). BERT-large with both heads has 336,226,108 parameters.

Rows of a batch may hold several sequences one after the other ("packed"): segment ids say which token belongs to
which, and 0 marks padding. What the reference calls segment ids (sentence A or B) are token types here.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.attention import LayerNorm, split
from models.attention_function import CHOICES, attend
from models.attention_mask import Mask
from models.products import product
from models.random_bits import dropout
from models.stack import LAYER_REMAT, scan, stacked
from models.transformer import segment_positions

GELU = ("tanh", "erf")
FIRST_VALUES = ("drawn", "beside")

_EPSILON = 1e-12  # of norms
_WAVES = np.geomspace(2.5, 0.05, 16)  # radians a place, of `Encoder.look_beside`
_GAIN = 2.5
_WIDER, _SHOWN = 3.0, 0.5


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT.

    Attributes:
        vocab_size: V, subwords.
        width: D, of embeddings and between layers.
        mlp_width: inside feed-forward layers.
        num_heads: H, of every attention; divides the width.
        num_layers: of the encoder.
        num_positions: tokens of the longest row.
        num_types: of tokens: sentence A and sentence B.
        dropout: of embeddings and of what sublayers add.
        attention_dropout: of attention weights.
        gelu: one of `GELU`.
        attention: a name of `models.attention_function.CHOICES`, for training; without a key for dropout "auto".
        remat: a name of `models.stack.LAYER_REMAT`.
        initializer_range: deviation of first values, drawn from within two of it.
        first_values: "drawn", as the reference's are, or "beside": from these narrow models learn sooner, see
            `Encoder.look_beside`.
    """

    vocab_size: int = 30522
    width: int = 1024
    mlp_width: int = 4096
    num_heads: int = 16
    num_layers: int = 24
    num_positions: int = 512
    num_types: int = 2
    dropout: float = 0.1
    attention_dropout: float = 0.1
    gelu: str = "tanh"
    attention: str = "auto"
    remat: str = "none"
    initializer_range: float = 0.02
    first_values: str = "drawn"

    def __post_init__(self) -> None:
        for name, value, offered in (
            ("gelu", self.gelu, GELU),
            ("attention", self.attention, CHOICES),
            ("remat", self.remat, LAYER_REMAT),
            ("first_values", self.first_values, FIRST_VALUES),
        ):
            if value not in offered:
                raise ValueError(f"{name} {value!r} is none of {', '.join(offered)}")
        if self.width % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide a width of {self.width}")
        if self.first_values == "beside" and (
            self.num_heads < 2 or self.width < 2 * len(_WAVES) * self.num_heads
        ):
            raise ValueError(
                f"two heads that look beside their own place are at least {2 * len(_WAVES)} wide each"
            )

    @classmethod
    def large(cls) -> BertConfig:
        """MLPerf's model."""
        return cls()


class Projection(nnx.Module):
    """A product with a kernel [*shape_in, *shape_out] over the last axes of its input, and a bias [*shape_out]."""

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
        """Builds the layer.

        Args:
            shape_in, shape_out: what it maps from and to, both without the axes of the batch.
            axes: what the kernel's axes mean to the layout.
            deviation: of the kernel's first values.
            policy: dtypes.
            rngs: holds the stream "params".
        """
        flat = math.prod(shape_in), math.prod(shape_out)
        kernel = _draw(deviation, rngs, flat, policy).reshape(*shape_in, *shape_out)
        self.kernel = nnx.Param(kernel, axes=axes)
        self.bias = nnx.Param(jnp.zeros(shape_out, policy.param_dtype), axes=axes[len(shape_in) :])
        self.shape_in, self.shape_out = shape_in, shape_out
        self.dtype = policy.compute_dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., *shape_in] to [..., *shape_out] in the compute dtype."""
        batch = x.shape[: x.ndim - len(self.shape_in)]
        features_in, features_out = math.prod(self.shape_in), math.prod(self.shape_out)
        kernel = self.kernel[...].astype(self.dtype).reshape(features_in, features_out)
        y = product(x.astype(self.dtype).reshape(*batch, features_in), kernel)
        return y.reshape(*batch, *self.shape_out) + self.bias[...].astype(self.dtype)


class SelfAttention(nnx.Module):
    """Attention of a sequence to itself; queries, keys and values are parameters of their own, as LAMB sees them."""

    def __init__(self, config: BertConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        width, heads = (config.width,), (config.num_heads, config.width // config.num_heads)

        project = functools.partial(Projection, deviation=config.initializer_range, policy=policy, rngs=rngs)

        def into_heads() -> Projection:
            return project(width, heads, axes=("embed", "heads", "kv"))

        self.query, self.key, self.value = into_heads(), into_heads(), into_heads()
        self.out = project(heads, width, axes=("heads", "kv", "embed"))
        self.rate, self.choice = config.attention_dropout, config.attention

    def __call__(self, x: jax.Array, mask: Mask, key: jax.Array | None) -> jax.Array:
        """Maps [B, L, D] to [B, L, D] under a mask."""
        projected = (projection(x) for projection in (self.query, self.key, self.value))
        q, k, v = (constrain(part, "batch", None, "heads", None) for part in projected)
        choice = "auto" if key is None else self.choice  # evaluation and serving have rows of every length
        found = attend(q, k, v, mask, rate=self.rate, key=key, choice=choice)
        return self.out(constrain(found, "batch", None, "heads", None))


def gelu(x: jax.Array, kind: str) -> jax.Array:
    """Gaussian error linear units (Hendrycks and Gimpel, arXiv:1606.08415), by the name of one of `GELU`.

    The approximation, x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))), with as few numbers beside x as can be: in
    a fusion of YNN's XLA:CPU reads each as an array of x's size.
    """
    if kind == "erf":
        return jax.nn.gelu(x, approximate=False)
    first = math.sqrt(2 / math.pi)
    half = 0.5 * x
    return half + half * jnp.tanh(x * (first + first * 0.044715 * jnp.square(x)))


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each added to its input and then normalised."""

    def __init__(self, config: BertConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        width, mlp = (config.width,), (config.mlp_width,)
        project = functools.partial(Projection, deviation=config.initializer_range, policy=policy, rngs=rngs)
        self.attention = SelfAttention(config, policy=policy, rngs=rngs)
        self.attention_norm = _norm(config, policy)
        self.mlp_in = project(width, mlp, axes=("embed", "mlp"))
        self.mlp_out = project(mlp, width, axes=("mlp", "embed"))
        self.mlp_norm = _norm(config, policy)
        self.dropout_rate, self.gelu = config.dropout, config.gelu

    def __call__(self, x: jax.Array, mask: Mask, key: jax.Array | None) -> jax.Array:
        """Maps [B, L, D] to [B, L, D] under a mask."""
        keys = split(key, 3)
        added = dropout(_pin(self.attention(x, mask, keys[0])), self.dropout_rate, keys[1])
        x = _pin(self.attention_norm(x + added))
        inner = gelu(self.mlp_in(x), self.gelu)
        added = self.mlp_out(constrain(inner, "batch", None, "mlp"))
        return _pin(self.mlp_norm(x + dropout(_pin(added), self.dropout_rate, keys[2])))


class Encoder(nnx.Module):
    """Embeddings and layers, whose parameters are stacked on a first axis "layers"."""

    def __init__(self, config: BertConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        def table(rows: int, axis: str | None) -> nnx.Param:
            values = _draw(config.initializer_range, rngs, (rows, config.width), policy)
            return nnx.Param(values, axes=(axis, "embed"))

        self.config, self.dtype = config, policy.compute_dtype
        self.embedding = table(config.vocab_size, "vocab")
        self.position_embedding = table(config.num_positions, None)
        self.type_embedding = table(config.num_types, None)
        self.embedding_norm = _norm(config, policy)
        layers = [EncoderLayer(config, policy=policy, rngs=rngs) for _ in range(config.num_layers)]
        if config.first_values == "beside":
            self.look_beside(layers[0].attention)
        self.layers = stacked(layers)

    def look_beside(self, first: SelfAttention) -> None:
        """First values with which two heads of the first layer look at the places before and after their own.

        Drawn values let every place look at all others alike, and a narrow model needs many steps to find out that a
        word's neighbours tell most of it. Here the first features hold waves of the position and nothing of words; as
        queries two heads have them turned by a place, back and on, and as keys as they are. All of it is trained;
        tables that are wider than other kernels keep an optimizer that moves every value alike (Adam's do) from
        washing the waves out before words' neighbours are learnt.
        """
        count, rows = 2 * len(_WAVES), self.config.num_positions
        angles = np.arange(rows)[:, None] * _WAVES
        waves = np.zeros((rows, self.config.width))
        waves[:, :count] = np.concatenate([np.sin(angles), np.cos(angles)], 1)
        scale = math.sqrt(2) * _WIDER * self.config.initializer_range
        self.position_embedding[...] = jnp.asarray(scale * waves, self.position_embedding[...].dtype)
        for table in (self.embedding, self.type_embedding):
            table[...] = _WIDER * table[...].at[:, :count].set(0)
        query, key = first.query.kernel, first.key.kernel  # [D, H, D / H]
        for head, places in enumerate((-1, 1)):
            cos, sin = np.diag(np.cos(places * _WAVES)), np.diag(np.sin(places * _WAVES))
            turned = np.block([[cos, -sin], [sin, cos]])
            for kernel, block in ((query, turned), (key, np.eye(count))):
                plain = kernel[...].at[:, head].set(0)
                kernel[...] = plain.at[:count, head, :count].set(_GAIN * block)

    def __call__(
        self, tokens: jax.Array, segment: jax.Array, token_type: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Encodes rows of tokens.

        Args:
            tokens: [B, L] int.
            segment: [B, L] int, numbers of a row's sequences from 1; 0 is padding.
            token_type: [B, L] int, 0 for sentence A and 1 for sentence B.
            key: for dropout; None for none.

        Returns:
            [B, L, D] in the compute dtype; what stands at padding means nothing.

        Raises:
            ValueError: a row is longer than there are positions.
        """
        if tokens.shape[1] > self.config.num_positions:
            raise ValueError(f"a row has {tokens.shape[1]} tokens, of {self.config.num_positions} positions")
        keys = split(key, 2)
        word = self.embedding[...].astype(self.dtype)[tokens]
        position = self.position_embedding[...].astype(self.dtype)[segment_positions(segment)]
        # As a product, so that its gradient is no scatter into two rows.
        kinds = jax.nn.one_hot(token_type, self.config.num_types, dtype=self.dtype)
        x = self.embedding_norm(word + position + kinds @ self.type_embedding[...].astype(self.dtype))
        x = dropout(_pin(x), self.config.dropout, keys[0])
        mask = Mask(segment, segment)

        def layer(module: EncoderLayer, x: jax.Array, key: jax.Array | None) -> jax.Array:
            return module(x, mask, key)

        return scan(self.layers, layer, x, keys[1], remat=self.config.remat)


class PretrainedBert(nnx.Module):
    """The encoder with the heads of pre-training: words that were masked, and whether B follows A."""

    def __init__(self, config: BertConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        width, axes = (config.width,), ("embed", None)
        project = functools.partial(
            Projection, axes=axes, deviation=config.initializer_range, policy=policy, rngs=rngs
        )
        self.encoder = Encoder(config, policy=policy, rngs=rngs)
        self.pooler = project(width, width)
        self.next_sentence = project(width, (2,))
        self.transform = project(width, width)
        self.transform_norm = _norm(config, policy)
        self.bias_vocab = nnx.Param(jnp.zeros(config.vocab_size, policy.param_dtype), axes=("vocab",))
        if config.first_values == "beside":
            # What is told begins near what is shown, with logits no larger than from drawn tables.
            kernel, scale = self.transform.kernel, self.transform_norm.scale
            kernel[...] = kernel[...] + _SHOWN * jnp.eye(config.width, dtype=policy.param_dtype)
            scale[...] = scale[...] / _WIDER
        self.gelu = config.gelu
        self.dtype, self.output_dtype = policy.compute_dtype, policy.output_dtype

    def __call__(
        self,
        tokens: jax.Array,
        segment: jax.Array,
        token_type: jax.Array,
        masked: jax.Array,
        first: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Logits of masked words and of next sentences.

        Args:
            tokens, segment, token_type, key: as `Encoder` takes them.
            masked: [B, P] int, positions in the row of the words to be told; only these go through the large product.
            first: [B, S] int, where in the row each of its sequences begins.

        Returns:
            Of words [B, P, V], and of the classes "is next" and "is random" [B, S, 2]; both in the output dtype.
        """
        x = self.encoder(tokens, segment, token_type, key=key)
        return self.words(_at(x, masked)), self.next_sentence(self.pooled(_at(x, first))).astype(
            self.output_dtype
        )

    def pooled(self, x: jax.Array) -> jax.Array:
        """What stands for a sequence, of its first token: [..., D] to [..., D]."""
        return jnp.tanh(self.pooler(x))

    def words(self, x: jax.Array) -> jax.Array:
        """[B, P, D] to logits [B, P, V]."""
        x = self.transform_norm(gelu(self.transform(x), self.gelu))
        table = self.encoder.embedding[...].astype(self.dtype)
        if self.output_dtype == self.dtype:
            logits = product(x, table.T)
        else:
            logits = jnp.einsum("bpd,vd->bpv", x, table, preferred_element_type=self.output_dtype)
        return constrain(logits + self.bias_vocab[...].astype(self.output_dtype), "batch", None, "vocab")


class SpanBert(nnx.Module):
    """The encoder with a head that says where an answer begins and ends, as SQuAD asks for it."""

    def __init__(self, config: BertConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network; see `PretrainedBert`."""
        self.encoder = Encoder(config, policy=policy, rngs=rngs)
        deviation = config.initializer_range
        self.span = Projection(
            (config.width,), (2,), axes=("embed", None), deviation=deviation, policy=policy, rngs=rngs
        )
        self.output_dtype = policy.output_dtype

    def __call__(
        self, tokens: jax.Array, segment: jax.Array, token_type: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits of begin and end at every token: [B, L, 2] in the output dtype; arguments as `Encoder` has them."""
        x = self.encoder(tokens, segment, token_type, key=key)
        return self.span(x).astype(self.output_dtype)


def _draw(deviation: float, rngs: nnx.Rngs, shape: tuple[int, ...], policy: Policy) -> jax.Array:
    return initializers.truncated_normal(deviation)(rngs.params(), shape, policy.param_dtype)


def _norm(config: BertConfig, policy: Policy) -> LayerNorm:
    return LayerNorm(config.width, epsilon=_EPSILON, policy=policy)


def _pin(x: jax.Array) -> jax.Array:
    """Between sublayers a layout may split the length, where tensor parallelism has no axis to split."""
    return constrain(x, "batch", "length", "embed")


def _at(x: jax.Array, positions: jax.Array) -> jax.Array:
    """[B, P, D] of x [B, L, D] at positions [B, P] of each row."""
    return jnp.take_along_axis(x, positions[..., None], axis=1, mode="clip")


def train_flops_per_row(config: BertConfig, length: int, masked: int) -> int:
    """Floating-point operations that pre-training asks for, of a row of `length` tokens with `masked` to be told.

    Products count 2 per multiply-add, three times for training. Scores count whole rows, as they are
    computed; look-ups, norms, next sentences and the optimizer count nothing.
    """
    width = config.width
    layer = 4 * width**2 + 2 * width * config.mlp_width + 2 * length * width
    head = width**2 + width * config.vocab_size
    return 3 * 2 * (length * config.num_layers * layer + masked * head)
