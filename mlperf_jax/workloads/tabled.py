"""A model half of which is a small network, trained like any other, and half tables, of which a step touches few rows.

The state holds both: `params` and `opt_state` have the entries "dense" and "table", and `train_step`
differentiates by the vectors looked up, never by a table.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from input_pipelines.base import Dataset
from mlperf_jax.embedding import sharded
from mlperf_jax.embedding.tables import Tables
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.precision import Policy
from mlperf_jax.supervised import Loss, SupervisedWorkload, mean_of
from mlperf_jax.training import sparse_optimizers
from mlperf_jax.training.sparse_optimizers import RowRule
from mlperf_jax.workload import Batch, Metrics, State

D = TypeVar("D", bound=Dataset)
"""A data set of examples with `sparse` int32 [B, L], the rows that they look up."""


@dataclasses.dataclass(frozen=True)
class TabledModel:
    """The network and the tables as one model.

    Attributes:
        network: the dense part.
        stack: the tables, [G, R, D].
        tables: what the stack holds.
        policy: dtypes.
        logits: (network, inputs, vectors looked up [B, T, D]) -> [B].
    """

    network: Any
    stack: jax.Array
    tables: Tables
    policy: Policy
    logits: Callable[[Any, Batch, jax.Array], jax.Array]

    def __call__(self, inputs: Batch) -> jax.Array:
        """Logits [B] of inputs, of which `sparse` [B, L] are rows of the tables."""
        places = self.tables.places(inputs["sparse"])
        pooled = sharded.look_up(self.stack, places, self.tables, self.policy.compute_dtype)
        return self.logits(self.network, inputs, pooled)


class TabledWorkload(SupervisedWorkload[TabledModel, D], Generic[D]):
    """Binary cross-entropy on `sparse` int32 [B, L], `label` float32 [B] and what else the network takes.

    A task fills in `tables`, `rule`, `schedule`, `logits` and, as of any supervised workload, the network
    and the evaluation.
    """

    @property
    @abc.abstractmethod
    def tables(self) -> Tables:
        """The tables, as one array."""

    @abc.abstractmethod
    def rule(self) -> RowRule:
        """The optimizer, of tables and of the dense part alike."""

    @abc.abstractmethod
    def logits(self, network: Any, inputs: Batch, pooled: jax.Array) -> jax.Array:
        """Logits [B] of inputs and the vectors [B, T, D] that they looked up."""

    def initial_tables(self, key: jax.Array) -> jax.Array:
        """A stack [G, R, D] of fresh tables."""
        return self.tables.initial(key, self.policy.param_dtype)

    def rate(self, step: jax.Array) -> jax.Array:
        """What `rule` is handed as learning rate."""
        return self.schedule()(step)

    def make_optimizer(self, params: Any) -> optax.GradientTransformation:
        return sparse_optimizers.dense(self.rule(), self.rate)

    def init(self, seed: jax.Array) -> State:
        dense = super().init(seed)
        stack = self.initial_tables(jax.random.fold_in(jax.random.key(seed), 1))
        return dense | {
            "params": {"dense": dense["params"], "table": stack},
            "opt_state": {"dense": dense["opt_state"], "table": self.rule().init(stack)},
        }

    def model(self, state: State) -> TabledModel:
        network = nnx.merge(self._split.graph, state["params"]["dense"], state["model_state"])
        return TabledModel(network, state["params"]["table"], self.tables, self.policy, self.logits)

    def loss(self, model: TabledModel, batch: Batch, key: jax.Array) -> Loss:
        return mean_of(cross_entropy(model(batch), batch["label"]))

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        params, opt_state = state["params"], state["opt_state"]
        places = self.tables.places(batch["sparse"])
        pooled = sharded.look_up(params["table"], places, self.tables, self.policy.compute_dtype)

        def loss_of(dense: Any, pooled: jax.Array) -> tuple[jax.Array, jax.Array]:
            network = nnx.merge(self._split.graph, dense, state["model_state"])
            losses = cross_entropy(self.logits(network, batch, pooled), batch["label"])
            return losses.mean(), losses

        (grads, vectors), losses = jax.grad(loss_of, (0, 1), has_aux=True)(params["dense"], pooled)
        reduce = self.policy.reduce_dtype
        grads = jax.tree.map(lambda g, p: g.astype(reduce).astype(p.dtype), grads, params["dense"])
        optimizer = self.make_optimizer(params["dense"])
        updates, dense_state = optimizer.update(grads, opt_state["dense"], params["dense"])
        stack, slots = sharded.update(
            self.rule(),
            params["table"],
            opt_state["table"],
            places,
            vectors.astype(reduce),
            self.tables,
            self.rate(state["step"]).astype(params["table"].dtype),
        )
        new = {
            "step": state["step"] + 1,
            "params": {"dense": optax.apply_updates(params["dense"], updates), "table": stack},
            "opt_state": {"dense": dense_state, "table": slots},
        }
        # The mean is a sum over devices that nobody waits for, but that would wait itself for the vectors' gradients to arrive,
        # and the dense ones with it: a zero of theirs holds it back. (Compilers drop barriers before they schedule.)
        losses += 0 * jax.tree.leaves(grads)[0].ravel()[0]
        return state | new, {"loss": losses.mean()}

    def state_shardings(self, state: State, layout: Layout) -> Any:
        def part(name: str) -> State:
            return state | {entry: state[entry][name] for entry in ("params", "opt_state")}

        dense = super().state_shardings(part("dense"), layout)
        place = sharded.stack_sharding(self.tables, layout)
        table = jax.tree.map(lambda _: place, part("table"))
        return dense | {
            entry: {"dense": dense[entry], "table": table[entry]} for entry in ("params", "opt_state")
        }


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Binary cross-entropy [B] of logits [B] and labels [B], in at least float32."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype))
