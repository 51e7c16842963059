"""Translation: a sentence of one language in, of another out; quality is uncased BLEU of beam search."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipelines.text import subwords
from input_pipelines.text.parallel_text import TranslationDataset
from mlperf_jax.decoding import beam_search
from mlperf_jax.errors import UserError
from mlperf_jax.metrics.bleu import bleu
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.results.events import WithMetadata
from mlperf_jax.supervised import Loss, SupervisedWorkload
from mlperf_jax.training import schedules
from mlperf_jax.training.engine import Engine
from mlperf_jax.workload import NO_NOTES, Batch, Evaluation, Notes, Program, State
from models import random_bits
from models.attention_function import choose
from models.transformer import Transformer, TransformerConfig, train_flops_per_row


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def smoothed_cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy with label smoothing, less the least value it can have, as the reference has it.

    The label has probability `1 - smoothing`, each other token `smoothing / (V - 1)` (arXiv:1512.00567).

    Args:
        logits: [..., V].
        labels: [...] int.
        smoothing: less than 1.

    Returns:
        [...] in the dtype of the logits.
    """
    return _cross_entropy(logits, labels, smoothing)[0]


def _cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    vocab_size = logits.shape[-1]
    low = smoothing / (vocab_size - 1)
    # A mask and sums rather than a gather: they fuse, and stay on the devices that hold their part of V.
    hot = labels[..., None] == jnp.arange(vocab_size)
    of_label = jnp.where(hot, logits, 0).sum(-1)
    total = jax.nn.logsumexp(logits, axis=-1)
    loss = total - (1 - smoothing - low) * of_label - low * logits.sum(-1)
    least = -((1 - smoothing) * np.log(1 - smoothing) + smoothing * np.log(low + 1e-20))
    return loss - least, (logits, labels, total)


def _cross_entropy_gradient(
    smoothing: float, kept: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None]:
    """Softmax less what it should be, in one pass over the logits: nothing else of their size is kept."""
    logits, labels, total = kept
    low = smoothing / (logits.shape[-1] - 1)
    hot = labels[..., None] == jnp.arange(logits.shape[-1])
    wanted = jnp.where(hot, 1 - smoothing, low).astype(logits.dtype)
    return gradient[..., None] * (jnp.exp(logits - total[..., None]) - wanted), None


smoothed_cross_entropy.defvjp(_cross_entropy, _cross_entropy_gradient)


class Translation(SupervisedWorkload[Transformer, TranslationDataset]):
    """Label-smoothed cross-entropy on packed rows, BLEU of translations by beam search.

    An example is a packed row: published logs of packed training count them so.
    """

    metric = "BLEU"
    unit = "packed rows"

    def check_data(self) -> None:
        """Also: that the vocabulary is the model's."""
        vocabulary = self.dataset.vocabulary
        known = len(vocabulary) if vocabulary else 0
        if known > self.config.model.vocab_size:
            raise UserError(
                f"The vocabulary has {known:,} subwords and the model {self.config.model.vocab_size:,}; "
                f"use --config.model.vocab_size={known}."
            )

    def loss(self, model: Transformer, batch: Batch, key: jax.Array) -> Loss:
        """Over target tokens."""
        batch = {name: value.astype(jnp.int32) for name, value in batch.items()}
        logits = model(**batch, key=key)
        losses = smoothed_cross_entropy(logits, batch["target"], self.config.label_smoothing)
        counts = (batch["target_segment"] > 0).astype(losses.dtype)
        return (losses * counts).sum(), counts.sum()

    # Evaluation: sentences sorted by length, in batches of a few lengths that are compiled before the clock
    # starts.

    def translate(self, model: Transformer, source: jax.Array) -> jax.Array:
        """The best translation of each sentence.

        Args:
            model: the model.
            source: [B, M] int tokens, each sentence with its end, padded with 0.

        Returns:
            [B, M + extra] int32 tokens; a sentence of m source tokens has at most m + extra.
        """
        decode = self.config.decode
        source = source.astype(jnp.int32)
        length = source.shape[1] + decode.extra_length
        cache, step = model.decoder_step(source, length, decode.beams)
        limits = (source > 0).sum(1) + decode.extra_length
        tokens, _ = beam_search.beam_search(
            step, cache, limits, length, beams=decode.beams, alpha=decode.alpha, end=subwords.END
        )
        return tokens

    def programs(self, state: State, layout: Layout) -> dict[str, Program]:
        def translate(model_state: State, source: jax.Array) -> jax.Array:
            return self.translate(self.model(model_state), source)

        model_state = self.served_state(state)
        size, dtype = self.config.eval_batch_size, self.dataset.eval_spec["source"][1]
        return {
            f"translate_{length}": Program(
                translate,
                (model_state, layout.struct((size, length), dtype, ("batch",))),
                out_shardings=layout.replicated,
            )
            for length in self._source_lengths
        }

    @property
    def _source_lengths(self) -> list[int]:
        """Widths of evaluation batches, the last as wide as the data."""
        (longest,) = self.dataset.eval_spec["source"][0]
        return [length for length in self.config.decode.source_lengths if length < longest] + [longest]

    def evaluate(self, engine: Engine, state: State, notes: Notes = NO_NOTES) -> dict[str, float]:
        model_state = self.served_state(state)
        sources = self.dataset.read_eval(np.arange(self.num_eval), ("source",))["source"]
        size = self.config.eval_batch_size
        mine = engine.layout.rows(size)
        answers: list[np.ndarray] = [np.empty(0)] * self.num_eval

        def fetch(members: np.ndarray, tokens: jax.Array) -> None:
            for member, answer in zip(members, np.asarray(tokens), strict=False):
                answers[member] = answer

        under_way: tuple[np.ndarray, jax.Array] | None = None
        for length, members in self._batches((sources > 0).sum(1)):
            name = f"translate_{length}"
            rows = np.zeros((size, length), sources.dtype)
            rows[: len(members)] = sources[members, :length]
            placed = engine.place(rows[mine], engine.programs[name].args[1])
            started = members, engine.run(name, model_state, placed)
            if under_way:
                fetch(*under_way)
            under_way = started
        if under_way:
            fetch(*under_way)
        return {"quality": self._bleu(np.arange(self.num_eval), answers)}

    def _batches(self, lengths: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Sentences of similar length together: the width of each batch, and its members."""
        order = np.argsort(lengths, kind="stable")
        batches, below = [], 0
        for width in self._source_lengths:
            members = order[(lengths[order] > below) & (lengths[order] <= width)]
            below = width
            size = self.config.eval_batch_size
            batches += [(width, members[n : n + size]) for n in range(0, len(members), size)]
        return batches

    def _bleu(self, indices: np.ndarray, answers: Sequence[np.ndarray]) -> float:
        references = self.dataset.read_eval(indices, ("target",))["target"]
        return bleu([self._text(answer) for answer in answers], [self._text(tokens) for tokens in references])

    def _text(self, tokens: np.ndarray) -> str:
        tokens = np.trim_zeros(
            tokens, "b"
        )  # an answer that was cut at its limit has no end before its padding
        vocabulary = self.dataset.vocabulary
        if vocabulary is None:  # of random tokens
            return " ".join(map(str, tokens.tolist()))
        return vocabulary.decode(tokens.tolist())

    input_names = ("source",)

    def answer(self, model: Transformer, inputs: Batch) -> jax.Array:
        """Target tokens [B, L] int32, zeros after the end."""
        return self.translate(model, inputs["source"])

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        return {"quality": self._bleu(indices, [np.frombuffer(answer, "<i4") for answer in answers])}


class TransformerTranslation(Translation):
    """Transformer big on WMT17 (closed), and a small one on LibreOffice's help (mini)."""

    benchmark = "transformer"

    @functools.cached_property
    def model_config(self) -> TransformerConfig:
        return TransformerConfig(
            **self.config.model.to_dict(),
            attention=self.config.get("attention", "auto"),
            remat=self.config.get("remat", "none"),
        )

    def implementations(self, platform: str) -> dict[str, Any]:
        model, length = self.model_config, self.config.data.max_length
        attention = choose(
            model.attention,
            queries=length,
            keys=length,
            width=model.width // model.num_heads,
            dtype=self.policy.compute_dtype,
            dropout=model.attention_dropout > 0,
            platform=platform,
        )
        return {"attention": attention, "dropout_bits": random_bits.NAME}

    # The model computes layer by layer again what it does not keep, which the whole loss could not.
    loss_remat = "none"

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return Transformer(self.model_config, policy=self.policy, rngs=rngs)

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        return schedules.rsqrt_with_warmup(
            self.config.optimizer.base_lr * self.config.model.width**-0.5, self.config.schedule.warmup_steps
        )

    def hyperparameters(self) -> dict[str, Any]:
        optimizer = self.config.optimizer
        return {
            "opt_name": optimizer.name,
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_learning_rate_warmup_steps": self.config.schedule.warmup_steps,
            "opt_adam_beta_1": optimizer.beta1,
            "opt_adam_beta_2": optimizer.beta2,
            "opt_adam_epsilon": optimizer.epsilon,
            "max_sequence_length": WithMetadata(self.config.data.max_length, {"method": "discard"}),
        }

    def train_flops_per_example(self) -> float:
        return train_flops_per_row(self.model_config, self.config.data.max_length)
