"""Models on the trunk of an image classifier, whose published weights their training begins with."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path

import jax

from mlperf_jax.errors import UserError
from mlperf_jax.training.engine import Engine
from mlperf_jax.weights import files, lazy
from mlperf_jax.workload import State
from mlperf_jax.workloads.images import D, ImageWorkload, M


class BackboneWorkload(ImageWorkload[M, D]):
    """Begins with the weights that `config.backbone_weights` names, under "backbone" in each part of the state.

    Attributes:
        published_backbone: the file that the rules mean, for people.
    """

    published_backbone: str

    @abc.abstractmethod
    def import_backbone(self, tensors: Mapping[str, lazy.Tensor]) -> State:
        """The backbone's part of `params` and `model_state` (NumPy's arrays or lazy ones) from published weights.

        Raises:
            UserError: they are of another model.
        """

    @property
    def backbone_file(self) -> Path | None:
        """The published weights: as named, or of that name beside the data; None for random ones."""
        name = self.config.backbone_weights
        return files.named(name, self.data_dir) if name else None

    def check_data(self) -> None:
        """Also: that the backbone is there, which closed rules ask for."""
        super().check_data()
        if self.config.preset == "closed" and not self.made_up_data and not self.backbone_file:
            raise UserError(
                f"The rules want a backbone trained on ImageNet; give {self.published_backbone} as "
                "--config.backbone_weights=FILE."
            )
        if self.backbone_file and not self.backbone_file.is_file():
            raise UserError(
                f"There is no {self.backbone_file}; put {self.published_backbone} there, or give "
                "--config.backbone_weights=FILE (nothing for random ones, with made-up data)."
            )

    def initial_state(self, engine: Engine, seed: int) -> State:
        state = engine.init(seed)
        if self.backbone_file is None:
            return state
        for part, arrays in self._published().items():
            if part not in self.frozen_entries:  # which `init` has put there already
                state[part] = state[part] | jax.tree.map(
                    lazy.place, arrays, {name: state[part][name] for name in arrays}
                )
        return state

    @property
    def frozen_source(self) -> str:
        return str(self.backbone_file) if self.backbone_file else super().frozen_source

    def frozen_state(self, struct: State, seed: int | None) -> State:
        """As `GradientWorkload` has it; of a published backbone the file is read again."""
        if not struct or self.backbone_file is None:
            return super().frozen_state(struct, seed)
        published = self._published()
        return {name: jax.tree.map(lazy.place, published[name], part) for name, part in struct.items()}

    def _published(self) -> State:
        """The backbone's part of the state from its file, under "backbone" in every entry."""
        assert self.backbone_file is not None
        found = self.import_backbone(files.read_tensors(self.backbone_file))
        return self.parted({entry: {"backbone": arrays} for entry, arrays in found.items()})
