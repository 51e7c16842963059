"""Images with boxes and masks that keep their aspect, in batches of few padded shapes.

As in MLPerf's reference an image is resized so that its shorter side has `shorter` pixels, or its longer one at most
`longest`, and one in two is mirrored (mlcommons/training, retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark/data).
Then it lies in the upper left of the smallest padded shape that holds it (`input_pipelines.image.buckets`).

A batch has images of one shape. An image waits, in the order of the global stream, until as many of its shape as a
batch has are there: every example still appears once in an epoch's worth of stream, and steps are behind the stream
by less than a batch for each shape.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from input_pipelines import base, bucketed
from input_pipelines.image import box_augmentation, buckets, detection, outlines, preprocessing
from mlperf_jax.errors import UserError

MaskedObjects = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes [n, 4] and labels [n] as `detection.Objects`, and masks [n, CELLS, CELLS / 8] uint8 as `outlines` makes them."""


class MaskedSource(detection.Source, Protocol):
    """Images whose objects have masks.

    Attributes:
        train_sizes: [num_train, 2] int32, height and width of the train images.
    """

    @property
    def train_sizes(self) -> np.ndarray: ...

    def masked_objects(self, index: int) -> MaskedObjects:
        """The objects of a train image, crowds not among them."""
        ...


class MaskedDetection(detection.DetectionDataset):
    """Images of a source with masks, mirrored at random to train on.

    A train example has `image` [H, W, 3] uint8, of one of the padded shapes and 0 beyond `extent` [2] int32, its
    height and width in there; `boxes` [M, 4] float32 in parts of that, `labels` [M] int32, 0 for padding, and
    `masks` [M, CELLS, CELLS / 8] uint8. An eval example has `image`, `extent`, `image_id` and `size`.

    Args:
        source: the images.
        category_ids, ground_truth: see `DetectionDataset`, the former without the background.
        options: `shorter` and `longest` (pixels), `longer` (longer sides of the padded shapes), `max_boxes` (M), and
            `num_threads` and `num_workers` as `detection.AugmentedDetection` has them.
        fake, description: see `base.Dataset`.

    Attributes:
        shapes: the padded ones, height and width.

    Raises:
        UserError: an option makes no sense, or some image has more than M objects.
    """

    def __init__(
        self,
        source: MaskedSource,
        *,
        category_ids: tuple[int, ...],
        ground_truth: Path | Mapping[str, Any],
        options: Mapping[str, Any],
        fake: bool,
        description: str,
    ) -> None:
        self._shorter, self._longest, most = (
            detection.positive_option(options, name) for name in ("shorter", "longest", "max_boxes")
        )
        try:
            self.shapes = buckets.shapes(self._shorter, self._longest, options["longer"])
        except ValueError as error:
            raise UserError(f"--config.data.longer makes no sense: {error}.") from None
        if source.most_objects > most:
            raise UserError(
                f"An image has {source.most_objects} objects, more than --config.data.max_boxes={most}; "
                "set it to that number or higher."
            )
        self.source, self.ground_truth, self.category_ids = source, ground_truth, (0, *category_ids)
        self._train_extents, self._eval_extents = map(self._extents, (source.train_sizes, source.sizes))
        self._train_buckets, self._eval_buckets = (
            buckets.bucket_of(extents, self.shapes) for extents in (self._train_extents, self._eval_extents)
        )
        seen: base.Spec = {
            "image": ((*self.shapes[-1], 3), np.dtype(np.uint8)),
            "extent": ((2,), np.dtype(np.int32)),
        }
        super().__init__(
            num_train=source.counts["train"],
            num_eval=source.counts["eval"],
            train_spec={
                **seen,
                "boxes": ((most, 4), np.dtype(np.float32)),
                "labels": ((most,), np.dtype(np.int32)),
                "masks": ((most, outlines.CELLS, outlines.CELLS // 8), np.dtype(np.uint8)),
            },
            eval_spec={**seen, "image_id": ((), np.dtype(np.int32)), "size": ((2,), np.dtype(np.int32))},
            fake=fake,
            description=description,
            **base.background(options),
        )

    def _extents(self, sizes: np.ndarray) -> np.ndarray:
        """Heights and widths [N, 2] that images of sizes [N, 2] are resized to."""
        kinds, those = np.unique(sizes, axis=0, return_inverse=True)
        found = [
            buckets.resized_shape(height, width, self._shorter, self._longest)
            for height, width in kinds.tolist()
        ]
        return np.array(found, np.int32)[those.reshape(-1)]

    def eval_shape(self, indices: np.ndarray) -> list[buckets.Shape]:
        """The padded shape of each of eval examples [N]."""
        return [self.shapes[bucket] for bucket in self._eval_buckets[indices].tolist()]

    # Training.

    def read_train(self, start: int, stop: int, seed: int) -> base.HostBatch:
        """The examples of the stream itself, padded to a shape that holds them all."""
        return self._train_rows(np.arange(start, stop), seed)

    def _train_batch(self, step: int, *, seed: int, batch_size: int, rows: slice) -> base.HostBatch:
        positions = bucketed.batch_of_a_bucket(step, self._train_buckets, seed=seed, batch_size=batch_size)
        return self._train_rows(positions[rows], seed)

    def _train_rows(self, positions: np.ndarray, seed: int) -> base.HostBatch:
        examples = base.examples_at(positions, seed=seed, num_examples=self.num_train)
        batch = {
            name: np.zeros((len(positions), *shape), dtype)
            for name, (shape, dtype) in self.train_spec.items()
            if name != "image"
        }
        batch["image"] = self._room(self._train_buckets[examples])
        batch["extent"] = self._train_extents[examples]
        for row, (position, example) in enumerate(zip(positions.tolist(), examples.tolist(), strict=True)):
            height, width = batch["extent"][row].tolist()
            image = _resized(self.source.image("train", example), height, width)
            boxes, labels, masks = self.source.masked_objects(example)
            if next(box_augmentation.stream(seed, position)) < 0.5:
                image, boxes, masks = (
                    preprocessing.mirrored(image),
                    box_augmentation.flipped(boxes),
                    outlines.mirrored(masks),
                )
            batch["image"][row, :height, :width] = image
            for name, values in (("boxes", boxes), ("labels", labels), ("masks", masks)):
                batch[name][row, : len(values)] = values
        return batch

    def _room(self, of_buckets: np.ndarray) -> np.ndarray:
        """Zeros [N, H, W, 3] uint8 for images of buckets [N], of the shape that all of these have."""
        height, width = np.array(self.shapes)[of_buckets].max(0)
        return np.zeros((len(of_buckets), height, width, 3), np.uint8)

    # Evaluation.

    def eval_batches(self, *, batch_size: int, rows: slice) -> base.BatchIterator:
        """As `base.Dataset` has it, but shape by shape: what the last batch of each shape lacks is zeros."""
        parts = [np.flatnonzero(self._eval_buckets == bucket) for bucket in range(len(self.shapes))]
        groups = [
            part[first : first + batch_size] for part in parts for first in range(0, len(part), batch_size)
        ]
        make_batch = _EvalBatches(self, groups, rows)
        return self._prefetched(make_batch, 0, len(groups))

    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> base.HostBatch:
        """As `base.Dataset` has it, padded to a shape that holds all; images are decoded on all cores."""
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return self._read_eval(indices, fields, pool.map)

    def _read_eval(
        self, indices: np.ndarray, fields: Collection[str], map_rows: base.MapRows
    ) -> base.HostBatch:
        batch = {
            "extent": self._eval_extents[indices],
            "image_id": self.source.image_ids[indices],
            "size": self.source.sizes[indices],
        }
        if "image" in fields:
            batch["image"] = self._room(self._eval_buckets[indices])

            def read(row: int) -> None:
                height, width = batch["extent"][row].tolist()
                image = self.source.image("eval", int(indices[row]))
                batch["image"][row, :height, :width] = _resized(image, height, width)

            for _ in map_rows(read, range(len(indices))):  # Raises what `read` raised.
                pass
        return {name: batch[name] for name in fields}


class _EvalBatches:
    """Makes the evaluation batches of some groups of examples; picklable."""

    def __init__(self, dataset: MaskedDetection, groups: Sequence[np.ndarray], rows: slice) -> None:
        self._dataset, self._groups, self._rows = dataset, groups, rows

    def __call__(self, index: int) -> base.HostBatch:
        # Where this process has none of the real rows, the first tells the shape.
        group, rows = self._groups[index], self._rows
        mine = group[rows]
        fields = [name for name in self._dataset.eval_spec if name != "mask"]
        read = self._dataset._read_eval(mine if len(mine) else group[:1], fields, map)
        real = {name: values[: len(mine)] for name, values in read.items()}
        return base.with_mask(real, rows.stop - rows.start)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image [H, W, 3] uint8 as [height, width, 3], bilinear with antialiasing, as the reference's Pillow does it."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
