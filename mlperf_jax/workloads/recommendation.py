"""Recommendation: numbers and categories of a user and an item in, the probability of a click out.

The model is half a small network and half tables of up to 26 billion numbers (`tabled`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec

from input_pipelines.base import num_eval_batches
from input_pipelines.clicks.click_logs import ClickDataset
from mlperf_jax.embedding.tables import Tables
from mlperf_jax.errors import UserError
from mlperf_jax.metrics import auc
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.training import schedules, sparse_optimizers
from mlperf_jax.training.engine import Engine
from mlperf_jax.training.sparse_optimizers import RowRule
from mlperf_jax.weights import dlrm as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import Batch, Block, Evaluation, Program, State
from mlperf_jax.workloads import click_groups
from mlperf_jax.workloads.tabled import TabledModel, TabledWorkload
from models.dlrm import DLRM, DLRMConfig, flops_per_example


class Recommendation(TabledWorkload[ClickDataset]):
    """Binary cross-entropy on `dense` float32 [B, F], `sparse` int32 [B, L], `label` float32 [B]; exact AUC."""

    metric = "AUC"
    unit = "samples"

    # The model.

    @functools.cached_property
    def tables(self) -> Tables:
        model, data = self.config.model, self.dataset.columns
        return Tables(data.table_sizes, data.multi_hot_sizes, model.width, model.table_groups)

    @functools.cached_property
    def model_config(self) -> DLRMConfig:
        numbers = {k: v for k, v in self.config.model.to_dict().items() if k != "table_groups"}
        (dense_features,) = self.dataset.train_spec["dense"][0]
        return DLRMConfig(dense_features, self.tables.num_tables, **numbers)

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return DLRM(self.model_config, policy=self.policy, rngs=rngs)

    def rule(self) -> RowRule:
        """The optimizer, of tables and of the dense part alike."""
        optimizer = self.config.optimizer
        if optimizer.name == "adagrad":
            return sparse_optimizers.adagrad(
                epsilon=optimizer.epsilon, initial_accumulator=optimizer.initial_accumulator
            )
        return sparse_optimizers.sgd()

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        return schedules.warmup_hold_square(self.config.optimizer.base_lr, **self.config.schedule.to_dict())

    def logits(self, network: DLRM, inputs: Batch, pooled: jax.Array) -> jax.Array:
        return network(inputs["dense"], pooled)

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        # The shapes of the data set will do; it need not be here.
        shapes = type(self)(self.config, self.policy, data_dir=self.data_dir, synthetic=True)
        return weights.from_state_dict(tensors, shapes.model_config, shapes.tables), {}

    # Evaluation: scores stay on the devices until all are there.

    def eval_totals(self) -> auc.Totals:
        size = self.config.eval_batch_size
        dtype = jnp.promote_types(self.policy.output_dtype, jnp.float32)
        return auc.init(num_eval_batches(self.num_eval, size), size, dtype)

    def eval_update(self, totals: auc.Totals, model: TabledModel, batch: Batch) -> auc.Totals:
        score = jax.nn.sigmoid(model(batch).astype(totals["score"].dtype))
        return auc.update(totals, score, batch["label"], batch["mask"])

    def eval_result(self, totals: Any) -> dict[str, float]:
        return {"quality": auc.compute(totals)}

    def eval_summary(self, engine: Engine, totals: auc.Totals) -> auc.Totals:
        return engine.run("eval_count", totals)

    def eval_structs(self, layout: Layout) -> auc.Totals:
        def struct(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return layout.struct(x.shape, x.dtype, (None, "batch")[: x.ndim])

        return jax.tree.map(struct, jax.eval_shape(self.eval_totals))

    def programs(self, state: State, layout: Layout) -> dict[str, Program]:
        def eval_count(totals: auc.Totals) -> dict[str, jax.Array]:
            whole = PartitionSpec()  # a sort over devices would travel more than the scores do
            return auc.count(
                {
                    name: jax.lax.with_sharding_constraint(x, jax.NamedSharding(layout.mesh, whole))
                    for name, x in totals.items()
                }
            )

        count = Program(eval_count, (self.eval_structs(layout),), out_shardings=layout.replicated)
        return super().programs(state, layout) | {"eval_count": count}

    # Inference: a sample is a group of examples, each a row of its batch.

    @functools.cached_property
    def _groups(self) -> np.ndarray:
        return click_groups.group_bounds(self.num_eval)

    @property
    def num_samples(self) -> int:
        return len(self._groups) - 1

    input_names = ("dense", "sparse", "label")
    most_rows = click_groups.LARGEST

    def sample_rows(self, indices: np.ndarray) -> np.ndarray:
        return self._groups[indices + 1] - self._groups[indices]

    def read_samples(self, indices: np.ndarray) -> Batch:
        bounds = zip(self._groups[indices], self._groups[indices + 1], strict=True)
        examples = np.concatenate([np.arange(*group) for group in bounds])
        return dict(self.dataset.read_eval(examples, self.input_names))

    def answer(self, model: TabledModel, inputs: Batch) -> jax.Array:
        """Probability and label of each example, [B, 2] float32, as MLPerf logs them."""
        probability = jax.nn.sigmoid(model(inputs).astype(jnp.float32))
        return jnp.stack([probability, inputs["label"]], axis=-1)

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        sizes = self.sample_rows(indices)
        if any(len(answer) != 8 * size for answer, size in zip(answers, sizes, strict=True)):
            raise ValueError("an answer is not a probability and a label for each example of its sample")
        score, label = np.frombuffer(b"".join(answers), "<f4").reshape(-1, 2).T
        return {"quality": auc.area(score, label)}

    # Facts for schedules and logs.

    def blocks(self) -> Iterator[Block]:
        """`evals_per_epoch` blocks of equally many steps in each of `max_epochs`; a few last steps stay out.

        The rules evaluate every FLOOR(examples / (batch * 20)) steps.

        Raises:
            UserError: that would be more often than every step.
        """
        steps = self.num_train // (self.batch_size * self.config.evals_per_epoch)
        if steps == 0:
            raise UserError(
                f"evals_per_epoch={self.config.evals_per_epoch} asks for evaluations more often than every "
                f"batch of {self.batch_size}; give fewer, or a smaller --config.batch_size."
            )
        for index in range(self.config.max_epochs * self.config.evals_per_epoch):
            start, stop = index * steps, (index + 1) * steps
            yield Block(index, start, stop, self.epochs(start), self.epochs(stop) - self.epochs(start))

    def train_flops_per_example(self) -> float:
        pooling = sum(hot - 1 for hot in self.tables.hots) * self.tables.width
        return 3 * (flops_per_example(self.model_config) + pooling)


class DLRMv1(Recommendation):
    """DLRM on Criteo 1TB (closed), and a small one on flights from New York (mini)."""

    benchmark = "dlrm"

    def eval_epoch(self, step: int) -> float:
        return 1 + self.epochs(step)  # the reference calls the first epoch 1, and its end 2

    def initialized_tensors(self) -> tuple[str, ...]:
        bottom, top = (
            [f"{part}_mlp_dense{i + 1}" for i in range(len(self.config.model[part]))]
            for part in ("bottom", "top")
        )
        return ("embeddings", *bottom, *top)

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule = self.config.optimizer, self.config.schedule
        return {
            "opt_name": "sgd",
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_learning_rate_warmup_steps": schedule.warmup_steps,
            "lr_decay_start_steps": schedule.decay_start_step,
            "sgd_opt_base_learning_rate": optimizer.base_lr,
            "sgd_opt_learning_rate_decay_poly_power": 2,
            "sgd_opt_learning_rate_decay_steps": schedule.decay_steps,
        }


class DLRMDCNv2(Recommendation):
    """DLRM-DCNv2 on multi-hot Criteo 1TB (closed), and a small one on flights from New York (mini)."""

    benchmark = "dlrm_dcnv2"

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule = self.config.optimizer, self.config.schedule
        return {
            "opt_name": "adagrad",
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_adagrad_learning_rate_decay": 0.0,
            "opt_weight_decay": 0.0,
            "opt_adagrad_initial_accumulator_value": optimizer.initial_accumulator,
            "opt_adagrad_epsilon": optimizer.epsilon,
            "opt_learning_rate_warmup_steps": schedule.warmup_steps,
            "opt_learning_rate_decay_start_step": schedule.decay_start_step,
            "opt_learning_rate_decay_steps": schedule.decay_steps,
        }
