"""Language models that tell the next token of packed rows; quality is log perplexity, the mean loss of a token.

Rows are cut out of texts that follow each other without any mark, and attention sees across texts, as in MLPerf's reference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipelines.text.token_rows import TokenRows
from mlperf_jax.errors import UserError
from mlperf_jax.goals import Direction
from mlperf_jax.language.token_loss import summed_loss, token_losses
from mlperf_jax.rounds import published_curves
from mlperf_jax.rounds.published_curves import Beside
from mlperf_jax.supervised import Loss, SupervisedWorkload
from mlperf_jax.training import schedules
from mlperf_jax.training.engine import Engine
from mlperf_jax.weights import lazy, llama
from mlperf_jax.workload import NO_NOTES, Batch, Block, Evaluation, Notes, State
from models.attention_function import choose
from models.attention_mask import Mask
from models.decoder import Decoder, DecoderConfig, train_flops_per_row


class LanguageModelling(SupervisedWorkload[Decoder, TokenRows]):
    """A decoder on rows of tokens."""

    metric = "log perplexity"
    unit = "sequences"
    direction = Direction.LOSS
    counts_samples = True
    # The model computes layer by layer again what it does not keep.
    loss_remat = "none"

    # The model and its loss.

    @functools.cached_property
    def model_config(self) -> DecoderConfig:
        config = self.config
        return DecoderConfig(
            **config.model.to_dict(),
            attention=config.get("attention", "auto"),
            remat=config.get("remat", "none"),
        )

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return Decoder(self.model_config, policy=self.policy, rngs=rngs)

    def implementations(self, platform: str) -> dict[str, Any]:
        model = self.model_config
        attention = choose(
            model.attention,
            queries=self._length,
            keys=self._length,
            width=model.head_width,
            dtype=self.policy.compute_dtype,
            dropout=False,
            mask=Mask(causal=True),
            platform=platform,
        )
        return {"attention": attention}

    @property
    def _length(self) -> int:
        return self.config.data.length

    def check_data(self) -> None:
        """Also: that the model knows every token."""
        super().check_data()
        found, known = self.dataset.vocabulary_size, self.model_config.vocab_size
        if found > known:
            raise UserError(
                f"The data has {found:,} tokens and the model {known:,}; give --config.model.vocab_size={found}."
            )

    def loss(self, model: Decoder, batch: Batch, key: jax.Array) -> Loss:
        """Over all tokens of the rows but the first of each."""
        labels, weights = batch["tokens"][:, 1:], self._weights(batch)
        key_of_dropout = key if self.model_config.low_rank else None
        states = model.hidden(batch["tokens"][:, :-1], key=key_of_dropout).states
        total = summed_loss(states, model.last_kernel, labels, weights, tile=self.config.loss_tile)
        return total, weights.sum(dtype=total.dtype)

    def _weights(self, batch: Batch) -> jax.Array:
        """1 where a token is asked for, [B, L]: all but the first of a row, or those of them that are `told`."""
        told = batch.get("told")
        return jnp.ones_like(batch["tokens"][:, 1:]) if told is None else told[:, 1:]

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        numbers = self.config.schedule
        return schedules.cosine_after_warmup(
            self.config.optimizer.base_lr, numbers.end_lr, numbers.warmup_steps, numbers.max_steps
        )

    # When it is evaluated, and how.

    def blocks(self) -> Iterator[Block]:
        """Evaluations every so many samples, rounded up to whole batches, until the rate has reached its end or `max_epochs`."""
        every = math.ceil(self.config.eval_every_samples / self.batch_size)
        last = min(self.config.schedule.max_steps, self._step_after(self.config.max_epochs))
        for index, start in enumerate(range(0, last, every)):
            stop = min(start + every, last)
            yield Block(index, start, stop, self.epochs(start), self.epochs(stop) - self.epochs(start))

    def eval_totals(self) -> Any:
        model, wide = self.model_config, jnp.promote_types(self.policy.output_dtype, jnp.float32)
        totals = {"loss": jnp.zeros((), wide), "count": jnp.zeros((), jnp.int32)}
        if model.num_experts:
            totals["load"] = jnp.zeros((model.num_layers, model.num_experts), jnp.float32)
        return totals

    def eval_update(self, totals: Any, model: Decoder, batch: Batch) -> Any:
        """Rows count alike, however many of their tokens are asked for."""
        real = batch["mask"] > 0
        losses, loads = self._rows(model, batch)
        found = {"loss": jnp.where(real, losses, 0).sum(), "count": real.sum(dtype=jnp.int32)}
        if loads is not None:
            found["load"] = jnp.where(real[:, None], loads, 0).sum(1)
        return {name: totals[name] + one.astype(totals[name].dtype) for name, one in found.items()}

    def _rows(self, model: Decoder, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Of each row its loss, the mean over what it asks for, [B]; and its load of experts [layers, B, E], if there are any."""
        tokens, weights = batch["tokens"], self._weights(batch)
        hidden = model.hidden(tokens[:, :-1])
        losses = token_losses(hidden.states, model.last_kernel, tokens[:, 1:], tile=self.config.loss_tile)
        return (losses * weights).sum(1) / jnp.maximum(weights.sum(1), 1), hidden.loads

    def evaluate(self, engine: Engine, state: State, notes: Notes = NO_NOTES) -> Evaluation:
        """Also logs of each layer what part of the tokens chose each expert."""
        totals = self.measured(engine, state)
        if "load" in totals:
            load = totals["load"].astype(float)
            tokens = load.sum(1, keepdims=True) / self.model_config.num_chosen
            notes.log.event("expert_load", np.round(load / tokens, 5).tolist())
        return self.eval_result(totals)

    def eval_result(self, totals: Any) -> Evaluation:
        """`quality`, in nats a token; `bits_per_byte` of the text, where it is known how long that is.

        Of experts `most_load` and `least_load`: how many times as many tokens chose one of them as on average, over all layers.
        """
        count = int(totals["count"])
        loss = float(totals["loss"]) / max(count, 1)
        found = {"quality": loss, "count": float(count)}
        if of_token := self.dataset.bytes_per_token:
            found["bits_per_byte"] = loss / math.log(2) / of_token
        if "load" in totals:
            load = totals["load"] / totals["load"].mean(1, keepdims=True)
            found |= {"most_load": float(load.max()), "least_load": float(load.min())}
        return found

    input_names: tuple[str, ...] = ("tokens",)

    def answer(self, model: Decoder, inputs: Batch) -> jax.Array:
        """The log perplexity of each row, [B] float32."""
        return self._rows(model, inputs)[0].astype(jnp.float32)

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        return {"quality": float(np.mean([np.frombuffer(answer, "<f4") for answer in answers], dtype=float))}

    def import_weights(self, tensors: Mapping[str, lazy.Tensor]) -> tuple[State, dict[str, Any]]:
        return llama.from_published(tensors, self.model_config), {}

    # Facts for logs.

    def published_runs(self, step: int) -> Beside | None:
        """Of closed runs on the benchmark's own data."""
        if self.config.preset != "closed" or self.made_up_data:
            return None
        rate, samples = self.config.optimizer.base_lr, step * self.batch_size
        return published_curves.beside(self.benchmark, self.batch_size, rate, samples)

    def train_flops_per_example(self) -> float:
        return train_flops_per_row(self.model_config, self._length)

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule = self.config.optimizer, self.config.schedule
        return {
            "opt_name": optimizer.name,
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_end_learning_rate": schedule.end_lr,
            "opt_learning_rate_warmup_steps": schedule.warmup_steps,
            "opt_learning_rate_decay_steps": schedule.max_steps - schedule.warmup_steps,
            "opt_learning_rate_decay_schedule": "cosine with linear warmup",
            "opt_adamw_beta_1": optimizer.beta1,
            "opt_adamw_beta_2": optimizer.beta2,
            "opt_adamw_epsilon": optimizer.epsilon,
            "opt_adamw_weight_decay": optimizer.weight_decay,
            "opt_gradient_clip_norm": optimizer.clip_norm,
            "max_sequence_length": self._length,
            "max_steps": schedule.max_steps,
        }


class Llama31(LanguageModelling):
    """Llama 3.1 8B on C4 (closed), and a small one on Linux's documentation (mini)."""

    benchmark = "llama31_8b"


class GptOss(LanguageModelling):
    """MLPerf's mixture of experts of that name on C4 (closed), and a small one on Linux's documentation (mini)."""

    benchmark = "gpt_oss_20b"

    def schedule(self) -> optax.Schedule:
        """Megatron's: the first update's rate is 0, and the end is reached when the logged steps of decay are over.

        Source: NVIDIA/Megatron-LM, megatron/core/optimizer_param_scheduler.py; the reference's lr_decay_iters.
        """
        numbers = self.config.schedule
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=self.config.optimizer.base_lr,
            warmup_steps=numbers.warmup_steps,
            decay_steps=numbers.max_steps - numbers.warmup_steps,
            end_value=numbers.end_lr,
        )
