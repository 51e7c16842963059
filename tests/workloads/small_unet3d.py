"""The real 3D U-Net workload with two levels, on balls in noise; `--workload=tests.workloads.small_unet3d:SmallUNet3D`."""

import functools

import numpy as np
from ml_collections import ConfigDict

from configs.unet3d import get_config
from input_pipelines.volumes import patches, segmentation
from mlperf_jax.workloads.segmentation import UNet3DSegmentation

NAMES = ("small", "large")


def ball(number, shape):
    random = np.random.default_rng(number)
    label = np.zeros(shape, np.uint8)
    for one, radius in ((2, 3.5), (1, 2.0)):
        centre = random.uniform(0.25, 0.75, 3) * shape
        distance = sum((axis - c) ** 2 for axis, c in zip(np.ogrid[*map(slice, shape)], centre, strict=True))
        label[distance < radius**2] = one
    image = (random.normal(0, 0.3, shape) + 1.5 * label).astype(np.float32)
    return segmentation.Case(f"ball {number}", image, label, patches.objects(label))


class SmallUNet3D(UNet3DSegmentation):
    @staticmethod
    def get_config(preset):
        config = ConfigDict(get_config("mini").to_dict())
        config.update_from_flattened_dict(
            {
                "model.channels": (4, 8),
                "model.num_classes": 3,
                "data.patch": (8, 8, 8),
                "data.stride": (4, 4, 4),
                "data.buckets": 2,
                "data.patches_per_volume": 4,
                "batch_size": 8,
                "eval_batch_size": 4,
                "max_epochs": 3,
                "eval_offset_epochs": 1,
                "target": 2.0,
            }
        )
        return config

    @functools.cached_property
    def dataset(self):
        shapes = [(12, 14, 10), (8, 12, 12), (16, 9, 12)]
        train = [ball(i, shapes[i % 3]) for i in range(4)]
        evaluation = [ball(10 + i, shapes[i % 3]) for i in range(5)]
        return segmentation.dataset(
            train,
            evaluation,
            None,
            self.config.data,
            class_names=NAMES,
            padding=0.0,
            fake=True,
            description="balls",
        )
