"""Language models whose published weights stay as they are, and are tuned by low-rank changes to the products of attention.

What is frozen lies in the compute dtype, outside of gradient, optimizer and checkpoints; each process reads of the published
file what its own devices hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mlperf_jax.errors import UserError
from mlperf_jax.weights import files, lazy, llama
from mlperf_jax.workload import State
from mlperf_jax.workloads.language_modelling import LanguageModelling
from models import low_rank


class LowRankTuning(LanguageModelling):
    """Begins with the weights that `config.base_weights` names; without a name with drawn ones, for made-up data."""

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
        return files.named(name, self.data_dir) if name else None

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
        raise UserError(
            f"The weights of {self.benchmark} are tuned before they are measured; give them as --config.base_weights=FILE "
            "when it is trained."
        )
