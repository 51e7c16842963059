"""Collaborative filtering: which film a user watches next, learned from what users watched.

Training examples are made on the device of the users' choices, which lie there as they are read (`negatives`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipelines.ratings.interactions import InteractionSet
from mlperf_jax.embedding.tables import Tables
from mlperf_jax.training import sparse_optimizers
from mlperf_jax.training.sparse_optimizers import RowRule
from mlperf_jax.weights import neumf as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import Batch, Evaluation, Metrics, Spec, State
from mlperf_jax.workloads import negatives
from mlperf_jax.workloads.tabled import TabledModel, TabledWorkload
from models import neumf
from models.neumf import NeuMF, NeuMFConfig

TOP = 10
"""A held-out item is a hit among so many best."""


class NCF(TabledWorkload[InteractionSet]):
    """NeuMF on MovieLens-20M (closed) and 100K (mini): the share of users whose last film is among the ten best.

    The state also holds the choices of all users, in `interactions`, which no step changes. Like all that is frozen
    they are read before `run_start`: what that takes (80 MB of MovieLens-20M) is not in the time of a run, where
    the rules of v0.5 start the clock before a data set is touched.
    """

    benchmark = "ncf"
    metric = "HR@10"
    unit = "samples"

    # The model.

    @functools.cached_property
    def model_config(self) -> NeuMFConfig:
        return NeuMFConfig(self.config.model.factors, tuple(self.config.model.layers))

    @functools.cached_property
    def tables(self) -> Tables:
        data = self.dataset.data
        sizes = (data.num_users, data.num_items)
        return Tables(sizes, (1, 1), self.model_config.width, self.config.model.table_groups)

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return NeuMF(self.model_config, policy=self.policy, rngs=rngs)

    def initial_tables(self, key: jax.Array) -> jax.Array:
        return neumf.TABLE_STD * jax.random.normal(key, self.tables.shape, self.policy.param_dtype)

    def logits(self, network: NeuMF, inputs: Batch, pooled: jax.Array) -> jax.Array:
        return network(pooled)

    def rule(self) -> RowRule:
        optimizer = self.config.optimizer
        return sparse_optimizers.lazy_adam(
            beta1=optimizer.beta1, beta2=optimizer.beta2, epsilon=optimizer.epsilon
        )

    def schedule(self) -> optax.Schedule:
        return optax.constant_schedule(self.config.optimizer.base_lr)

    def rate(self, step: jax.Array) -> jax.Array:
        optimizer = self.config.optimizer
        return sparse_optimizers.adam_rate(self.schedule(), beta1=optimizer.beta1, beta2=optimizer.beta2)(
            step
        )

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        return weights.from_state_dict(tensors, self.model_config, self.tables), {}

    # Training: examples are made of the choices that the state holds.

    frozen_entries = ("interactions",)

    @property
    def frozen_source(self) -> str:
        return self.data_description

    def init(self, seed: jax.Array) -> State:
        data = self.dataset.data
        choices = {name: jnp.zeros(getattr(data, name).shape, jnp.int32) for name in ("item", "start")}
        return super().init(seed) | {"interactions": choices}

    def frozen_state(self, struct: State, seed: int | None) -> State:
        def place(name: str, struct: jax.ShapeDtypeStruct) -> jax.Array:
            values = getattr(self.dataset.data, name)
            return jax.make_array_from_callback(struct.shape, struct.sharding, values.__getitem__)

        return {
            entry: {name: place(name, leaf) for name, leaf in leaves.items()}
            for entry, leaves in struct.items()
        }

    @property
    def served_entries(self) -> dict[str, str]:
        return {"params": "params", "model_state": "model_state"}

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        return super().train_step(state, self.examples(state, batch))

    def examples(self, state: State, batch: Batch) -> Batch:
        """The examples at the places of a batch, as `TabledWorkload` takes them."""
        made = negatives.drawn(
            batch["epoch"],
            batch["offset"],
            state["seed"],
            **state["interactions"],
            negatives=self.dataset.negatives,
            num_items=self.dataset.data.num_items,
        )
        return {"sparse": jnp.stack([made.user, made.item], axis=1), "label": made.label}

    # Evaluation: each user's last item among items that the user did not choose.

    def eval_totals(self) -> dict[str, jax.Array]:
        return {name: jnp.zeros((), jnp.float32) for name in ("hits", "gain", "users")}

    def eval_update(self, totals: Any, model: TabledModel, batch: Batch) -> Any:
        candidates = jnp.concatenate([batch["negatives"], batch["positive"][:, None]], axis=1)
        rank = rank_of_last(self.scores(model, batch["user"], candidates), candidates)
        hit = jnp.where(rank < TOP, batch["mask"], 0)
        gain = hit / jnp.log2(rank.astype(jnp.float32) + 2)
        found = {"hits": hit, "gain": gain, "users": batch["mask"]}
        return {name: totals[name] + value.sum() for name, value in found.items()}

    def eval_result(self, totals: Any) -> Evaluation:
        users = float(totals["users"])
        return {"quality": float(totals["hits"]) / users, "ndcg": float(totals["gain"]) / users}

    def scores(self, model: TabledModel, user: jax.Array, candidates: jax.Array) -> jax.Array:
        """Logits [B, C] of candidates [B, C] for users [B]."""
        pairs = jnp.stack([jnp.broadcast_to(user[:, None], candidates.shape), candidates], axis=-1)
        return model({"sparse": pairs.reshape(-1, 2)}).reshape(candidates.shape)

    # Inference: a sample is a user with candidates, the answer the ten best of these.

    input_names = ("user", "candidates")

    def sample_spec(self) -> Spec:
        (count,), dtype = self.dataset.eval_spec["negatives"]
        return {"user": ((), dtype), "candidates": ((count + 1,), dtype)}

    def read_samples(self, indices: np.ndarray) -> Batch:
        read = self.dataset.read_eval(indices, ("user", "positive", "negatives"))
        candidates = np.concatenate([read["negatives"], read["positive"][:, None]], axis=1)
        return {"user": read["user"], "candidates": candidates}

    def answer(self, model: TabledModel, inputs: Batch) -> jax.Array:
        """The ten best candidates, the best first, [B, 10] int32; each once, and at equal scores the first of them."""
        candidates = inputs["candidates"]
        scores = self.scores(model, inputs["user"], candidates)
        _, best = jax.lax.top_k(jnp.where(is_again(candidates), -jnp.inf, scores), TOP)
        return jnp.take_along_axis(candidates, best, axis=1)

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        if any(len(answer) != 4 * TOP for answer in answers):
            raise ValueError(f"an answer is not the numbers of {TOP} items")
        best = np.frombuffer(b"".join(answers), "<i4").reshape(-1, TOP)
        found = best == self.dataset.read_eval(indices, ("positive",))["positive"][:, None]
        gain = found.any(1) / np.log2(found.argmax(1) + 2.0)
        return {"quality": float(found.any(1).mean()), "ndcg": float(gain.mean())}

    # Facts for logs.

    def train_flops_per_example(self) -> float:
        return 3 * neumf.flops_per_example(self.model_config)

    def initialized_tensors(self) -> tuple[str, ...]:
        mlp = [f"mlp_dense{i + 1}" for i in range(len(self.model_config.layers) - 1)]
        return ("embeddings", *mlp, "final_dense")

    def hyperparameters(self) -> dict[str, Any]:
        optimizer = self.config.optimizer
        return {
            "opt_name": "lazy_adam",
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_adam_beta_1": optimizer.beta1,
            "opt_adam_beta_2": optimizer.beta2,
            "opt_adam_epsilon": optimizer.epsilon,
        }


def is_again(candidates: jax.Array) -> jax.Array:
    """Which of candidates [B, C] stand elsewhere too, [B, C]: all but the last are in order, and the last counts.

    The reference ranks a set of items, with its positive added last.
    """
    negatives, last = candidates[:, :-1], candidates[:, -1:]
    again = jnp.diff(negatives, axis=1, prepend=-1) == 0
    return jnp.pad(again | (negatives == last), ((0, 0), (0, 1)))


def rank_of_last(scores: jax.Array, candidates: jax.Array) -> jax.Array:
    """How many candidates [B, C], each counted once, score [B, C] no less than the last: [B] int32.

    By the rules the positive comes last in a tie (v0.5, "Appendix: FAQ", 1); a score that is no number beats it.
    """
    beats = ~(scores < scores[:, -1:]) & ~is_again(candidates)
    return beats[:, :-1].sum(axis=1, dtype=jnp.int32)
