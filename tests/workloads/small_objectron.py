"""The real workload with few channels; `--workload=tests.workloads.small_objectron:SmallObjectron`.

Its maps are as large as the real one's, so that the anchors are the real ones.
"""

import functools
from unittest import mock

from ml_collections import ConfigDict

from configs.objectron import get_config
from input_pipelines.image import objectron
from mlperf_jax.workloads.objectron import Objectron

SMALL = {
    "stem": 8,
    "blocks": ((1, 8, 2), (2, 8, 2), (2, 8, 2), (2, 8, 2)),
    "taken_in": 4,
    "last": 32,
    "extra_inner": (8, 8, 8, 8),
    "extra_outer": (16, 16, 16, 16),
}


class SmallObjectron(Objectron):
    """What was answered once stands in the folder of its data."""

    @staticmethod
    def get_config(preset):
        config = ConfigDict(get_config("mini").to_dict())
        config.update_from_flattened_dict({f"model.{key}": value for key, value in SMALL.items()})
        config.inference.batch_sizes = (1, 8)
        config.inference.scenarios = (
            "SingleStream",
            "Offline",
        )  # the others take hundreds of queries to be VALID
        return config

    @functools.cached_property
    def dataset(self):
        with mock.patch.object(objectron, "_ANSWERS", self.data_dir / "answers.json"):
            return super().dataset
