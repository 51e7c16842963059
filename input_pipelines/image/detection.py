"""What the object-detection sets share: a stream of augmented images with boxes, and the truth to judge by."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from input_pipelines import base, synthetic
from input_pipelines.image import box_augmentation
from mlperf_jax.errors import UserError

SPLITS = ("train", "eval")

Objects = tuple[np.ndarray, np.ndarray]


class Source(Protocol):
    """Images and their objects; picklable, for worker processes.

    Attributes:
        counts: split -> number of images.
        most_objects: of one train image.
        image_ids: [num_eval] int32, under which the ground truth knows the eval images.
        sizes: [num_eval, 2] int32, their height and width.
    """

    counts: Mapping[str, int]
    most_objects: int
    image_ids: np.ndarray
    sizes: np.ndarray

    def image(self, split: str, index: int) -> np.ndarray:
        """Returns an image, [H, W, 3] uint8."""
        ...

    def objects(self, index: int) -> Objects:
        """Returns boxes [n, 4] float32 (left, top, right, bottom, in [0, 1]) and labels [n] int32 of a train image."""
        ...


class DetectionDataset:
    """The `base.Dataset` of images with boxes.

    A train example has `image` [S, S, 3] uint8, `boxes` [M, 4] float32 (left, top, right, bottom in
    parts of the image) and `labels` [M] int32, 0 for padding. An eval example has `image`, `image_id`
    [] int32 and `size` [2] int32, the height and width of the image as the ground truth knows it.

    Args:
        source: the images.
        category_ids: the ground truth's ids of labels 1, 2, ...
        ground_truth: what `pycocotools.coco.COCO` is made of: the file, or its content.
        options: of the config: `image_size` S, `max_boxes` M, `crop_attempts` (see
            `box_augmentation.random_crop`), and, by default 0, `num_threads` (batches made at once in
            each process; 0 as many as there are cores, at most 8) and `num_workers` (processes that
            make them; 0 makes them in threads of this process).
        fake, description: see `base.Dataset`.

    Attributes:
        category_ids: label -> id in the ground truth; index 0, the background's, holds 0.
        num_classes: with the background, so that labels are below it.
        ground_truth: as given.

    Raises:
        UserError: an option makes no sense, or some image has more than M objects.
    """

    def __init__(
        self,
        source: Source,
        *,
        category_ids: tuple[int, ...],
        ground_truth: Path | dict[str, Any],
        options: Mapping[str, Any],
        fake: bool,
        description: str,
    ) -> None:
        self.source = source
        self._size, self._boxes, self._attempts = checked_options(options)
        if source.most_objects > self._boxes:
            raise UserError(
                f"An image has {source.most_objects} objects, more than --config.data.max_boxes={self._boxes}; "
                "set it to that number or higher."
            )
        self._prefetched = functools.partial(
            base.prefetched,
            num_threads=options.get("num_threads") or min(os.cpu_count() or 1, 8),
            num_workers=options.get("num_workers") or 0,
        )
        self.num_train, self.num_eval = (source.counts[split] for split in SPLITS)
        self.train_spec = train_spec(self._size, self._boxes)
        self.eval_spec = eval_spec(self._size) | base.MASK_SPEC
        self.category_ids = (0, *category_ids)
        self.num_classes = len(self.category_ids)
        self.ground_truth = ground_truth
        self.fake, self.description = fake, description

    def train_batches(
        self, *, seed: int, batch_size: int, start_step: int, rows: slice
    ) -> base.BatchIterator:
        make_batch = functools.partial(
            train_batch,
            self.source,
            spec=self.train_spec,
            attempts=self._attempts,
            seed=seed,
            batch_size=batch_size,
            rows=rows,
        )
        return self._prefetched(make_batch, start_step)

    def eval_batches(self, *, batch_size: int, rows: slice) -> base.BatchIterator:
        make_batch = functools.partial(
            _eval_batch, self.source, size=self._size, batch_size=batch_size, rows=rows
        )
        return self._prefetched(make_batch, 0, base.num_eval_batches(self.num_eval, batch_size))

    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> base.Batch:
        """As `base.Dataset` has it; images are decoded only if they are asked for, on all cores."""
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return _eval_rows(self.source, indices, fields, self._size, map_rows=pool.map)


def checked_options(options: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns image_size, max_boxes and crop_attempts.

    Raises:
        UserError: one of them is not positive.
    """
    values = {name: options[name] for name in ("image_size", "max_boxes", "crop_attempts")}
    for name, value in values.items():
        if value < 1:
            raise UserError(f"--config.data.{name}={value} makes no sense; it must be 1 or more.")
    return tuple(values.values())


def train_spec(size: int, max_boxes: int) -> base.Spec:
    return {
        "image": ((size, size, 3), np.dtype(np.uint8)),
        "boxes": ((max_boxes, 4), np.dtype(np.float32)),
        "labels": ((max_boxes,), np.dtype(np.int32)),
    }


def eval_spec(size: int) -> base.Spec:
    return {
        "image": ((size, size, 3), np.dtype(np.uint8)),
        "image_id": ((), np.dtype(np.int32)),
        "size": ((2,), np.dtype(np.int32)),
    }


def train_batch(
    source: Source, step: int, *, spec: base.Spec, attempts: int, seed: int, batch_size: int, rows: slice
) -> base.Batch:
    """Returns rows `rows` of the global batch of step `step`, in the shapes of `spec`."""
    positions = base.train_positions(step, batch_size=batch_size, rows=rows)
    examples = base.examples_at(positions, seed=seed, num_examples=source.counts["train"])
    batch = {name: np.zeros((len(positions), *shape), dtype) for name, (shape, dtype) in spec.items()}
    size = batch["image"].shape[1]
    for row, (position, example) in enumerate(zip(positions.tolist(), examples.tolist(), strict=True)):
        boxes, labels = box_augmentation.train_image(
            source.image("train", example),
            *source.objects(example),
            size=size,
            seed=seed,
            position=position,
            attempts=attempts,
            out=batch["image"][row],
        )
        batch["boxes"][row, : len(boxes)] = boxes
        batch["labels"][row, : len(labels)] = labels
    return batch


def _eval_batch(source: Source, index: int, *, size: int, batch_size: int, rows: slice) -> base.Batch:
    examples = base.eval_examples(index, num_examples=source.counts["eval"], batch_size=batch_size, rows=rows)
    return base.with_mask(_eval_rows(source, examples, eval_spec(size), size), rows.stop - rows.start)


def _eval_rows(
    source: Source, examples: np.ndarray, fields: Collection[str], size: int, map_rows: Any = map
) -> base.Batch:
    batch = {}
    if "image" in fields:
        batch["image"] = np.empty((len(examples), size, size, 3), np.uint8)

        def read(row: int) -> None:
            batch["image"][row] = box_augmentation.resized(source.image("eval", int(examples[row])), size)

        for _ in map_rows(read, range(len(examples))):  # Raises what `read` raised.
            pass
    if "image_id" in fields:
        batch["image_id"] = source.image_ids[examples]
    if "size" in fields:
        batch["size"] = source.sizes[examples]
    return batch


class SyntheticDetection(base.InMemoryDataset):
    """Random images with random boxes in the form of a `DetectionDataset`, without files or augmentation.

    Args:
        name: of the data set that it stands for.
        num_train, num_eval: the real set's counts, which options of these names replace.
        category_ids, options: see `DetectionDataset`, whose attributes this has too.
    """

    _POOL, _MOST_OBJECTS = 64, 8

    def __init__(
        self,
        name: str,
        *,
        num_train: int,
        num_eval: int,
        category_ids: tuple[int, ...],
        options: Mapping[str, Any],
    ) -> None:
        size, most, _ = checked_options(options)
        num_train, num_eval = (
            options.get(key) or count for key, count in (("num_train", num_train), ("num_eval", num_eval))
        )
        random = np.random.default_rng(0)
        images = random.integers(256, size=(self._POOL, size, size, 3), dtype=np.uint8)
        corners = np.sort(random.random((self._POOL, most, 2, 2), np.float32), axis=2)
        labels = random.integers(1, len(category_ids) + 1, size=(self._POOL, most), dtype=np.int32)
        labels[np.arange(most) >= random.integers(1, self._MOST_OBJECTS + 1, size=(self._POOL, 1))] = 0
        boxes = np.where(labels[..., None] > 0, corners.reshape(self._POOL, most, 4), 0)
        train = {"image": images, "boxes": boxes, "labels": labels}
        super().__init__(
            {field: synthetic.Repeated(values, num_train) for field, values in train.items()},
            {
                "image": synthetic.Repeated(images, num_eval),
                "image_id": np.arange(num_eval, dtype=np.int32),
                "size": np.full((num_eval, 2), size, np.int32),
            },
            fake=True,
            description=f"synthetic data shaped as {name}, {num_train:,} train and {num_eval:,} eval examples",
        )
        self.category_ids = (0, *category_ids)
        self.num_classes = len(self.category_ids)
        rows = np.arange(num_eval) % self._POOL
        sizes = np.full((num_eval, 2), size)
        self.ground_truth = coco_truth(
            np.arange(num_eval), sizes, boxes[rows], labels[rows], self.category_ids
        )


def coco_truth(
    image_ids: np.ndarray,
    sizes: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    category_ids: Sequence[int],
) -> dict[str, Any]:
    """Returns ground truth in COCO's form: image_ids [N], sizes [N, 2], boxes [N, M, 4], labels [N, M]."""
    annotations = []
    for row, column in zip(*np.nonzero(labels), strict=True):
        corners = (boxes[row, column].reshape(2, 2) * sizes[row, ::-1]).astype(float)
        extent = corners[1] - corners[0]
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": int(image_ids[row]),
                "category_id": int(category_ids[labels[row, column]]),
                "bbox": [*corners[0].tolist(), *extent.tolist()],
                "area": float(extent.prod()),
                "iscrowd": 0,
            }
        )
    images = [
        {"id": int(image), "height": int(height), "width": int(width)}
        for image, (height, width) in zip(image_ids, sizes, strict=True)
    ]
    categories = [{"id": int(category), "name": str(category)} for category in category_ids[1:]]
    return {"images": images, "annotations": annotations, "categories": categories}
