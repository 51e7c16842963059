"""BERT's pre-training: words that were masked, and whether a second text follows a first; quality is masked-LM accuracy.

An example is a sequence. Where the config packs, several lie in one row of a batch, whose loss is the same: all
words to be told have one weight, all sequences another, however they are distributed over rows and micro-batches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipelines.base import Dataset
from input_pipelines.text import packed_masked
from mlperf_jax.decoding.largest import first_largest
from mlperf_jax.errors import UserError
from mlperf_jax.metrics.classification import cross_entropy
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.supervised import Loss, SupervisedWorkload
from mlperf_jax.training import schedules
from mlperf_jax.training.engine import Engine
from mlperf_jax.weights import bert as weights
from mlperf_jax.weights import files, lazy
from mlperf_jax.workload import (
    NO_NOTES,
    Batch,
    Block,
    Bucketed,
    Buckets,
    Evaluation,
    Metrics,
    Notes,
    State,
)
from models import random_bits
from models.attention_function import choose
from models.bert import BertConfig, PretrainedBert, train_flops_per_row

_INPUTS = ("tokens", "segment", "token_type", "masked")
_START_TOLERANCE = 2e-3  # of the accuracy that published weights begin with


class BertPretraining(SupervisedWorkload[PretrainedBert, Dataset]):
    """BERT-large on Wikipedia from published weights (closed), and a small one on newsgroups (mini)."""

    benchmark = "bert"
    metric = "masked-LM accuracy"
    unit = "sequences"
    counts_samples = samples_are_epochs = True
    # The model computes layer by layer again what it does not keep.
    loss_remat = "none"

    # The model and its start.

    @functools.cached_property
    def model_config(self) -> BertConfig:
        return bert_config(self.config)

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return PretrainedBert(self.model_config, policy=self.policy, rngs=rngs)

    def implementations(self, platform: str) -> dict[str, Any]:
        return implementations(self.model_config, self._length, self.policy.compute_dtype, platform)

    @property
    def _length(self) -> int:
        (length,) = self.dataset.train_spec["tokens"][0]
        return length

    @property
    def start_file(self) -> Path | None:
        """The weights that training begins with: as named, or of that name beside the data; None for drawn ones."""
        name = self.config.start_weights
        if not name or self.made_up_data:
            return None
        return files.named(name, self.data_dir)

    def check_data(self) -> None:
        """Also: that the weights to begin with are there, which closed rules ask for."""
        super().check_data()
        rules = self.config.preset == "closed" and not self.made_up_data
        if rules and not self.start_file:
            raise UserError(
                "The rules want MLPerf's checkpoint to begin with; give --config.start_weights=FILE.index."
            )
        if self.start_file and not self.start_file.is_file():
            raise UserError(
                f"There is no {self.start_file}; put MLPerf's checkpoint model.ckpt-28252 there (its .index and .data "
                "files), or give --config.start_weights=FILE.index."
            )

    def initial_state(self, engine: Engine, seed: int) -> State:
        state = engine.init(seed)
        if self.start_file is None:
            return state
        published = weights.from_published(
            files.read_tensors(self.start_file), self.model_config, head="pretraining"
        )
        return state | {"params": jax.tree.map(lazy.place, published["params"], state["params"])}

    def require_start(self, engine: Engine, state: State, notes: Notes) -> None:
        """Measures what training begins with, as the rules ask for; after the clock started, as it reads examples.

        Raises:
            UserError: it is not as good as MLPerf's checkpoint is.
        """
        expected = self.config.start_accuracy
        if self.start_file is None or not expected:
            return
        found = self.eval_result(self.measured(engine, state))["quality"]
        notes.log.event("start_weights", {"file": self.start_file.name, "masked_lm_accuracy": found})
        if abs(found - expected) > _START_TOLERANCE:
            raise UserError(
                f"{self.start_file} begins with a masked-LM accuracy of {found:.5f} where MLPerf's checkpoint has "
                f"{expected:.5f}; get the checkpoint and the evaluation set again."
            )

    # The loss.

    def loss(self, model: PretrainedBert, batch: Batch, key: jax.Array) -> Loss:
        """Of words, and of sequences with the weight that makes both sums the means of the whole batch.

        The second counts `config.next_sentence_weight` times, 1 by the rules.
        """
        words, follows = self._logits(model, batch, key)
        told, sequences = batch["word_weight"], _sequences(batch)
        of_words = _losses(words, batch["word"]) * told
        of_sequences = _losses(follows, batch["is_random"]) * sequences
        each = self.config.next_sentence_weight * batch["words_per_sequence"][0].astype(of_words.dtype)
        return of_words.sum() + each * of_sequences.sum(), told.sum().astype(of_words.dtype)

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """With the number of words for each sequence of the whole batch, which a micro-batch cannot know."""
        wide = jnp.promote_types(self.policy.param_dtype, jnp.float32)
        each = batch["word_weight"].astype(wide).sum() / _sequences(batch).astype(wide).sum()
        each = jnp.broadcast_to(each, batch["tokens"].shape[:1])
        return super().train_step(state, batch | {"words_per_sequence": each})

    def _logits(
        self, model: PretrainedBert, batch: Batch, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        inputs = {name: batch[name].astype(jnp.int32) for name in _INPUTS}
        first = batch.get("first")
        first = jnp.zeros((len(inputs["tokens"]), 1), jnp.int32) if first is None else first.astype(jnp.int32)
        return model(**inputs, first=first, key=key)

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        numbers = self.config.schedule
        return schedules.polynomial_under_warmup(
            self.config.optimizer.base_lr,
            numbers.warmup_steps,
            numbers.training_steps,
            start_warmup_step=numbers.start_warmup_step,
        )

    # Packed rows.

    def packed_rows(self, layout: Layout) -> int:
        """Rows of a packed batch; 0 where sequences are not packed.

        They are not in several processes: whether a batch fits into its rows each would find of its own part.
        """
        share = self.config.data.get("packing", 0.0)
        if not share or jax.process_count() > 1:
            return 0
        parts = max([1, *(layout.size(axes) for axes in layout.choices("batch"))])
        parts *= self.config.get("gradient_accumulation_steps", 1)
        rows = parts * math.ceil(share * self.batch_size / parts)
        return rows if rows < self.batch_size else 0

    def batch_struct(self, layout: Layout) -> Batch | Buckets:
        """Of packed rows, and of sequences apart for a batch that does not fit."""
        apart = self._structs(self.dataset.train_spec, self.batch_size, layout)
        rows = self.packed_rows(layout)
        if not rows:
            return apart
        packed = packed_masked.spec(self.dataset.train_spec, self._places)
        return Buckets({"packed": self._structs(packed, rows, layout), "apart": apart})

    @property
    def _places(self) -> int:
        """For words to be told, of a packed row: what a full row asks for, and one more for each sequence."""
        (most,) = self.dataset.train_spec["masked"][0]
        return most + packed_masked.PER_ROW + 1

    def data(
        self, engine: Engine, state: State, block: Block, start: int, notes: Notes = NO_NOTES
    ) -> tuple[State, Iterator[Batch | Bucketed]]:
        if start == 0:
            self.require_start(engine, state, notes)
        state, batches = super().data(engine, state, block, start, notes)
        rows = self.packed_rows(engine.layout)
        return state, (self._packed(batch, rows) for batch in batches) if rows else batches

    def _packed(self, batch: Any, rows: int) -> Bucketed:
        packed = packed_masked.packed(batch, rows, self._places)
        return Bucketed("apart", batch) if packed is None else Bucketed("packed", packed)

    # When it is evaluated, and how.

    def blocks(self) -> Iterator[Block]:
        """Evaluations every so many samples, rounded up to whole batches, until the rate is 0 or `max_epochs` are over."""
        every = self.config.eval_every_samples or _samples_between(self.batch_size)
        last = min(self.config.schedule.training_steps, self._step_after(self.config.max_epochs))
        start = index = 0
        while start < last:
            stop = min(math.ceil((index + 1) * every / self.batch_size), last)
            if stop > start:
                yield Block(index, start, stop, self.epochs(start), self.epochs(stop) - self.epochs(start))
            start, index = stop, index + 1

    def eval_totals(self) -> Any:
        return {name: jnp.zeros((), jnp.int32) for name in ("right", "told", "followed", "count")}

    def eval_update(self, totals: Any, model: PretrainedBert, batch: Batch) -> Any:
        words, follows = self._logits(model, batch)
        told = (batch["word_weight"] > 0) & (batch["mask"][:, None] > 0)
        real = batch["mask"] > 0
        found = {
            "right": (first_largest(words) == batch["word"]) & told,
            "told": told,
            "followed": (follows[:, 0].argmax(-1) == batch["is_random"][:, 0]) & real,
            "count": real,
        }
        return {name: totals[name] + one.sum(dtype=jnp.int32) for name, one in found.items()}

    def eval_result(self, totals: Any) -> Evaluation:
        """`quality` is the share of masked words that are told; `next_sentence` that of sequences."""
        right, told, followed, count = (int(totals[name]) for name in ("right", "told", "followed", "count"))
        return {"quality": right / max(told, 1), "next_sentence": followed / max(count, 1), "count": count}

    input_names = _INPUTS

    def answer(self, model: PretrainedBert, inputs: Batch) -> jax.Array:
        """The likeliest word at each of the places [B, P] int32."""
        words, _ = self._logits(model, inputs)
        return first_largest(words)

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        right = self.dataset.read_eval(indices, ("word", "word_weight"))
        found = np.stack([np.frombuffer(answer, "<i4") for answer in answers])
        told = right["word_weight"] > 0
        return {"quality": float((found == right["word"])[told].mean())}

    # Facts for logs.

    def import_weights(self, tensors: Mapping[str, lazy.Tensor]) -> tuple[State, dict[str, Any]]:
        return weights.from_published(tensors, self.model_config, head="pretraining"), {}

    def train_flops_per_example(self) -> float:
        """Of rows as they are, each full of one sequence."""
        (masked,) = self.dataset.train_spec["masked"][0]
        return train_flops_per_row(self.model_config, self._length, masked)

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule = self.config.optimizer, self.config.schedule
        return {
            "opt_name": optimizer.name,
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_epsilon": optimizer.epsilon,
            "opt_lamb_epsilon": optimizer.epsilon,
            "opt_lamb_beta_1": optimizer.beta1,
            "opt_lamb_beta_2": optimizer.beta2,
            "opt_lamb_weight_decay_rate": optimizer.weight_decay,
            "opt_lamb_learning_rate_decay_poly_power": 1.0,
            "opt_learning_rate_training_steps": schedule.training_steps,
            "opt_learning_rate_warmup_steps": schedule.warmup_steps,
            "num_warmup_steps": schedule.warmup_steps,
            "start_warmup_step": schedule.start_warmup_step,
            "max_sequence_length": self._length,
            "max_predictions_per_seq": self.dataset.train_spec["masked"][0][0],
        }


def bert_config(config: Any) -> BertConfig:
    """The sizes that a config's `model` names."""
    return BertConfig(
        **config.model.to_dict(), attention=config.get("attention", "auto"), remat=config.get("remat", "none")
    )


def implementations(model: BertConfig, length: int, dtype: Any, platform: str) -> dict[str, Any]:
    """By which means attention and dropout are computed, in training."""
    attention = choose(
        model.attention,
        queries=length,
        keys=length,
        width=model.width // model.num_heads,
        dtype=dtype,
        dropout=model.attention_dropout > 0,
        platform=platform,
    )
    return {"attention": attention, "dropout_bits": random_bits.NAME}


def _samples_between(batch_size: int) -> int:
    """Between two evaluations, by the rules since v1.0 (mlcommons/training, language_model/tensorflow/bert/README.md)."""
    return 25_000 * math.floor(0.05 * (230.23 * batch_size + 3_000_000) / 25_000)


def _sequences(batch: Batch) -> jax.Array:
    """1 where a row has a sequence, [B, S]; rows that are not packed have one each."""
    weight = batch.get("weight")
    return jnp.ones((len(batch["tokens"]), 1), batch["word_weight"].dtype) if weight is None else weight


def _losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy [B, N] of logits [B, N, K]."""
    flat = cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).astype(jnp.int32))
    return flat.reshape(labels.shape)
