"""The real SSD-MobileNet workload with two blocks, on the rectangles of `small_ssd`; `--workload=tests.workloads.small_ssd_mobilenet:SmallSSDMobileNet`."""

import functools

from ml_collections import ConfigDict

from configs.ssd_mobilenet import get_config
from mlperf_jax.workloads.ssd_mobilenet import SSDMobileNet
from tests.workloads.small_ssd import SIZE, Rectangles


class SmallSSDMobileNet(SSDMobileNet):
    """Of categories 7 and 9 among ten classes."""

    @staticmethod
    def get_config(preset):
        config = ConfigDict(get_config("mini").to_dict())
        config.update_from_flattened_dict(
            {
                "model.image_size": SIZE,
                "model.num_classes": 10,
                "model.stem": 8,
                "model.blocks": ((8, 2), (16, 2)),
                "model.taken_after": (1, 2),
                "model.extra_inner": (8,),
                "model.extra_outer": (8,),
                "model.anchors": (3, 6, 6),
                "mining_iou": 0.9,
                "detection.detections": 10,
                "data.num_train": 96,
                "data.num_eval": 12,
                "batch_size": 16,
                "eval_batch_size": 8,
                "schedule.warmup_steps": 2,
                "schedule.boundary_steps": (20, 30),
                "max_epochs": 3,
                "target": 2.0,
            }
        )
        return config

    @functools.cached_property
    def dataset(self):
        return Rectangles(self.config.data.num_train, self.config.data.num_eval)
