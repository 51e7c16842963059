"""Translation: a sentence of one language in, of another out; quality is uncased BLEU of beam search."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Generic

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipelines.text import subwords
from input_pipelines.text.parallel_text import TranslationDataset
from mlperf_jax.decoding import beam_search, coverage_search, drawing
from mlperf_jax.errors import UserError
from mlperf_jax.metrics.bleu import bleu
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.results.events import WithMetadata
from mlperf_jax.supervised import Loss, M, SupervisedWorkload
from mlperf_jax.training import schedules
from mlperf_jax.training.engine import Engine
from mlperf_jax.weights import gnmt as gnmt_weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import NO_NOTES, Batch, Evaluation, Notes, Program, State
from models import gnmt, lstm, random_bits
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


def per_sentence_loss(logits: jax.Array, target: jax.Array, segment: jax.Array, smoothing: float) -> Loss:
    """Cross-entropy summed over the tokens of each sentence, over sentences, as GNMT's reference has it.

    Of the smoothing every token has its share, the label too. So a gradient is some twenty times as long as one of a
    mean over tokens, which its clipping counts on.

    Args:
        logits: [B, L, V].
        target: [B, L] int.
        segment: [B, L] int, numbers of a row's sentences from 1; 0 is padding.
        smoothing: less than 1.

    Returns:
        The sum, and the number of sentences.
    """
    vocab_size = logits.shape[-1]
    losses = smoothed_cross_entropy(logits, target, smoothing * (vocab_size - 1) / vocab_size)
    return jnp.where(segment > 0, losses, 0).sum(), segment.max(1).sum().astype(losses.dtype)


class Translation(SupervisedWorkload[M, TranslationDataset], Generic[M]):
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

    # Evaluation: sentences sorted by length, in batches of a few lengths that are compiled before the clock
    # starts.

    @abc.abstractmethod
    def translate(self, model: M, source: jax.Array) -> jax.Array:
        """The best translation of each sentence.

        Args:
            model: the model.
            source: [B, M] int tokens, each sentence with its end, padded with 0.

        Returns:
            [B, M + extra] int32 tokens; a sentence of m source tokens has at most m + extra.
        """

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
        return {"quality": self._bleu(np.arange(self.num_eval), self._answers(engine, state, self.num_eval))}

    def pictures(self, engine: Engine, state: State, count: int) -> list[bytes]:
        """Sources, translations and references."""
        count = min(count, self.num_eval)
        sources = self.dataset.read_eval(np.arange(count), ("source",))["source"]
        answers, right = self._answers(engine, state, count), self._references(np.arange(count))
        return [
            drawing.draw(
                [
                    ("source", self._text(source)),
                    ("translation", self._text(answer)),
                    ("reference", reference),
                ]
            )
            for source, answer, reference in zip(sources, answers, right, strict=True)
        ]

    def _answers(self, engine: Engine, state: State, count: int) -> list[np.ndarray]:
        """Translations of the first `count` sentences."""
        model_state = self.served_state(state)
        sources = self.dataset.read_eval(np.arange(count), ("source",))["source"]
        size = self.config.eval_batch_size
        mine = engine.layout.rows(size)
        answers: list[np.ndarray] = [np.empty(0)] * count

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
        return answers

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
        return bleu([self._text(answer) for answer in answers], self._references(indices))

    def _references(self, indices: np.ndarray) -> list[str]:
        if self.dataset.references:
            return [self.dataset.references[n] for n in indices]
        return [self._text(tokens) for tokens in self.dataset.read_eval(indices, ("target",))["target"]]

    def _text(self, tokens: np.ndarray) -> str:
        tokens = np.trim_zeros(
            tokens, "b"
        )  # an answer that was cut at its limit has no end before its padding
        vocabulary = self.dataset.vocabulary
        if vocabulary is None:  # of random tokens
            return " ".join(map(str, tokens.tolist()))
        return vocabulary.decode(tokens.tolist())

    input_names = ("source",)

    def answer(self, model: M, inputs: Batch) -> jax.Array:
        """Target tokens [B, L] int32, zeros after the end."""
        return self.translate(model, inputs["source"])

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        return {"quality": self._bleu(indices, [np.frombuffer(answer, "<i4") for answer in answers])}


class TransformerTranslation(Translation[Transformer]):
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

    def loss(self, model: Transformer, batch: Batch, key: jax.Array) -> Loss:
        """Over target tokens."""
        batch = {name: value.astype(jnp.int32) for name, value in batch.items()}
        logits = model(**batch, key=key)
        losses = smoothed_cross_entropy(logits, batch["target"], self.config.label_smoothing)
        counts = (batch["target_segment"] > 0).astype(losses.dtype)
        return (losses * counts).sum(), counts.sum()

    def translate(self, model: Transformer, source: jax.Array) -> jax.Array:
        decode = self.config.decode
        source = source.astype(jnp.int32)
        length = source.shape[1] + decode.extra_length
        cache, step = model.decoder_step(source, length, decode.beams)
        limits = (source > 0).sum(1) + decode.extra_length
        tokens, _ = beam_search.beam_search(
            step, cache, limits, length, beams=decode.beams, alpha=decode.alpha, end=subwords.END
        )
        return tokens

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


class GNMTTranslation(Translation[gnmt.GNMT]):
    """GNMT v2 on WMT16 (closed), and a small one on LibreOffice's help (mini)."""

    benchmark = "gnmt"

    @functools.cached_property
    def model_config(self) -> gnmt.GNMTConfig:
        return gnmt.GNMTConfig(**self.config.model.to_dict())

    def implementations(self, platform: str) -> dict[str, Any]:
        """Packed rows are trained on by a scan; sentences to translate are one a row."""
        encoder = lstm.choose(self.model_config.lstm, dtype=self.policy.compute_dtype, platform=platform)
        return {"lstm": "scan", "lstm_of_translation": encoder, "dropout_bits": random_bits.NAME}

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return gnmt.GNMT(self.model_config, policy=self.policy, rngs=rngs)

    def loss(self, model: gnmt.GNMT, batch: Batch, key: jax.Array) -> Loss:
        """Over sentences."""
        batch = {name: value.astype(jnp.int32) for name, value in batch.items()}
        logits = model(**batch, key=key)
        return per_sentence_loss(
            logits, batch["target"], batch["target_segment"], self.config.label_smoothing
        )

    def translate(self, model: gnmt.GNMT, source: jax.Array) -> jax.Array:
        decode = self.config.decode
        source = source.astype(jnp.int32)
        state, step = model.decoder_step(source, decode.beams)
        tokens, _ = coverage_search.coverage_search(
            step,
            state,
            (source > 0).sum(1) + decode.extra_length,
            source.shape[1] + decode.extra_length,
            source_length=source.shape[1],
            beams=decode.beams,
            alpha=decode.alpha,
            beta=decode.beta,
            start=self.model_config.start,
            end=decode.end,
        )
        return tokens

    def schedule_steps(self) -> dict[str, int]:
        """The schedule in steps; its fractions are of all steps of training, as the reference has them."""
        total = int(self.config.max_epochs * self.num_train / self.batch_size)

        def steps(value: int | float) -> int:
            return int(value * total) if isinstance(value, float) else value

        numbers = self.config.schedule
        remain = steps(numbers.remain_steps)
        regular = max((total - remain) // numbers.decay_steps, 1)
        return {
            "warmup_steps": min(steps(numbers.warmup_steps), remain),
            "remain_steps": remain,
            "decay_interval": steps(numbers.decay_interval) or regular,
            "decay_steps": numbers.decay_steps,
        }

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        return schedules.halvings_with_exponential_warmup(
            self.config.optimizer.base_lr,
            **self.schedule_steps(),
            decay_factor=self.config.schedule.decay_factor,
        )

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, steps = self.config.optimizer, self.schedule_steps()
        return {
            "opt_name": "adam",
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_adam_beta_1": optimizer.beta1,
            "opt_adam_beta_2": optimizer.beta2,
            "opt_adam_epsilon": optimizer.epsilon,
            "opt_learning_rate_alt_warmup_func": True,
            "opt_learning_rate_warmup_steps": steps["warmup_steps"],
            "opt_learning_rate_alt_decay_func": True,
            "opt_learning_rate_remain_steps": steps["remain_steps"],
            "opt_learning_rate_decay_interval": steps["decay_interval"],
            "opt_learning_rate_decay_steps": steps["decay_steps"],
            "opt_learning_rate_decay_factor": self.config.schedule.decay_factor,
            "max_sequence_length": self.config.data.max_sentence,
        }

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        if gnmt_weights.is_tensorflow(tensors):
            return gnmt_weights.from_tensorflow(tensors, self.model_config), dict(gnmt_weights.TENSORFLOW)
        return gnmt_weights.from_state_dict(tensors, self.model_config), {}

    def train_flops_per_example(self) -> float:
        return gnmt.train_flops_per_row(self.model_config, self.config.data.max_length)
