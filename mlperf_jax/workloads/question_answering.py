"""Answers that are spans of a text, told by BERT with a head for their beginnings and ends; quality is SQuAD's F1.

This is what MLPerf Inference serves of BERT. It is tuned from a pre-trained trunk; an example, and a sample, is a row:
a question and a stretch of its text.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipelines.base import num_eval_batches
from input_pipelines.text.spans import SpanDataset
from mlperf_jax.decoding import drawing
from mlperf_jax.errors import UserError
from mlperf_jax.inference import trained
from mlperf_jax.metrics import answers
from mlperf_jax.metrics.classification import cross_entropy
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.supervised import Loss, SupervisedWorkload
from mlperf_jax.training import schedules
from mlperf_jax.training.checkpoints import Checkpoints
from mlperf_jax.training.engine import Engine
from mlperf_jax.weights import bert as weights
from mlperf_jax.weights import files, lazy
from mlperf_jax.workload import NO_NOTES, Batch, Block, Bucketed, Evaluation, Notes, Program, State
from mlperf_jax.workloads.bert_pretraining import bert_config, implementations
from models.bert import BertConfig, PretrainedBert, SpanBert, train_flops_per_row

_TRAINED = "trained"  # as `config.start_weights`: what `bert` left in the same results


class QuestionAnswering(SupervisedWorkload[SpanBert, SpanDataset]):
    """BERT-large on SQuAD v1.1 (closed), and `bert`'s mini on WordNet's glosses (mini)."""

    benchmark = "bert_qa"
    metric = "F1"
    unit = "rows"
    loss_remat = "none"
    _trunk: Path | None = None

    # The model and its start.

    @functools.cached_property
    def model_config(self) -> BertConfig:
        return bert_config(self.config)

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return SpanBert(self.model_config, policy=self.policy, rngs=rngs)

    def implementations(self, platform: str) -> dict[str, Any]:
        return implementations(self.model_config, self._length, self.policy.compute_dtype, platform)

    @property
    def _length(self) -> int:
        (length,) = self.dataset.train_spec["tokens"][0]
        return length

    def look_for_start(self, results: Path) -> None:
        """Finds the newest finished run of `bert`, where its trunk is what training begins with.

        Raises:
            UserError: there is none, or no such file of weights.
        """
        name = self.config.start_weights
        if not name or self.made_up_data:
            return
        if name != _TRAINED:
            self._trunk = files.named(name, self.data_dir)
            if not self._trunk.is_file():
                raise UserError(
                    f"There is no {self._trunk}; put published weights of BERT there, or give --config.start_weights=FILE."
                )
            return
        found = trained.newest_run(results, "bert")
        if found is None:
            raise UserError(
                f"There is no trained model of bert in {results} to begin with; train one with "
                "`python -m mlperf_jax.main --workload=bert` and the same --preset and --results_dir, or give "
                "--config.start_weights=FILE."
            )
        self._trunk = found[0]

    def initial_state(self, engine: Engine, seed: int) -> State:
        state = engine.init(seed)
        if self._trunk is None:
            return state
        encoder = (
            self._published(self._trunk) if self._trunk.is_file() else self._trained(self._trunk, engine)
        )
        placed = jax.tree.map(lazy.place, encoder, state["params"]["encoder"])
        return state | {"params": state["params"] | {"encoder": placed}}

    def _published(self, path: Path) -> State:
        """The trunk of a file; whatever heads it has are passed over."""
        return weights.from_published(files.read_tensors(path), self.model_config, head=None)["params"]

    def _trained(self, run: Path, engine: Engine) -> State:
        """The trunk of a run of `bert`, whole on every process's first device."""
        config, policy, where = self.model_config, self.policy, engine.layout.replicated
        model = nnx.eval_shape(lambda: PretrainedBert(config, policy=policy, rngs=nnx.Rngs(0)))
        struct = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            nnx.to_pure_dict(nnx.state(model, nnx.Param)),
        )
        checkpoints = Checkpoints(run / "checkpoints", read_only=True)
        found = checkpoints.restore_part({"params": struct})["params"]["encoder"]
        checkpoints.close()
        return jax.device_get(found)

    def data(
        self, engine: Engine, state: State, block: Block, start: int, notes: Notes = NO_NOTES
    ) -> tuple[State, Iterator[Batch | Bucketed]]:
        if start == 0 and self._trunk is not None:
            notes.log.event("start_weights", {"from": str(self._trunk)})
        return super().data(engine, state, block, start, notes)

    # The loss.

    def loss(self, model: SpanBert, batch: Batch, key: jax.Array) -> Loss:
        """Cross-entropy over a row's places, the mean of begin and end; where the answer is not in it at place 0."""
        logits = self._logits(model, batch, key)
        losses = cross_entropy(
            jnp.swapaxes(logits, 1, 2).reshape(-1, logits.shape[1]),
            batch["span"].reshape(-1).astype(jnp.int32),
        )
        return losses.sum(), losses.size

    def _logits(self, model: SpanBert, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """[B, L, 2], of padding nothing."""
        inputs = [batch[name].astype(jnp.int32) for name in self.input_names]
        logits = model(*inputs, key=key)
        return jnp.where(batch["segment"][..., None] > 0, logits, jnp.asarray(-1e4, logits.dtype))

    def schedule(self) -> optax.Schedule:
        """Learning rate by step: it falls on a line to 0, in whose place at first a warm-up stands."""
        steps = self._step_after(self.config.max_epochs)
        warmup = round(steps * self.config.schedule.warmup_share)
        return schedules.polynomial_under_warmup(self.config.optimizer.base_lr, warmup, steps)

    # Evaluation: logits come to the host, where answers are found in the texts.

    def programs(self, state: State, layout: Layout) -> dict[str, Program]:
        def logits(model_state: State, inputs: Batch) -> jax.Array:
            return self.predict(model_state, inputs)

        spec = {name: self.dataset.eval_spec[name] for name in self.input_names}
        inputs = self._structs(spec, self.config.eval_batch_size, layout)
        args = self.served_state(state), inputs
        return {"span_logits": Program(logits, args, out_shardings=layout.replicated)}

    def evaluate(self, engine: Engine, state: State, notes: Notes = NO_NOTES) -> Evaluation:
        indices = np.arange(self.num_eval)
        return self._figures(indices, self._span_logits(engine, state, indices))

    def _span_logits(self, engine: Engine, state: State, indices: np.ndarray) -> np.ndarray:
        """[N, L, 2], of evaluation rows [N]."""
        size = self.config.eval_batch_size
        mine, struct = engine.layout.rows(size, "eval_batch_size"), engine.programs["span_logits"].args[1]
        model_state, found = self.served_state(state), []
        for n in range(num_eval_batches(len(indices), size)):
            rows = indices[np.minimum(np.arange(n * size, (n + 1) * size), len(indices) - 1)][mine]
            inputs = engine.place(self.read_samples(rows), struct)
            found.append(np.asarray(engine.run("span_logits", model_state, inputs)))
        return np.concatenate(found)[: len(indices)]

    def pictures(self, engine: Engine, state: State, count: int) -> list[bytes]:
        """Texts, questions, answers and what was wanted."""
        of = self.dataset.read_eval(np.arange(self.num_eval), ("question",))["question"]
        rows = np.flatnonzero(of < count)
        told = self.dataset.best_answers(rows, self._span_logits(engine, state, rows))
        asked = [(self.dataset.questions[number], answer) for number, answer in told.items()]
        return [
            drawing.draw(
                [
                    ("text", question.context),
                    ("question", question.question),
                    ("answer", answer),
                    ("wanted", question.answers[0][0]),
                ]
            )
            for question, answer in asked
        ]

    def _figures(self, indices: np.ndarray, logits: np.ndarray) -> Evaluation:
        told = self.dataset.best_answers(indices, logits)
        scores = [
            answers.f1(answer, [right for right, _ in self.dataset.questions[number].answers])
            for number, answer in told.items()
        ]
        return {"quality": float(np.mean(scores)), "count": len(scores)}

    input_names = ("tokens", "segment", "token_type")

    def answer(self, model: SpanBert, inputs: Batch) -> jax.Array:
        """Logits of begin and end, [B, L, 2] float32, as MLPerf's accuracy log holds them."""
        return self._logits(model, inputs).astype(jnp.float32)

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        logits = np.stack([np.frombuffer(answer, "<f4").reshape(self._length, 2) for answer in answers])
        return {"quality": self._figures(indices, logits)["quality"]}

    # Facts for logs.

    def import_weights(self, tensors: Mapping[str, lazy.Tensor]) -> tuple[State, dict[str, Any]]:
        """MLPerf's SQuAD model: PyTorch's and its ONNX have GELU by the error function, TensorFlow's by a tangent."""
        gelu = "tanh" if any("/" in name for name in tensors) else "erf"
        return weights.from_published(tensors, self.model_config, head="span"), {"model.gelu": gelu}

    def train_flops_per_example(self) -> float:
        return train_flops_per_row(self.model_config, self._length, 0)

    def hyperparameters(self) -> dict[str, Any]:
        optimizer = self.config.optimizer
        return {
            "opt_name": optimizer.name,
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_adamw_beta_1": optimizer.beta1,
            "opt_adamw_beta_2": optimizer.beta2,
            "opt_adamw_epsilon": optimizer.epsilon,
            "opt_adamw_weight_decay": optimizer.weight_decay,
            "max_sequence_length": self._length,
        }
