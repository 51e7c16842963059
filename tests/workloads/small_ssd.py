"""The real SSD workload with two blocks, on images of plain rectangles; `--workload=tests.workloads.small_ssd:SmallSSD`."""

import functools

import numpy as np
from ml_collections import ConfigDict

from configs.ssd_resnet34 import get_config
from input_pipelines.base import InMemoryDataset
from mlperf_jax.workloads.object_detection import SSDResNet34

SIZE, CLASSES, BOXES = 32, 3, 3
COLOURS = np.array([[220, 40, 40], [40, 40, 220]])


class Rectangles(InMemoryDataset):
    """Up to three rectangles of two classes, which differ in colour, on noise; some images are empty."""

    category_ids, num_classes = (0, 7, 9), CLASSES

    def __init__(self, num_train, num_eval):
        random = np.random.default_rng(2)
        train, evaluation = self._examples(random, num_train), self._examples(random, num_eval)
        self.ground_truth = self._truth(evaluation)
        ids = np.arange(100, 100 + num_eval, dtype=np.int32)
        sizes = np.full((num_eval, 2), (40, 80), np.int32)
        shown = {"image": evaluation["image"], "image_id": ids, "size": sizes}
        super().__init__(train, shown, fake=True, description="rectangles")

    def _examples(self, random, count):
        image = random.integers(90, 150, (count, SIZE, SIZE, 3)).astype(np.uint8)
        boxes, labels = np.zeros((count, BOXES, 4), np.float32), np.zeros((count, BOXES), np.int32)
        for i in range(count):
            for m in range(random.integers(0, BOXES + 1)):
                x, y = random.integers(0, SIZE - 16, 2)
                width, height = random.integers(8, 17, 2)
                labels[i, m] = random.integers(1, CLASSES)
                image[i, y : y + height, x : x + width] = COLOURS[labels[i, m] - 1]
                boxes[i, m] = np.array([x, y, x + width, y + height]) / SIZE
        return {"image": image, "boxes": boxes, "labels": labels}

    def _truth(self, examples):
        """In pixels of images of 40 x 80."""
        annotations, images = [], []
        for i, (boxes, labels) in enumerate(zip(examples["boxes"], examples["labels"], strict=True)):
            images.append({"id": 100 + i, "width": 80, "height": 40})
            for (left, top, right, bottom), label in zip(boxes.tolist(), labels.tolist(), strict=True):
                if label:
                    box = [left * 80, top * 40, (right - left) * 80, (bottom - top) * 40]
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": 100 + i,
                            "category_id": self.category_ids[label],
                            "bbox": box,
                            "area": box[2] * box[3],
                            "iscrowd": 0,
                        }
                    )
        categories = [{"id": 7, "name": "red"}, {"id": 9, "name": "blue"}]
        return {"images": images, "annotations": annotations, "categories": categories}


class SmallSSD(SSDResNet34):
    @staticmethod
    def get_config(preset):
        config = ConfigDict(get_config("mini").to_dict())
        config.update_from_flattened_dict(
            {
                "model.image_size": SIZE,
                "model.num_classes": CLASSES,
                "model.width": 8,
                "model.stages": (1, 1),
                "model.strides": (1, 1),
                "model.extra_inner": (8,),
                "model.extra_outer": (16,),
                "model.extra_strides": (2,),
                "model.extra_padding": (1,),
                "model.anchors": (4, 4),
                "anchors.steps": (4.0, 8.0),
                "anchors.scales": (8.0, 14.0, 20.0),
                "detection.candidates": 8,
                "detection.detections": 10,
                "data.num_train": 96,
                "data.num_eval": 12,
                "batch_size": 16,
                "eval_batch_size": 8,
                "schedule.warmup_steps": 2,
                "schedule.decay_epochs": (20, 30),
                "max_epochs": 3,
                "target": 2.0,
            }
        )
        return config

    @functools.cached_property
    def dataset(self):
        return Rectangles(self.config.data.num_train, self.config.data.num_eval)
