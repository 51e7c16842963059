"""The real RetinaNet workload with two stages, on images of plain rectangles; `--workload=tests.workloads.small_retinanet:SmallRetinaNet`."""

import functools

from ml_collections import ConfigDict

from configs.retinanet import get_config
from mlperf_jax.workloads.retinanet import RetinaNetDetection
from tests.workloads.small_ssd import CLASSES, SIZE, Rectangles


class SmallRetinaNet(RetinaNetDetection):
    """Its stem, first stage and norms are frozen, as the closed preset's."""

    @staticmethod
    def get_config(preset):
        config = ConfigDict(get_config("mini").to_dict())
        config.update_from_flattened_dict(
            {
                "model.image_size": SIZE,
                "model.num_classes": CLASSES - 1,
                "model.width": 4,
                "model.stages": (1, 1),
                "model.groups": 4,
                "model.channels": 8,
                "model.tower": 1,
                "model.fixed": 2,
                "model.fixed_norms": True,
                "anchor_sizes": (8, 12),
                "detection.candidates": 20,
                "detection.detections": 10,
                "data.num_train": 80,
                "data.num_eval": 12,
                "batch_size": 16,
                "eval_batch_size": 8,
                "max_epochs": 3,
                "target": 2.0,
            }
        )
        return config

    @functools.cached_property
    def dataset(self):
        return Rectangles(self.config.data.num_train, self.config.data.num_eval)
