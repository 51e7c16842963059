"""Sentiment analysis: a text in, whether it speaks well of its subject out; quality is accuracy.

Batches are as wide as their longest text needs, in one of a few widths, each of which has its programs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipelines.text.labelled_text import LabelledTexts
from mlperf_jax.metrics import classification
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.supervised import Loss, SupervisedWorkload, mean_of
from mlperf_jax.training.engine import Engine
from mlperf_jax.weights import text_classifier as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import (
    NO_NOTES,
    Batch,
    Block,
    Bucketed,
    Buckets,
    Evaluation,
    Notes,
    Spec,
    State,
)
from models import text_classifier
from models.text_classifier import TextClassifier, TextClassifierConfig


class Sentiment(SupervisedWorkload[TextClassifier, LabelledTexts]):
    """Cross-entropy on `words` int32 [B, W], `length` and `label` int32 [B]; accuracy over all of the evaluation set."""

    benchmark = "sentiment"
    metric = "accuracy"
    unit = "texts"

    # The model.

    @functools.cached_property
    def model_config(self) -> TextClassifierConfig:
        numbers = self.config.model.to_dict()
        return TextClassifierConfig(self.dataset.vocabulary_size, **numbers)

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return TextClassifier(self.model_config, policy=self.policy, rngs=rngs)

    def schedule(self) -> optax.Schedule:
        """Learning rate by step: the reference's stays as it is; or it falls on a line."""
        rate, epochs = self.config.optimizer.base_lr, self.config.schedule.decay_epochs
        if not epochs:
            return optax.constant_schedule(rate)
        return optax.linear_schedule(rate, 0.0, self._step_after(epochs))

    def loss(self, model: TextClassifier, batch: Batch, key: jax.Array) -> Loss:
        logits = model(batch["words"], batch["length"], key=key)
        return mean_of(classification.cross_entropy(logits, batch["label"]))

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        return weights.from_paddle(tensors, self.model_config), {}

    # Training batches, by width.

    @property
    def widths(self) -> dict[str, int]:
        """Bucket -> words in a row."""
        return {f"{width}": width for width in self.dataset.widths}

    def batch_struct(self, layout: Layout) -> Buckets:
        spec, size = self.dataset.train_spec, self.batch_size
        return Buckets(
            {name: self._structs(_as_wide(spec, width), size, layout) for name, width in self.widths.items()}
        )

    def data(
        self, engine: Engine, state: State, block: Block, start: int, notes: Notes = NO_NOTES
    ) -> tuple[State, Iterator[Batch | Bucketed]]:
        state, batches = super().data(engine, state, block, start, notes)
        plain = cast(Iterator[Batch], batches)
        return state, (Bucketed(f"{batch['words'].shape[1]}", batch) for batch in plain)

    # Evaluation, by width too.

    def eval_totals(self) -> Any:
        return classification.init()

    def eval_update(self, totals: Any, model: TextClassifier, batch: Batch) -> Any:
        logits = model(batch["words"], batch["length"])
        return classification.update(totals, logits, batch["label"], batch["mask"])

    def eval_result(self, totals: Any) -> Evaluation:
        result = classification.compute(totals)
        return result | {"quality": result["accuracy"]}

    def eval_batch_structs(self, layout: Layout) -> Buckets:
        spec, size = self.dataset.eval_spec, self.config.eval_batch_size
        return Buckets(
            {name: self._structs(_as_wide(spec, width), size, layout) for name, width in self.widths.items()}
        )

    def eval_bucket(self, batch: Batch) -> str:
        return f"{batch['words'].shape[1]}"

    # Inference: a sample is a text, compiled and batched by width.

    input_names = ("words", "length")

    def sample_specs(self) -> Mapping[str, Spec]:
        spec = {name: self.dataset.eval_spec[name] for name in self.input_names}
        return {name: _as_wide(spec, width) for name, width in self.widths.items()}

    def sample_buckets(self, indices: np.ndarray) -> Sequence[str]:
        return [f"{self.dataset.width(length)}" for length in self.dataset.evaluation.length[indices]]

    def answer(self, model: TextClassifier, inputs: Batch) -> jax.Array:
        """The class of each text, [B] int32."""
        return model(inputs["words"], inputs["length"]).argmax(1).astype(jnp.int32)

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        if any(len(answer) != 4 for answer in answers):
            raise ValueError("an answer is not the number of one class")
        classes = np.frombuffer(b"".join(answers), "<i4")
        return {"quality": float(np.mean(classes == self.dataset.evaluation.label[indices]))}

    # Facts for logs.

    def train_flops_per_example(self) -> float:
        """Of the words that texts have, without what fills up rows."""
        return 3 * text_classifier.flops_per_word(self.model_config) * float(self.dataset.train.length.mean())

    def hyperparameters(self) -> dict[str, Any]:
        optimizer = self.config.optimizer
        return {
            "opt_name": optimizer.name,
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_adam_beta_1": optimizer.beta1,
            "opt_adam_beta_2": optimizer.beta2,
            "opt_adam_epsilon": optimizer.epsilon,
        }


def _as_wide(spec: Spec, width: int) -> Spec:
    """A spec whose rows of words are so wide."""
    return {
        name: ((width,), dtype) if name == "words" else (shape, dtype)
        for name, (shape, dtype) in spec.items()
    }
