"""A set of JPEGs with boxes as it is prepared: the JPEGs as they are in ArrayRecord files, boxes as arrays.

The ground truth for evaluation is kept as COCO's annotations have it. Where the original has outlines, these are in it,
and each object's mask to train on is an array: bits on a grid over its box (`input_pipelines.image.outlines`).
Keypoints likewise, where it has those.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared, progress
from input_pipelines.image import (
    box_augmentation,
    coco_originals,
    detection,
    keypoint_detection,
    outlines,
    preprocessing,
)
from mlperf_jax.errors import UserError

_SHARD = 8192  # images in a file


def write(
    folder: Path,
    name: str,
    original: coco_originals.Original,
    listings: Mapping[str, Sequence[coco_originals.Image]],
    categories: Mapping[int, str],
) -> dict[str, int]:
    """Writes both splits into a folder, and returns what its manifest says of them.

    Args:
        folder: to be filled.
        name: of the set, for people.
        original: where the JPEGs are.
        listings: split -> its images, in the order in which they are kept.
        categories: the ids of labels 1, 2, ..., and their names.

    Raises:
        UserError: an image is missing or not what it is said to be, or the disk is full.
    """
    _write_train_objects(folder, listings["train"], tuple(categories))
    _write_ground_truth(folder, listings["eval"], categories)
    for split, listing in listings.items():
        _write_jpegs(folder, name, split, original, listing)
    return {f"num_{split}": len(listing) for split, listing in listings.items()}


def _write_train_objects(
    folder: Path, listing: Sequence[coco_originals.Image], category_ids: Sequence[int]
) -> None:
    """Writes the objects of all train images one after the other, and where each image's end."""
    label_of = {category: label for label, category in enumerate(category_ids, 1)}
    boxes, kept = [], []
    for image in listing:
        corners = np.concatenate([image.boxes[:, :2], image.boxes[:, :2] + image.boxes[:, 2:]], 1)
        parts = (corners / ([image.width, image.height] * 2)).astype(np.float32)
        parts, rows = box_augmentation.without_degenerate(parts, np.arange(len(parts)))
        boxes.append(parts)
        kept.append(rows)
    labels = [
        np.array([label_of[category] for category in image.categories[rows].tolist()], np.int32)
        for image, rows in zip(listing, kept, strict=True)
    ]
    ends = np.cumsum([len(some) for some in boxes], dtype=np.int64)
    ids = np.array([image.id for image in listing], np.int32)
    arrays: dict[str, np.ndarray] = {
        "boxes": np.concatenate(boxes),
        "labels": np.concatenate(labels),
        "ends": ends,
        "ids": ids,
    }
    if has_outlines(listing):
        arrays["sizes"] = np.array([(image.height, image.width) for image in listing], np.int32)
        arrays["crowds"] = np.concatenate(
            [image.crowds[rows] for image, rows in zip(listing, kept, strict=True)]
        )
        _write_masks(folder, listing, kept, boxes)
    if has_keypoints(listing):
        arrays["keypoints"] = np.concatenate(
            [
                image.points[rows] / (image.width, image.height, 1)
                for image, rows in zip(listing, kept, strict=True)
                if image.points is not None
            ]
        ).astype(np.float32)
    prepared.save_arrays(folder, "train", arrays)


def has_outlines(listing: Sequence[coco_originals.Image]) -> bool:
    """Whether the objects of all images have outlines."""
    return all(image.outlines is not None for image in listing)


def has_keypoints(listing: Sequence[coco_originals.Image]) -> bool:
    """Whether the objects of all images have keypoints."""
    return all(image.points is not None for image in listing)


MASKS = "train_masks.npy"


def _write_masks(
    folder: Path,
    listing: Sequence[coco_originals.Image],
    kept: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
) -> None:
    """Writes the bits of every object that is kept, one after the other: [objects, CELLS, CELLS / 8] uint8; 0 where it has no polygons."""
    count = sum(map(len, kept))
    shape = count, outlines.CELLS, outlines.CELLS // 8
    # Gigabytes, so never whole in memory.
    masks = np.lib.format.open_memmap(folder / MASKS, "w+", np.uint8, shape)
    row = 0
    with progress.step("drawing outlines", count, "objects") as advance:
        for image, rows, parts in zip(listing, kept, boxes, strict=True):
            corners = parts.astype(float) * ([image.width, image.height] * 2)
            assert image.outlines is not None
            for index, box in zip(rows.tolist(), corners, strict=True):
                outline = image.outlines[index]
                if isinstance(outline, list):
                    masks[row] = outlines.bits_of_polygons(outline, box, outlines.CELLS)
                row += 1
            advance(len(rows))
    masks.flush()


def _write_ground_truth(
    folder: Path, listing: Sequence[coco_originals.Image], categories: Mapping[int, str]
) -> None:
    truth = detection.coco_truth(
        ((image.id, image.height, image.width) for image in listing),
        itertools.chain.from_iterable(map(_true_boxes, listing)),
        categories.items(),
    )
    if has_keypoints(listing):
        labelled = (points for image in listing if image.points is not None for points in image.points)
        truth = keypoint_detection.with_keypoints(truth, labelled)
    (folder / "eval.json").write_text(json.dumps(truth))
    ids = np.array([image.id for image in listing], np.int32)
    sizes = np.array([(image.height, image.width) for image in listing], np.int32)
    prepared.save_arrays(folder, "eval", {"ids": ids, "sizes": sizes})


def _true_boxes(image: coco_originals.Image) -> Iterator[detection.TrueBox]:
    columns = (image.categories, image.boxes, image.areas, image.crowds)
    drawn: Sequence[coco_originals.Outline | None] = image.outlines or [None] * len(image.boxes)
    for category, box, area, crowd, outline in zip(
        *(column.tolist() for column in columns), drawn, strict=True
    ):
        if isinstance(outline, list):
            polygons = [points.ravel().tolist() for points in outline]
            yield detection.TrueBox(image.id, category, box, area, int(crowd), polygons)
        else:
            yield detection.TrueBox(image.id, category, box, area, int(crowd), outline)


def _write_jpegs(
    folder: Path,
    name: str,
    split: str,
    original: coco_originals.Original,
    listing: Sequence[coco_originals.Image],
) -> None:
    """Writes the images in the order of the listing, after a look at the header of each."""
    from array_record.python import array_record_module

    shards = [listing[first : first + _SHARD] for first in range(0, len(listing), _SHARD)]
    with progress.step(f"writing {split} images", len(listing)) as advance:
        for path, shard in zip(_shard_paths(folder, split, len(listing)), shards, strict=True):
            # One image in a group: they are read at random. JPEGs do not shrink.
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
            for image in shard:
                jpeg = original.jpeg(split, image)
                _check_size(jpeg, name, split, image)
                writer.write(jpeg)
                advance(1)
            writer.close()


def _shard_paths(folder: Path, split: str, num_images: int) -> list[Path]:
    count = -(-num_images // _SHARD)
    return [folder / f"{split}-{index:05d}-of-{count:05d}.array_record" for index in range(count)]


def _check_size(jpeg: bytes, name: str, split: str, image: coco_originals.Image) -> None:
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError as error:
        raise UserError(
            f"{name}'s {split} image {image.id} is not a JPEG ({error}); get {name}'s files again."
        ) from None
    if (height, width) != (image.height, image.width):
        raise UserError(
            f"{name}'s {split} image {image.id} is {width}x{height} where its annotations say "
            f"{image.width}x{image.height}; get {name}'s files again."
        )


class Records:
    """The `detection.Source` of a prepared folder."""

    def __init__(self, folder: Path) -> None:
        from array_record.python import array_record_data_source

        self.folder = folder
        manifest = prepared.read_manifest(folder)
        self.fake = bool(manifest.get("fake"))
        self.counts = {split: int(manifest[f"num_{split}"]) for split in detection.SPLITS}
        num_train, num_eval = self.counts.values()
        opened = functools.partial(self._array, "train")
        self._ends = opened("ends", (num_train,), np.int64)
        num_objects = int(self._ends[-1])
        self._boxes = opened("boxes", (num_objects, 4), np.float32)
        self._labels = opened("labels", (num_objects,), np.int32)
        self._train_ids = opened("ids", (num_train,), np.int32)
        self.most_objects = int(np.diff(self._ends, prepend=0).max())
        self.image_ids = self._array("eval", "ids", (num_eval,), np.int32)
        self.sizes = self._array("eval", "sizes", (num_eval, 2), np.int32)
        self._jpegs = {}
        for split, count in self.counts.items():
            paths = [str(path) for path in _shard_paths(folder, split, count)]
            try:
                self._jpegs[split] = array_record_data_source.ArrayRecordDataSource(paths)
            except Exception as error:  # ArrayRecord raises its own.
                raise UserError(
                    f"{folder} cannot be read ({prepared.one_line(error)}); {prepared.AGAIN}"
                ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Records, (self.folder,)  # A worker opens the files itself.

    def _array(self, split: str, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        # In memory, all of them are small.
        return np.array(prepared.open_array(self.folder / f"{split}_{name}.npy", shape, np.dtype(dtype)))

    def image(self, split: str, index: int) -> np.ndarray:
        return preprocessing.decode(self.jpeg(split, index), self._where(split, index))

    def jpeg(self, split: str, index: int) -> bytes:
        """Returns an encoded image."""
        try:
            return self._jpegs[split][index]
        except Exception as error:  # ArrayRecord raises its own.
            raise UserError(
                f"{self._where(split, index)} cannot be read ({prepared.one_line(error)}); {prepared.AGAIN}"
            ) from None

    def _where(self, split: str, index: int) -> str:
        image_id = (self._train_ids if split == "train" else self.image_ids)[index]
        return f"{self.folder}, {split} image {image_id},"

    def objects(self, index: int) -> detection.Objects:
        here = self.rows_of(index)
        return self._boxes[here], self._labels[here]

    def rows_of(self, index: int) -> slice:
        """Which of all objects are a train image's."""
        return slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))
