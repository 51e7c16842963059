"""What the object-detection sets share: a stream of augmented images with boxes, and the truth to judge by."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from input_pipelines import base, synthetic
from input_pipelines.image import box_augmentation, flipped, sampled_crop
from mlperf_jax.errors import UserError

SPLITS = ("train", "eval")

Objects = tuple[np.ndarray, np.ndarray]

# What makes a random view to train on, and the whole image to evaluate, by its name in a config.
_AUGMENTATIONS = {
    "ssd": (box_augmentation.train_image, box_augmentation.resized),
    "sampled_crop": (sampled_crop.train_image, box_augmentation.resized),
    "flip": (flipped.train_image, flipped.stretched),
}


class Source(Protocol):
    """Images and their objects; picklable, for worker processes.

    Attributes:
        counts: split -> number of images.
        most_objects: of one train image.
        image_ids: [num_eval] int32, under which the ground truth knows the eval images.
        sizes: [num_eval, 2] int32, their height and width.
    """

    @property
    def counts(self) -> Mapping[str, int]: ...

    @property
    def most_objects(self) -> int: ...

    @property
    def image_ids(self) -> np.ndarray: ...

    @property
    def sizes(self) -> np.ndarray: ...

    def image(self, split: str, index: int) -> np.ndarray:
        """Returns an image, [H, W, 3] uint8."""
        ...

    def objects(self, index: int) -> Objects:
        """Returns boxes [n, 4] float32 (left, top, right, bottom, in [0, 1]) and labels [n] int32 of a train image."""
        ...


class DetectionDataset(base.Dataset):
    """Images with boxes.

    A train example has `image` [S, S, 3] uint8, `boxes` [M, 4] float32 (left, top, right, bottom in
    parts of the image) and `labels` [M] int32, 0 for padding. An eval example has `image`, `image_id`
    [] int32 and `size` [2] int32, the height and width of the image as the ground truth knows it.

    Attributes:
        category_ids: label -> id in the ground truth; index 0, the background's, holds 0.
        ground_truth: what `pycocotools.coco.COCO` is made of: the file, or its content.
    """

    category_ids: tuple[int, ...]
    ground_truth: Path | Mapping[str, Any]

    @property
    def num_classes(self) -> int:
        """With the background, so that labels are below it."""
        return len(self.category_ids)


class AugmentedDetection(DetectionDataset):
    """Images of a source, changed at random to train on.

    Args:
        source: the images.
        category_ids: the ground truth's ids of labels 1, 2, ...
        ground_truth: see `DetectionDataset`.
        options: of the config: `image_size` S, `max_boxes` M, `augmentation` (by default "ssd"; see
            `_AUGMENTATIONS`), `crop_attempts` (see its `random_crop`, if it has one), and, by default 0, `num_threads` (batches made at once in
            each process; 0 as many as there are cores, at most 8) and `num_workers` (processes that
            make them; 0 makes them in threads of this process).
        fake, description: see `base.Dataset`.

    Raises:
        UserError: an option makes no sense, or some image has more than M objects.
    """

    def __init__(
        self,
        source: Source,
        *,
        category_ids: tuple[int, ...],
        ground_truth: Path,
        options: Mapping[str, Any],
        fake: bool,
        description: str,
    ) -> None:
        size, max_boxes, self._attempts = checked_options(options)
        self._view, self._whole = _AUGMENTATIONS[options.get("augmentation", "ssd")]
        if source.most_objects > max_boxes:
            raise UserError(
                f"An image has {source.most_objects} objects, more than --config.data.max_boxes={max_boxes}; "
                "set it to that number or higher."
            )
        super().__init__(
            num_train=source.counts["train"],
            num_eval=source.counts["eval"],
            train_spec={
                "image": ((size, size, 3), np.dtype(np.uint8)),
                "boxes": ((max_boxes, 4), np.dtype(np.float32)),
                "labels": ((max_boxes,), np.dtype(np.int32)),
            },
            eval_spec={
                "image": ((size, size, 3), np.dtype(np.uint8)),
                "image_id": ((), np.dtype(np.int32)),
                "size": ((2,), np.dtype(np.int32)),
            },
            fake=fake,
            description=description,
            **base.background(options),
        )
        self.category_ids, self.ground_truth = (0, *category_ids), ground_truth
        self.source, self._size = source, size

    def read_train(self, start: int, stop: int, seed: int) -> base.HostBatch:
        positions = np.arange(start, stop)
        examples = base.examples_at(positions, seed=seed, num_examples=self.num_train)
        batch = {
            name: np.zeros((len(positions), *shape), dtype)
            for name, (shape, dtype) in self.train_spec.items()
        }
        for row, (position, example) in enumerate(zip(positions.tolist(), examples.tolist(), strict=True)):
            boxes, labels = self._view(
                self.source.image("train", example),
                *self.source.objects(example),
                size=self._size,
                seed=seed,
                position=position,
                attempts=self._attempts,
                out=batch["image"][row],
            )
            batch["boxes"][row, : len(boxes)] = boxes
            batch["labels"][row, : len(labels)] = labels
        return batch

    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> base.HostBatch:
        """As `base.Dataset` has it; images are decoded only if they are asked for, on all cores."""
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return self._read_eval(indices, fields, pool.map)

    def _eval_rows(self, examples: np.ndarray) -> base.HostBatch:
        return self._read_eval(examples, self.eval_spec, map)

    def _read_eval(
        self, indices: np.ndarray, fields: Collection[str], map_rows: base.MapRows
    ) -> base.HostBatch:
        batch = {}
        if "image" in fields:
            batch["image"] = np.empty((len(indices), self._size, self._size, 3), np.uint8)

            def read(row: int) -> None:
                image = self.source.image("eval", int(indices[row]))
                batch["image"][row] = self._whole(image, self._size)

            for _ in map_rows(read, range(len(indices))):  # Raises what `read` raised.
                pass
        if "image_id" in fields:
            batch["image_id"] = self.source.image_ids[indices]
        if "size" in fields:
            batch["size"] = self.source.sizes[indices]
        return batch


def checked_options(options: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns image_size, max_boxes and crop_attempts, 1 where nothing is cropped.

    Raises:
        UserError: one of them is not positive.
    """
    size, most = (positive_option(options, name) for name in ("image_size", "max_boxes"))
    return size, most, positive_option({"crop_attempts": 1, **options}, "crop_attempts")


def positive_option(options: Mapping[str, Any], name: str) -> int:
    """One of the options.

    Raises:
        UserError: it is not positive.
    """
    value: int = options[name]
    if value < 1:
        raise UserError(f"--config.data.{name}={value} makes no sense; it must be 1 or more.")
    return value


class SyntheticDetection(base.InMemoryDataset, DetectionDataset):
    """Random images with random boxes, without files or augmentation.

    Args:
        name: of the data set that it stands for.
        num_train, num_eval: the real set's counts, which options of these names replace.
        category_ids, options: see `AugmentedDetection`.
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
        num_train, num_eval = synthetic.counts(options, num_train, num_eval)
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
            description=synthetic.describe(name, num_train, num_eval),
        )
        self.category_ids = (0, *category_ids)
        rows = np.arange(num_eval) % self._POOL
        self.ground_truth = coco_truth(
            ((index, size, size) for index in range(num_eval)),
            _true_boxes(boxes[rows].astype(float) * size, labels[rows], self.category_ids),
            ((category, str(category)) for category in category_ids),
        )


class TrueBox(NamedTuple):
    """An object as COCO's annotations have it; `bbox` is left, top, width, height in pixels.

    Its outline, where it is known: polygons, each one list of x and y in turn, or runs of pixels.
    """

    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: int
    segmentation: list[list[float]] | Mapping[str, Any] | None = None


def _true_boxes(boxes: np.ndarray, labels: np.ndarray, category_ids: Sequence[int]) -> Iterator[TrueBox]:
    """Of corners [N, M, 4] in pixels and labels [N, M], 0 for none."""
    for row, column in zip(*np.nonzero(labels), strict=True):
        corners = boxes[row, column].reshape(2, 2)
        extent = corners[1] - corners[0]
        bbox = [*corners[0].tolist(), *extent.tolist()]
        yield TrueBox(int(row), category_ids[labels[row, column]], bbox, float(extent.prod()), 0)


def coco_truth(
    images: Iterable[tuple[int, int, int]], boxes: Iterable[TrueBox], categories: Iterable[tuple[int, str]]
) -> dict[str, Any]:
    """Returns ground truth in COCO's form: (id, height, width) of images, boxes, (id, name) of categories."""
    return {
        "images": [{"id": image, "height": height, "width": width} for image, height, width in images],
        "annotations": [
            {"id": number, **{name: value for name, value in box._asdict().items() if value is not None}}
            for number, box in enumerate(boxes, 1)
        ],
        "categories": [{"id": category, "name": name} for category, name in categories],
    }
