"""The default phases: an NNX model, a loss, an optax optimizer and a finite data set in epochs.

Modules are NNX; what is trained is plain dicts. `nnx.split` gives the graph, kept as a constant of
the traced functions, and the variables, turned into dicts: calling a compiled function with dicts
costs 1.3-1.8 ms of Python a step for ResNet-50's tree, where `nnx.jit` took 23-41 ms.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

import input_pipelines
from input_pipelines.base import BatchIterator, Dataset
from mlperf_jax.drawing_keys import DrawingKeys
from mlperf_jax.errors import UserError
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.layout import Layout, LogicalAxes
from mlperf_jax.training import optimizers
from mlperf_jax.training.engine import Engine, named
from mlperf_jax.training.gradients import gradients
from mlperf_jax.workload import (
    NO_NOTES,
    Batch,
    Block,
    Bucketed,
    Buckets,
    Evaluation,
    Metrics,
    Notes,
    Program,
    ServedWorkload,
    Spec,
    State,
    TrainedWorkload,
)

M = TypeVar("M")
"""A model as losses and answers call it."""
D = TypeVar("D", bound=Dataset)
"""A data set, with what its task asks of it besides."""


Loss = tuple[jax.Array, jax.Array | int]
"""A sum [] over the examples, tokens or other things of a batch, and their weight []: how many they are.

The loss is the one by the other; kept apart, so that micro-batches of unequal weight add up to the batch."""


def mean_of(losses: jax.Array) -> Loss:
    """The loss that is the mean of these, whatever their shape."""
    return losses.sum(), losses.size


class _Stream:
    """The endless batches of a run and how far they were read: prefetching outlives a block."""

    def __init__(self, batches: BatchIterator, seed: int, step: int) -> None:
        self.batches, self.seed, self.step = batches, seed, step

    def until(self, stop: int) -> Iterator[Batch]:
        while self.step < stop:
            batch = next(self.batches)
            self.step += 1
            yield batch

    def close(self) -> None:
        self.batches.close()


@dataclasses.dataclass(frozen=True)
class _Axes:
    """A parameter's logical axes, as one leaf of a tree."""

    names: LogicalAxes | None


class GradientWorkload(TrainedWorkload, ServedWorkload, Generic[M]):
    """A model trained by gradients, wherever its batches come from; what is trained is also served.

    Fills in `init`, `train_step` and where the state lies; leaves `data` and `evaluate` to its subclass.
    A workload whose state holds more than a model's adds it in `init` and `train_step`.

    The state has `params`, `model_state` (batch statistics and the like) and `opt_state`; `frozen` where
    `is_frozen` says so of a parameter; and with `config.ema_decay` also `ema`, a running average of `params`.
    """

    # What a task or a workload supplies.

    @abc.abstractmethod
    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model with freshly drawn parameters."""

    def schedule(self) -> optax.Schedule:
        """Learning rate by step, for `make_optimizer`."""
        raise NotImplementedError

    def make_optimizer(self, params: Any) -> optax.GradientTransformation:
        """The optimizer: by default the one that `config.optimizer` names, without decay of norms and biases.

        Args:
            params: the tree of parameters (structs or arrays).
        """
        return optimizers.make_optimizer(
            self.config.optimizer,
            self.schedule(),
            optimizers.decay_mask(params),
            jax.tree.map(lambda axes: optimizers.is_stacked(axes.names), _axes(self._split.params)),
        )

    @abc.abstractmethod
    def loss(self, model: M, batch: Batch, key: jax.Array) -> Loss:
        """The loss of a training batch as a sum and its weight; the model may update its batch statistics."""

    def is_frozen(self, path: tuple[str | int, ...]) -> bool:
        """Whether a parameter, by the names that lead to it in the model, stays as it is."""
        return False

    serves_average: bool = True
    """Whether the running average, where one is kept, is what is evaluated and served."""

    def batch_axes(self, name: str) -> LogicalAxes:
        """Logical axes of one entry of a batch, the batch axis first."""
        return ("batch",)

    @property
    def loss_remat(self) -> str:
        """What of the loss stays in memory for its gradient; "none" where the model itself sees to it, by layer."""
        return self.config.get("remat", "none")

    # The phases, from those.

    @functools.cached_property
    def _split(self) -> _Parts:
        """The graph, and structs of all variables."""
        return self._parts(nnx.eval_shape(lambda: self.build_model(nnx.Rngs(0))))

    def _parts(self, model: nnx.Module) -> _Parts:
        trained = nnx.All(nnx.Param, lambda path, _: not self.is_frozen(path))
        graph, params, *others = nnx.split(model, trained, nnx.Param, ...)
        frozen, model_state = others
        return _Parts(graph, params, frozen, model_state)

    @property
    def ema_decay(self) -> float:
        """Of the running average of the parameters; 0 keeps none."""
        return self.config.get("ema_decay", 0.0)

    def init(self, seed: jax.Array) -> State:
        parts = self._parts(self.build_model(DrawingKeys(jax.random.key(seed))))
        params = nnx.to_pure_dict(parts.params)
        return {
            "step": jnp.zeros((), jnp.int32),
            "seed": jnp.asarray(seed, jnp.uint32),
            "params": params,
            "model_state": nnx.to_pure_dict(parts.model_state),
            "opt_state": self.make_optimizer(params).init(params),
            **({"ema": jax.tree.map(jnp.copy, params)} if self.ema_decay else {}),
            **({"frozen": nnx.to_pure_dict(parts.frozen)} if self._freezes else {}),
        }

    def model(self, state: State) -> M:
        """The module with the variables of a state as `served_state` gives it."""
        frozen = [state["frozen"]] if self._freezes else []
        return nnx.merge(self._split.graph, state["params"], *frozen, state["model_state"])

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        key = jax.random.fold_in(jax.random.key(state["seed"]), state["step"])

        def loss_of(params: Any, model_state: Any, batch: Batch, key: jax.Array) -> tuple[Loss, Any]:
            model = self.model(state | {"params": params, "model_state": model_state})
            loss = self.loss(model, batch, key)
            return loss, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

        loss, model_state, grads = gradients(
            loss_of,
            state["params"],
            state["model_state"],
            batch,
            key,
            micro_batches=self.config.get("gradient_accumulation_steps", 1),
            remat=self.loss_remat,
            axes=self.batch_axes,
        )
        grads = jax.tree.map(
            lambda g, p: g.astype(self.policy.reduce_dtype).astype(p.dtype), grads, state["params"]
        )
        optimizer = self.make_optimizer(state["params"])
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        new = {
            "step": state["step"] + 1,
            "params": optax.apply_updates(state["params"], updates),
            "model_state": model_state,
            "opt_state": opt_state,
        }
        if self.ema_decay:
            new["ema"] = optax.incremental_update(new["params"], state["ema"], 1 - self.ema_decay)
        return state | new, {"loss": loss}

    # What is frozen, and what is served.

    def parted(self, state: State) -> State:
        """A state whose `params` are all of the model's, as published weights give them, with what is `frozen` apart."""

        def part(tree: Any, frozen: bool, path: tuple[str | int, ...] = ()) -> Any:
            kept = {}
            for name, value in tree.items():
                here = (*path, name)
                if isinstance(value, dict):
                    if inner := part(value, frozen, here):
                        kept[name] = inner
                elif self.is_frozen(here) == frozen:
                    kept[name] = value
            return kept

        frozen = part(state["params"], True)
        return state | {"params": part(state["params"], False)} | ({"frozen": frozen} if frozen else {})

    @functools.cached_property
    def _freezes(self) -> bool:
        """Whether some parameter stays as it is."""
        return bool(jax.tree.leaves(self._split.frozen))

    @property
    def frozen_entries(self) -> tuple[str, ...]:
        return ("frozen",) if self._freezes else ()

    def frozen_state(self, struct: State, seed: int | None) -> State:
        if not struct:
            return {}
        if seed is None:
            raise UserError(
                f"What {type(self).__name__} keeps frozen was drawn from a seed, which is not known."
            )
        draw = jax.jit(
            lambda seed: {name: self.init(seed)[name] for name in struct},
            out_shardings=jax.tree.map(lambda x: x.sharding, struct),
        )
        return draw(np.uint32(seed % 2**32))

    @property
    def served_entries(self) -> dict[str, str]:
        trained = "ema" if self.ema_decay and self.serves_average else "params"
        frozen = {name: name for name in self.frozen_entries}
        return {"params": trained, "model_state": "model_state", **frozen}

    def served_struct(self, layout: Layout) -> State:
        with layouts.use(layout), jax.default_matmul_precision(self.policy.matmul):
            shapes = jax.eval_shape(self.init, layout.struct((), jnp.uint32))
        places = self.state_shardings(shapes, layout)
        return self.served_state(layouts.with_shardings(shapes, places))

    # Shapes.

    def _structs(self, spec: Spec, size: int, layout: Layout) -> Batch:
        def struct(name: str) -> jax.ShapeDtypeStruct:
            shape, dtype = spec[name]
            axes = self.batch_axes(name)
            return layout.struct((size, *shape), dtype, (*axes, *[None] * (1 + len(shape) - len(axes))))

        return {name: struct(name) for name in spec}

    def state_shardings(self, state: State, layout: Layout) -> Any:
        def lies(part: Any, axes: Any) -> Any:
            return jax.tree.map(lambda x, a: layout.param_sharding(x.shape, a.names), part, axes)

        axes = _axes(self._split.params)
        optimizer = self.make_optimizer(state["params"])
        opt_state = optax.tree.map_params(
            optimizer,
            lambda o, a: layout.optimizer_sharding(o.shape, a.names),
            state["opt_state"],
            axes,
            transform_non_params=lambda _: layout.replicated,
        )
        places = jax.tree.map(lambda _: layout.replicated, state)
        places |= {name: lies(state[name], axes) for name in ("params", "ema") if name in state}
        if "frozen" in state:
            places["frozen"] = lies(state["frozen"], _axes(self._split.frozen))
        return places | {"opt_state": opt_state}


class _Parts(NamedTuple):
    """A module as its graph and its variables: the parameters that are trained, those that are not, all others."""

    graph: nnx.GraphDef
    params: Any
    frozen: Any
    model_state: Any


def _axes(params: Any) -> Any:
    """The logical axes of every parameter, as the model's own metadata has them."""

    def axes(variable: nnx.Variable) -> _Axes:
        return _Axes(variable.get_metadata().get("axes"))

    def is_variable(x: Any) -> bool:
        return isinstance(x, nnx.Variable)

    return nnx.to_pure_dict(jax.tree.map(axes, params, is_leaf=is_variable))


class SupervisedWorkload(GradientWorkload[M], Generic[M, D]):
    """A model trained by gradients on a data set.

    A task fills in `build_model`, `loss`, `eval_totals`, `eval_update`, `eval_result`; a workload its
    optimizer. A task that evaluates otherwise overrides `evaluate` and `programs`, and needs none of the
    last three. The data set is the one that `config.data` names; a workload with one of its own overrides
    `dataset` and `prepare`.
    """

    _stream: _Stream | None = None

    # What a task or a workload supplies.

    def eval_totals(self) -> Any:
        """Zeros of the running totals, a pytree of small arrays."""
        raise NotImplementedError

    def eval_update(self, totals: Any, model: M, batch: Batch) -> Any:
        """Adds one evaluation batch to the totals; rows with `mask` 0 are padding and do not count."""
        raise NotImplementedError

    def eval_result(self, totals: Any) -> Evaluation | Future[Evaluation]:
        """Turns totals (numpy) into figures, `quality` among them, or what will be these."""
        raise NotImplementedError

    input_names: tuple[str, ...] = ()
    """The entries of an evaluation batch that `answer` takes."""

    def answer(self, model: M, inputs: Batch) -> jax.Array:
        """`ServedWorkload.predict` of a module."""
        raise NotImplementedError

    # The data set.

    @classmethod
    def prepare(cls, config: ConfigDict, data_dir: Path) -> None:
        input_pipelines.prepare(config.data.name, data_dir, fake=config.data.get("fake", 0))

    @functools.cached_property
    def dataset(self) -> D:
        """The data set, opened without reading an example."""
        options = self.config.data.to_dict() | {"synthetic": self.synthetic}
        # The config names a set of the task's kind.
        return cast(D, input_pipelines.open_dataset(self.config.data.name, self.data_dir, options))

    @property
    def num_train(self) -> int:
        return self.dataset.num_train

    @property
    def num_eval(self) -> int:
        return self.dataset.num_eval

    @property
    def data_description(self) -> str:
        return self.dataset.description

    @property
    def made_up_data(self) -> bool:
        return self.dataset.fake

    def check_data(self) -> None:
        _ = self.dataset  # Opening it reads its manifest and says what is missing.

    # The phases, from those.

    def data(
        self, engine: Engine, state: State, block: Block, start: int, notes: Notes = NO_NOTES
    ) -> tuple[State, Iterator[Batch | Bucketed]]:
        seed = int(jax.device_get(state["seed"]))
        stream = self._stream
        if stream is None or (stream.seed, stream.step) != (seed, start):
            if stream is not None:
                stream.close()
            batches = self.dataset.train_batches(
                seed=seed, batch_size=self.batch_size, start_step=start, rows=engine.rows
            )
            self._stream = stream = _Stream(batches, seed, start)
        return state, stream.until(block.stop)

    def evaluate(
        self, engine: Engine, state: State, notes: Notes = NO_NOTES
    ) -> Evaluation | Future[Evaluation]:
        return self.eval_result(self.measured(engine, state))

    def measured(self, engine: Engine, state: State, batches: int | None = None) -> Any:
        """The totals (numpy) of the whole evaluation set, or of its first so many batches."""
        size = self.config.eval_batch_size
        structs = self.eval_batch_structs(engine.layout)
        model_state = self.served_state(state)
        on_cpu = engine.layout.mesh.devices.flat[0].platform == "cpu"
        totals = engine.run("eval_init")
        read = self.dataset.eval_batches(batch_size=size, rows=engine.layout.rows(size))
        with contextlib.closing(read):
            for batch in itertools.islice(read, batches):
                bucket = self.eval_bucket(batch)
                placed = engine.place(batch, structs[bucket])
                totals = engine.run(named("eval_step", bucket), totals, model_state, placed)
                if on_cpu:
                    # Virtual devices share threads: collectives of steps in flight would wait for each other.
                    jax.block_until_ready(totals)
        return jax.device_get(self.eval_summary(engine, totals))

    def eval_summary(self, engine: Engine, totals: Any) -> Any:
        """What `eval_result` needs of the totals on the devices: all of them, or what is smaller to fetch."""
        return totals

    @property
    def num_samples(self) -> int:
        """Examples of the evaluation set, where a sample is one of those."""
        return self.num_eval

    def sample_spec(self) -> Spec:
        return {name: self.dataset.eval_spec[name] for name in self.input_names}

    def read_samples(self, indices: np.ndarray) -> Batch:
        return self.dataset.read_eval(indices, self.input_names)

    def predict(self, state: State, inputs: Batch) -> jax.Array:
        return self.answer(self.model(state), inputs)

    # Shapes.

    def batch_struct(self, layout: Layout) -> Batch:
        return self._structs(self.dataset.train_spec, self.batch_size, layout)

    def eval_batch_struct(self, layout: Layout) -> Batch:
        """One global evaluation batch as structs."""
        return self._structs(self.dataset.eval_spec, self.config.eval_batch_size, layout)

    def eval_batch_structs(self, layout: Layout) -> Buckets:
        """Those of every bucket, where evaluation batches have several shapes."""
        return Buckets({"": self.eval_batch_struct(layout)})

    def eval_bucket(self, batch: Batch) -> str:
        """The bucket whose shapes an evaluation batch has."""
        return ""

    def programs(self, state: State, layout: Layout) -> dict[str, Program]:
        def eval_step(totals: Any, model_state: State, batch: Batch) -> Any:
            return self.eval_update(totals, self.model(model_state), batch)

        totals = self.eval_structs(layout)
        places = jax.tree.map(lambda x: x.sharding, totals)
        model_state = self.served_state(state)
        programs = {"eval_init": Program(self.eval_totals, (), out_shardings=places)}
        for bucket, batch in self.eval_batch_structs(layout).items():
            args = totals, model_state, batch
            programs[named("eval_step", bucket)] = Program(eval_step, args, (0,), places)
        return programs

    def eval_structs(self, layout: Layout) -> Any:
        """The running totals as structs; on every device whole, where a task does not lay them out."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.replicated),
            jax.eval_shape(self.eval_totals),
        )
