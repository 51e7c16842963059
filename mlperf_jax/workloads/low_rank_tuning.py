"""Language models whose published weights stay as they are, and are tuned by low-rank changes to the products of attention.

What is frozen lies in the compute dtype, outside of gradient, optimizer and checkpoints; each process reads of the published
file what its own devices hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.weights import files, lazy, llama
from mlperf_jax.workload import Block, State
from mlperf_jax.workloads.language_modelling import LanguageModelling
from models import low_rank


class LowRankTuning(LanguageModelling):
    """Begins with the weights that `config.base_weights` names; of made-up data with drawn ones, where these are not there.

    Rows are asked for what their data set says is `told`.
    """

    metric = "loss"
    input_names = ("tokens", "told")

    # What is frozen.

    def is_frozen(self, path: tuple[str | int, ...]) -> bool:
        return not any(str(part).startswith(low_rank.NAME) for part in path)

    def init(self, seed: jax.Array) -> State:
        state = super().init(seed)
        dtype = self.policy.compute_dtype
        return state | {"frozen": jax.tree.map(lambda x: x.astype(dtype), state["frozen"])}

    @property
    def base_file(self) -> Path | None:
        """The published weights: as named, or of that name beside the data; None for drawn ones."""
        name = self.config.base_weights
        path = files.named(name, self.data_dir) if name else None
        return None if path and self.made_up_data and not path.exists() else path

    def check_data(self) -> None:
        """Also: that the weights are there, without which there is nothing to tune."""
        super().check_data()
        if not self.made_up_data and not (self.base_file and self.base_file.exists()):
            raise UserError(
                f"There is no {self.base_file or 'file of weights to tune'}; give --config.base_weights=FILE, or a name "
                f"in {self.data_dir / 'weights'}."
            )

    @property
    def frozen_source(self) -> str:
        return str(self.base_file) if self.base_file else super().frozen_source

    def frozen_state(self, struct: State, seed: int | None) -> State:
        """As `GradientWorkload` has it; of published weights the file is read again."""
        if not struct or self.base_file is None:
            return super().frozen_state(struct, seed)
        published = llama.from_published(files.read_tensors(self.base_file), self.model_config)
        return {"frozen": jax.tree.map(lazy.place, published["params"], struct["frozen"])}

    def import_weights(self, tensors: Mapping[str, lazy.Tensor]) -> tuple[State, dict[str, Any]]:
        """Published weights as they are, to be served untouched: with changes of zeros."""
        published = llama.from_published(tensors, self.model_config)
        changes = nnx.to_pure_dict(self._split.params)
        nothing = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), changes)
        return {"params": nothing, "frozen": published["params"], "model_state": {}}, {}

    # How long it is trained, and how fast.

    def schedule(self) -> optax.Schedule:
        """Learning rate by step: from 0 up, then half a cosine to 0, as get_cosine_schedule_with_warmup of `transformers`."""
        numbers = self.config.schedule
        return optax.warmup_cosine_decay_schedule(
            0.0, self.config.optimizer.base_lr, numbers.warmup_steps, numbers.max_steps
        )

    def blocks(self) -> Iterator[Block]:
        """Evaluations every so many samples, rounded up to whole batches, the first ones left out, to the schedule's end or `max_epochs`."""
        config = self.config
        every = math.ceil(config.eval_every_samples / self.batch_size)
        skipped = math.floor(config.eval_skipped_per_sample * self.batch_size + config.eval_skipped)
        last = min(config.schedule.max_steps, self._step_after(config.max_epochs))
        stops = [*range(min((skipped + 1) * every, last), last, every), last]
        for index, (start, stop) in enumerate(zip([0, *stops], stops, strict=False)):
            yield Block(index, start, stop, self.epochs(start), self.epochs(stop) - self.epochs(start))

    def hyperparameters(self) -> dict[str, Any]:
        config = self.config
        return {
            "opt_name": config.optimizer.name,
            "opt_base_learning_rate": config.optimizer.base_lr,
            "opt_learning_rate_warmup_steps": config.schedule.warmup_steps,
            "opt_learning_rate_training_steps": config.schedule.max_steps,
            "opt_adamw_beta_1": config.optimizer.beta1,
            "opt_adamw_beta_2": config.optimizer.beta2,
            "opt_adamw_epsilon": config.optimizer.epsilon,
            "opt_adamw_weight_decay": config.optimizer.weight_decay,
            "opt_gradient_clip_norm": config.optimizer.clip_norm,
            "lora_rank": config.model.low_rank,
            "lora_alpha": config.model.low_rank_alpha,
            "lora_dropout": config.model.low_rank_dropout,
            "max_sequence_length": self._length,
        }


class Llama2LowRank(LowRankTuning):
    """Llama 2 70B on GovReport (closed), and SmolLM2-135M on Debian's descriptions (mini)."""

    benchmark = "llama2_70b_lora"
