"""COCO 2017, object detection: 117,266 train images with objects and 5,000 eval images, 80 categories.

Lin et al., "Microsoft COCO: Common Objects in Context", arXiv:1405.0312. `prepare` reads either form:
  original   annotations_trainval2017.zip, train2017.zip and val2017.zip of cocodataset.org, each as it is
             or unpacked into folders annotations, train2017 and val2017; in DATA_DIR or DATA_DIR/coco
  TFDS       DATA_DIR/coco/2017/<version>/, the builder `coco/2017` in ArrayRecord files
and writes DATA_DIR/coco2017: the JPEGs as they are, in ArrayRecord files, the boxes as arrays, and the
ground truth without outlines. Images are in the order of their ids, whatever they came from. As in
MLPerf's reference (retired_benchmarks/ssd-v1/ssd/utils.py, COCODetection) train images without any
annotation are left out, and crowds are trained on like single objects.
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
from input_pipelines.image import box_augmentation, coco_originals, detection, fake_images, preprocessing
from mlperf_jax.errors import UserError

NUM_TRAIN, NUM_EVAL = 117_266, 5_000
NUM_TRAIN_WITH_EMPTY = 118_287
CATEGORY_IDS = coco_originals.CATEGORY_IDS

_SHARD = 8192  # images in a file

FAKE_BYTES = 100_000


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/coco2017, or a made-up set in its form, unless it is there, and says what it is.

    Args:
        data_dir: see the module.
        fake: if not 0, the number of made-up train images; an eighth as many are for evaluation.
        verify: compare the SHA-256 of every file that is there already.

    Raises:
        UserError: COCO is not there, not whole or damaged, or the disk is full.
    """
    folder = _folder(data_dir, fake)
    prepared.prepare_folder(folder, functools.partial(_build, data_dir=data_dir, fake=fake), verify=verify)
    return f"{_describe(Records(folder), fake > 0)}, in {folder}"


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"coco_fake_{fake}" if fake else "coco2017")


def _build(folder: Path, *, data_dir: Path, fake: int) -> dict[str, Any]:
    if fake:
        counts = {"train": fake, "eval": max(1, fake // 8)}
        original: coco_originals.Original = coco_originals.MadeUp(counts, fake_images.photograph)
    elif found := coco_originals.find(data_dir):
        original = found
    else:
        raise UserError(f"COCO 2017 is not in {data_dir}; {_HOW_TO_GET_IT}")
    with progress.step("reading the annotations"):
        listings = {split: original.images(split) for split in detection.SPLITS}
    with_objects = [image for image in listings["train"] if len(image.boxes)]
    if not fake:
        _check_counts(data_dir, len(listings["train"]), len(with_objects), len(listings["eval"]))
    listings["train"] = with_objects
    _write_train_objects(folder, with_objects)
    _write_ground_truth(folder, listings["eval"])
    for split, listing in listings.items():
        _write_jpegs(folder, split, original, listing)
    return {
        "name": folder.name,
        "fake": fake > 0,
        "num_train": len(listings["train"]),
        "num_eval": len(listings["eval"]),
    }


_HOW_TO_GET_IT = (
    "get annotations_trainval2017.zip, train2017.zip and val2017.zip from cocodataset.org and put them there, "
    "unpacked or not, or TFDS's coco/2017 in array_record format, then prepare it (--prepare, or python -m "
    "mlperf_jax.prepare); or use --preset=mini, --synthetic_data, or a made-up set: `python -m "
    "mlperf_jax.prepare --workload=ssd_resnet34 --fake=N`, then --config.data.fake=N."
)


def _check_counts(data_dir: Path, num_train: int, num_with_objects: int, num_eval: int) -> None:
    for what, count, wanted in (
        ("train images", num_train, NUM_TRAIN_WITH_EMPTY),
        ("train images with objects", num_with_objects, NUM_TRAIN),
        ("eval images", num_eval, NUM_EVAL),
    ):
        if count != wanted:
            raise UserError(
                f"The COCO in {data_dir} has {count:,} {what} where COCO 2017 has {wanted:,}; get all of it."
            )


def _write_train_objects(folder: Path, listing: Sequence[coco_originals.Image]) -> None:
    """Writes the boxes of all train images one after the other, and where each image's end."""
    label_of = {category: label for label, category in enumerate(CATEGORY_IDS, 1)}
    boxes, labels = [], []
    for image in listing:
        corners = np.concatenate([image.boxes[:, :2], image.boxes[:, :2] + image.boxes[:, 2:]], 1)
        parts = (corners / ([image.width, image.height] * 2)).astype(np.float32)
        classes = np.array([label_of[category] for category in image.categories.tolist()], np.int32)
        parts, classes = box_augmentation.without_degenerate(parts, classes)
        boxes.append(parts)
        labels.append(classes)
    ends = np.cumsum([len(some) for some in boxes], dtype=np.int64)
    ids = np.array([image.id for image in listing], np.int32)
    arrays: dict[str, np.ndarray] = {
        "boxes": np.concatenate(boxes),
        "labels": np.concatenate(labels),
        "ends": ends,
        "ids": ids,
    }
    prepared.save_arrays(folder, "train", arrays)


def _write_ground_truth(folder: Path, listing: Sequence[coco_originals.Image]) -> None:
    truth = detection.coco_truth(
        ((image.id, image.height, image.width) for image in listing),
        itertools.chain.from_iterable(map(_true_boxes, listing)),
        ((category, str(category)) for category in CATEGORY_IDS),
    )
    (folder / "eval.json").write_text(json.dumps(truth))
    ids = np.array([image.id for image in listing], np.int32)
    sizes = np.array([(image.height, image.width) for image in listing], np.int32)
    prepared.save_arrays(folder, "eval", {"ids": ids, "sizes": sizes})


def _true_boxes(image: coco_originals.Image) -> Iterator[detection.TrueBox]:
    columns = (image.categories, image.boxes, image.areas, image.crowds)
    for category, box, area, crowd in zip(*(column.tolist() for column in columns), strict=True):
        yield detection.TrueBox(image.id, category, box, area, int(crowd))


def _write_jpegs(
    folder: Path, split: str, original: coco_originals.Original, listing: Sequence[coco_originals.Image]
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
                _check_size(jpeg, split, image)
                writer.write(jpeg)
                advance(1)
            writer.close()


def _shard_paths(folder: Path, split: str, num_images: int) -> list[Path]:
    count = -(-num_images // _SHARD)
    return [folder / f"{split}-{index:05d}-of-{count:05d}.array_record" for index in range(count)]


def _check_size(jpeg: bytes, split: str, image: coco_originals.Image) -> None:
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError as error:
        raise UserError(
            f"COCO's {split} image {image.id} is not a JPEG ({error}); get COCO's files again."
        ) from None
    if (height, width) != (image.height, image.width):
        raise UserError(
            f"COCO's {split} image {image.id} is {width}x{height} where its annotations say "
            f"{image.width}x{image.height}; get COCO's files again."
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
        first, end = (int(self._ends[index - 1]) if index else 0), int(self._ends[index])
        return self._boxes[first:end], self._labels[first:end]


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> detection.AugmentedDetection:
    """Opens the prepared set, or the made-up one in its place if the options ask for that.

    Args:
        data_dir: see the module.
        options: `fake` (int, 0): the set that `prepare --fake=N` wrote; the rest is told by
            `detection.AugmentedDetection`.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    fake = options.get("fake") or 0
    folder = _folder(data_dir, fake)
    if not fake and not folder.is_dir():
        raise UserError(f"COCO 2017 is not prepared in {data_dir}; {_HOW_TO_GET_IT}")
    source = Records(folder)
    return detection.AugmentedDetection(
        source,
        category_ids=CATEGORY_IDS,
        ground_truth=folder / "eval.json",
        options=options,
        fake=source.fake,
        description=_describe(source, source.fake),
    )


def _describe(source: Records, fake: bool) -> str:
    what = "Fake COCO (random images, not MLPerf's data)" if fake else "COCO 2017"
    return f"{what}, {source.counts['train']:,} train and {source.counts['eval']:,} eval images"


def open_synthetic(options: Mapping[str, Any]) -> detection.SyntheticDetection:
    """What `--synthetic_data` makes up; see `detection.AugmentedDetection` for the options."""
    return detection.SyntheticDetection(
        "coco", num_train=NUM_TRAIN, num_eval=NUM_EVAL, category_ids=CATEGORY_IDS, options=options
    )
