"""Random images whose objects are ellipses, without files: what `--synthetic_data` makes up for sets with masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipelines import synthetic
from input_pipelines.image import detection, masked_detection, outlines

POOL, MOST_OBJECTS = 16, 8


class MadeUpMasks:
    """The `masked_detection.MaskedSource` of a few images, repeated.

    Args:
        counts: split -> number of images.
        sizes: height and width that the images have in turn.
        num_labels: labels are 1 to this.
        most_objects: in an image.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        sizes: Sequence[tuple[int, int]],
        num_labels: int,
        most_objects: int,
    ) -> None:
        self.counts, self.most_objects = dict(counts), most_objects
        random = np.random.default_rng(0)
        pool = np.array([sizes[i % len(sizes)] for i in range(POOL)], np.int32)
        self._images = [random.integers(256, size=(*size, 3), dtype=np.uint8) for size in pool.tolist()]
        self._objects = [self._drawn(random, num_labels) for _ in range(POOL)]
        self.train_sizes, self.sizes = (pool[np.arange(count) % POOL] for count in self.counts.values())
        self.image_ids = np.arange(self.counts["eval"], dtype=np.int32)

    def _drawn(self, random: np.random.Generator, num_labels: int) -> masked_detection.MaskedObjects:
        count = int(random.integers(1, self.most_objects + 1))
        corners = np.sort(random.random((count, 2, 2), np.float32), axis=1).reshape(count, 4)
        masks = [outlines.bits_of_polygons([outlines.ellipse(box)], box, outlines.CELLS) for box in corners]
        return corners, random.integers(1, num_labels + 1, count, dtype=np.int32), np.stack(masks)

    def image(self, split: str, index: int) -> np.ndarray:
        return self._images[index % POOL]

    def objects(self, index: int) -> detection.Objects:
        return self._objects[index % POOL][:2]

    def masked_objects(self, index: int) -> masked_detection.MaskedObjects:
        return self._objects[index % POOL]

    def true_boxes(self, category_ids: Sequence[int]) -> Iterator[detection.TrueBox]:
        """The objects of the eval images."""
        for index, (height, width) in enumerate(self.sizes.tolist()):
            for corners, label in zip(*self.objects(index), strict=True):
                box = corners.astype(float) * [width, height, width, height]
                sides = box[2:] - box[:2]
                area = float(np.pi / 4 * sides.prod())
                bbox, outline = [*box[:2].tolist(), *sides.tolist()], outlines.ellipse(box).ravel().tolist()
                yield detection.TrueBox(index, category_ids[label - 1], bbox, area, 0, [outline])


def open_synthetic(
    name: str,
    *,
    num_train: int,
    num_eval: int,
    category_ids: tuple[int, ...],
    sizes: Sequence[tuple[int, int]],
    options: Mapping[str, Any],
) -> masked_detection.MaskedDetection:
    """A made-up set.

    Args:
        name: of the data set that it stands for.
        num_train, num_eval: the real set's counts, which options of these names replace.
        category_ids, options: see `masked_detection.MaskedDetection`.
        sizes: height and width of images.
    """
    num_train, num_eval = synthetic.counts(options, num_train, num_eval)
    most = min(MOST_OBJECTS, detection.positive_option(options, "max_boxes"))
    source = MadeUpMasks({"train": num_train, "eval": num_eval}, sizes, len(category_ids), most)
    truth = detection.coco_truth(
        ((index, *size) for index, size in enumerate(source.sizes.tolist())),
        source.true_boxes(category_ids),
        ((category, str(category)) for category in category_ids),
    )
    return masked_detection.MaskedDetection(
        source,
        category_ids=category_ids,
        ground_truth=truth,
        options=options,
        fake=True,
        description=synthetic.describe(name, num_train, num_eval),
    )
