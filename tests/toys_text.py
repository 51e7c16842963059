"""Workloads on text for tests of the seam; the door loads them as `--workload=tests.toys_text:Name`.

`Tagger` has all that the six minis have not: two goals that fall, batches of two widths, a loss over the real
tokens of padded rows, a frozen part and a running average. `Doubler` is only served.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from mlperf_jax.goals import Direction, Goal
from mlperf_jax.supervised import GradientWorkload
from mlperf_jax.workload import Bucketed, Buckets, Program, ServedWorkload

VOCABULARY, TAGS = 64, 8
WIDTHS = {"short": 4, "long": 12}
NUM_TRAIN, NUM_EVAL = 256, 88


class _Model(nnx.Module):
    """Tags of tokens by a projection of fixed random vectors."""

    def __init__(self, width, *, policy, rngs):
        self.policy = policy
        table = jax.random.normal(rngs.params(), (VOCABULARY, width), policy.param_dtype)
        self.base = nnx.Param(table, axes=("vocab", "embed"))
        self.head = nnx.Param(jnp.zeros((width, TAGS), policy.param_dtype), axes=("embed", "mlp"))

    def __call__(self, tokens):
        """Logits [B, L, TAGS] of tokens [B, L], 0 for padding."""
        return self.base[...].astype(self.policy.compute_dtype)[tokens] @ self.head[...].astype(
            self.policy.compute_dtype
        )


def _inference(batch_sizes):
    return dict(
        loadgen_model="none",
        min_duration_s=0.2,
        batch_sizes=batch_sizes,
        samples_on_device=False,
        quality_share=0.99,
        sut_timeout_s=60.0,
    )


class Tagger(GradientWorkload[_Model]):
    """Learns the tag of every token; rows of up to 4 tokens and of up to 12 come in batches of their own."""

    benchmark = "toy_tagger"
    unit = "rows"
    counts_samples = True
    num_train, num_eval = NUM_TRAIN, NUM_EVAL
    data_description = "random tokens"
    made_up_data = True

    @staticmethod
    def get_config(preset):
        return ConfigDict(
            dict(
                batch_size=32,
                eval_batch_size=32,
                width=48,
                optimizer=dict(base_lr=0.2),
                ema_decay=0.9,
                target=dict(error=0.1, loss=0.8),
                max_epochs=12,
                eval_offset_epochs=0,
                eval_every_epochs=1,
                steps_per_dispatch=1,
                gradient_accumulation_steps=1,
                precision="auto",
                data=dict(name="tags"),
                inference=_inference(dict(short=(1, 4, 8), long=(1, 4))),
            )
        )

    @property
    def goals(self):
        target = self.config.target
        return (
            Goal("error", target.error, Direction.ERROR, "tag error rate"),
            Goal("loss", target.loss, Direction.LOSS, "cross-entropy"),
        )

    # The model.

    def build_model(self, rngs):
        return _Model(self.config.width, policy=self.policy, rngs=rngs)

    def is_frozen(self, path):
        return "base" in path

    def make_optimizer(self, params):
        return optax.adam(self.config.optimizer.base_lr / 10)

    def batch_axes(self, name):
        return ("batch",)

    def loss(self, model, batch, key):
        real = batch["tokens"] > 0
        log_p = jax.nn.log_softmax(model(batch["tokens"]))
        losses = -jnp.take_along_axis(log_p, batch["tags"][..., None], axis=-1)[..., 0]
        return (losses * real).sum(), real.sum().astype(losses.dtype)

    # The data.

    @functools.cached_property
    def tag_of(self):
        return np.random.default_rng(1).integers(TAGS, size=VOCABULARY)

    @functools.cached_property
    def examples(self):
        """Rows [N, 12] of 1 to 12 tokens, in which short and long ones are as many."""
        random = np.random.default_rng(2)
        rows = np.zeros((NUM_TRAIN + NUM_EVAL, WIDTHS["long"]), np.int32)
        for i, row in enumerate(rows):
            length = random.integers(1, 5) if i % 2 else random.integers(5, 13)
            row[:length] = random.integers(1, VOCABULARY, length)
        return rows

    def batch_struct(self, layout):
        return Buckets({name: self._struct(layout, self.batch_size, width) for name, width in WIDTHS.items()})

    def _struct(self, layout, size, width):
        return {name: layout.struct((size, width), np.int32, ("batch",)) for name in ("tokens", "tags")}

    def data(self, engine, state, block, start, notes=None):
        return state, self._batches(engine.rows, start, block.stop)

    def _batches(self, rows, start, stop):
        for step in range(start, stop):
            bucket = ("short", "long")[step // 2 % 2]
            ours = self.examples[(1 if bucket == "short" else 0) : NUM_TRAIN : 2, : WIDTHS[bucket]]
            picked = ours[np.random.default_rng([7, step]).integers(len(ours), size=self.batch_size)[rows]]
            yield Bucketed(bucket, {"tokens": picked, "tags": self.tag_of[picked].astype(np.int32)})

    # Evaluation.

    def evaluate(self, engine, state, notes=None):
        size, rows = self.config.eval_batch_size, engine.layout.rows(self.config.eval_batch_size)
        totals = []
        for first in range(0, NUM_EVAL, size):
            batch = np.zeros((size, WIDTHS["long"]), np.int32)
            found = self.examples[NUM_TRAIN + first :][:size]
            batch[: len(found)] = found
            batch = {"tokens": batch[rows], "tags": self.tag_of[batch[rows]].astype(np.int32)}
            struct = self._struct(engine.layout, size, WIDTHS["long"])
            totals.append(engine.run("judge", self.served_state(state), engine.place(batch, struct)))
        wrong, loss, count = np.sum(jax.device_get(totals), axis=0, dtype=np.float64)
        return {"error": wrong / count, "loss": loss / count}

    def programs(self, state, layout):
        def judge(variables, batch):
            model = self.model(variables)
            real = batch["tokens"] > 0
            wrong = ((model(batch["tokens"]).argmax(-1) != batch["tags"]) & real).sum()
            loss, count = self.loss(model, batch, jax.random.key(0))
            return jnp.stack([wrong.astype(loss.dtype), loss, count])

        batch = self._struct(layout, self.config.eval_batch_size, WIDTHS["long"])
        return {"judge": Program(judge, (self.served_state(state), batch), out_shardings=layout.replicated)}

    # Inference.

    num_samples = NUM_EVAL

    def _length(self, index):
        return int((self.examples[NUM_TRAIN + index] > 0).sum())

    def sample_specs(self):
        return {name: {"tokens": ((width,), np.dtype(np.int32))} for name, width in WIDTHS.items()}

    def sample_buckets(self, indices):
        return ["short" if self._length(i) <= WIDTHS["short"] else "long" for i in indices]

    def read_samples(self, indices):
        (bucket,) = set(self.sample_buckets(indices))
        return {"tokens": self.examples[NUM_TRAIN + np.asarray(indices)][:, : WIDTHS[bucket]]}

    def predict(self, state, inputs):
        """The scores of every tag of every token, [B, L, TAGS] float32."""
        return jax.nn.log_softmax(self.model(state)(inputs["tokens"])).astype(jnp.float32)

    def logged_answer(self, index, answer):
        return answer[: self._length(index)]

    def answered_figures(self, indices, answers):
        wrong = loss = count = 0
        for index, answer in zip(indices, answers, strict=True):
            scores = np.frombuffer(answer, "<f4").reshape(self._length(index), TAGS)
            tags = self.tag_of[self.examples[NUM_TRAIN + index][: len(scores)]]
            wrong += (scores.argmax(-1) != tags).sum()
            loss -= scores[np.arange(len(tags)), tags].sum()
            count += len(tags)
        return {"error": float(wrong / count), "loss": float(loss / count)}


class Doubler(ServedWorkload):
    """Answers a number with its double, by a weight that can only be imported."""

    benchmark = "toy_doubler"
    num_samples = 50
    data_description = "numbers"

    @staticmethod
    def get_config(preset):
        return ConfigDict(
            dict(target=1.0, precision="auto", data=dict(name="numbers"), inference=_inference((1, 4, 8)))
        )

    def served_struct(self, layout):
        return {"params": {"factor": layout.struct((), self.policy.param_dtype)}}

    def sample_spec(self):
        return {"number": ((), np.dtype(np.float32))}

    def read_samples(self, indices):
        return {"number": np.asarray(indices, np.float32)}

    def predict(self, state, inputs):
        return (state["params"]["factor"] * inputs["number"]).astype(jnp.float32)

    def answered_figures(self, indices, answers):
        found = np.array([np.frombuffer(answer, "<f4").item() for answer in answers])
        return {"quality": float(np.mean(found == 2 * np.asarray(indices)))}

    def import_weights(self, tensors):
        return {"params": {"factor": np.float32(tensors["factor"])}}, {}
