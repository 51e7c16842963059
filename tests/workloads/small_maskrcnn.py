"""The real Mask R-CNN workload with two stages, on images of plain ellipses; `--workload=tests.workloads.small_maskrcnn:SmallMaskRCNN`."""

import functools

import numpy as np
from ml_collections import ConfigDict

from configs.maskrcnn import get_config
from input_pipelines.image import detection, outlines
from input_pipelines.image.masked_detection import MaskedDetection
from mlperf_jax.workloads.instance_segmentation import MaskRCNNSegmentation

SIZE, CLASSES, BOXES = 32, 3, 3
COLOURS = np.array([[220, 40, 40], [40, 40, 220]])
CATEGORY_IDS = (7, 9)
SMALL_REGIONS = {
    "model.box_window": 3,
    "model.dense": 16,
    "model.mask_window": 4,
    "proposals.train.candidates": 24,
    "proposals.train.count": 12,
    "proposals.eval.candidates": 24,
    "proposals.eval.count": 12,
    "regions.count": 16,
    "regions.share": 0.5,
    "detection.candidates": 24,
    "data.shorter": SIZE,
    "data.longest": SIZE,
    "data.longer": (SIZE,),
    "eval_batch_size": 8,
    "inference.batch_sizes": (1,),
}
"""Of the config of a detector with masks: few regions, narrow heads, images of 32 pixels."""


class Ellipses:
    """Up to three ellipses of two classes, which differ in colour, on noise; some images are empty.

    What is drawn later hides what is behind it. Images lie and stand in turn where they are not square.
    """

    most_objects = BOXES

    def __init__(self, num_train, num_eval, longer):
        random = np.random.default_rng(2)
        self.counts = {"train": num_train, "eval": num_eval}
        shapes = [(SIZE, longer), (longer, SIZE)]
        self._drawn = {
            split: [self._draw(random, shapes[i % 2]) for i in range(count)]
            for split, count in self.counts.items()
        }
        self.image_ids = np.arange(100, 100 + num_eval, dtype=np.int32)
        self.train_sizes, self.sizes = (
            np.array([image.shape[:2] for image, _, _ in drawn], np.int32) for drawn in self._drawn.values()
        )

    def _draw(self, random, shape):
        image = random.integers(90, 150, (*shape, 3)).astype(np.uint8)
        labels, masks = [], []
        for _ in range(random.integers(0, BOXES + 1)):
            height, width = random.integers(8, 17, 2)
            y, x = random.integers(0, shape[0] - height), random.integers(0, shape[1] - width)
            rows, columns = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
            mask = np.zeros(shape, bool)
            mask[y : y + height, x : x + width] = rows**2 + columns**2 <= 1
            left = [other & ~mask for other in masks]
            if all(part.sum() > 20 for part in left):
                masks = [*left, mask]
                labels.append(random.integers(1, CLASSES))
                image[mask] = COLOURS[labels[-1] - 1]
        return image, np.array(labels, np.int32), masks

    def image(self, split, index):
        return self._drawn[split][index][0]

    def _boxes(self, masks):
        found = [np.nonzero(mask) for mask in masks]
        boxes = [(x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in found]
        return np.array(boxes, float).reshape(-1, 4)

    def masked_objects(self, index):
        image, labels, masks = self._drawn["train"][index]
        boxes = self._boxes(masks)
        bits = [
            outlines.bits_of_pixels(mask, box, outlines.CELLS) for mask, box in zip(masks, boxes, strict=True)
        ]
        shape = -1, outlines.CELLS, outlines.CELLS // 8
        parts = boxes / np.tile(image.shape[1::-1], 2)
        return parts.astype(np.float32), labels, np.array(bits, np.uint8).reshape(shape)

    def truth(self):
        boxes = []
        for image_id, (_, labels, masks) in zip(self.image_ids.tolist(), self._drawn["eval"], strict=True):
            for label, mask, (left, top, right, bottom) in zip(
                labels.tolist(), masks, self._boxes(masks).tolist(), strict=True
            ):
                bbox, runs = [left, top, right - left, bottom - top], outlines.run_lengths(mask)
                category = CATEGORY_IDS[label - 1]
                boxes.append(detection.TrueBox(image_id, category, bbox, int(mask.sum()), 0, runs))
        images = zip(self.image_ids.tolist(), *self.sizes.T.tolist(), strict=True)
        return detection.coco_truth(images, boxes, [(7, "red"), (9, "blue")])


class SmallMaskRCNN(MaskRCNNSegmentation):
    """Its stem, first stage and norms are frozen, and its optimizer is SGD, as the closed preset's; images of one shape, or of two."""

    @staticmethod
    def get_config(preset):
        config = ConfigDict(get_config("mini").to_dict())
        config.optimizer = get_config("closed").optimizer
        del config.ema_decay
        config.update_from_flattened_dict(
            {
                **SMALL_REGIONS,
                "model.num_classes": CLASSES,
                "model.width": 4,
                "model.stages": (1, 1),
                "model.channels": 4,
                "model.mask_channels": (8,),
                "model.fixed": 2,
                "model.fixed_norms": True,
                "anchor_sizes": (8, 12, 16),
                "detection.detections": 10,
                "data.max_boxes": BOXES,
                "data.num_train": 80,
                "data.num_eval": 12,
                "batch_size": 16,
                "max_epochs": 3,
                "optimizer.base_lr": 0.02,
                "schedule.warmup_steps": 4,
                "target.BBOX": 2.0,
                "target.SEGM": 0.0,
            }
        )
        return config

    @functools.cached_property
    def dataset(self):
        numbers = self.config.data
        source = Ellipses(numbers.num_train, numbers.num_eval, numbers.longest)
        return MaskedDetection(
            source,
            category_ids=CATEGORY_IDS,
            ground_truth=source.truth(),
            options=numbers.to_dict(),
            fake=True,
            description="ellipses",
        )
