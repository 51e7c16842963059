"""COCO 2017, people with keypoints: 56,599 train images with 149,813 people that have some, and 5,000 eval images.

`prepare` reads cocodataset.org's files, as `input_pipelines.image.coco` does, of the annotations person_keypoints_train2017.json
and person_keypoints_val2017.json, and writes DATA_DIR/coco_keypoints2017: the JPEGs as they are, boxes, masks and keypoints as
arrays, and the ground truth. As in Detectron2 (detectron2/data/build.py, filter_images_with_few_keypoints) train images in
which nobody has keypoints are left out. People without some stay in those that are there, and crowds are not trained on. The
counts are those of github.com/liruilong940607/Pose2Seg, issue 33. Keypoints, which COCO places at whole pixels, lie in the
middle of these, in the ground truth too, so that no figure changes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared, progress
from input_pipelines.image import (
    boxed_jpegs,
    coco,
    coco_masks,
    coco_originals,
    detection,
    fake_images,
    keypoint_detection,
    keypoints,
)
from mlperf_jax.errors import UserError

NUM_TRAIN, NUM_EVAL = 56_599, coco.NUM_EVAL
NUM_PEOPLE = 149_813  # of the train images, with keypoints
FAKE_BYTES = coco.FAKE_BYTES
_SIZES = [(480, 640), (640, 480), (427, 640), (640, 427)]  # usual ones


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/coco_keypoints2017, or a made-up set in its form, unless it is there, and says what it is.

    Args:
        data_dir: see the module.
        fake: if not 0, the number of made-up train images; an eighth as many are for evaluation.
        verify: compare the SHA-256 of every file that is there already.

    Raises:
        UserError: COCO is not there, not whole or damaged, or the disk is full.
    """
    folder = _folder(data_dir, fake)
    prepared.prepare_folder(folder, functools.partial(_build, data_dir=data_dir, fake=fake), verify=verify)
    return f"{_describe(boxed_jpegs.Records(folder))}, in {folder}"


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"coco_keypoints_fake_{fake}" if fake else "coco_keypoints2017")


def _build(folder: Path, *, data_dir: Path, fake: int) -> dict[str, Any]:
    if fake:
        counts = {"train": fake, "eval": max(1, fake // 8)}
        original: coco_originals.Original = coco_originals.MadeUp(
            counts, fake_images.photograph, coco_originals.PERSON, outlined=True, people=True
        )
    elif found := coco_originals.find_people(data_dir):
        original = found
    else:
        raise UserError(f"COCO 2017's files are not in {data_dir}; {coco.how_to_get_it('maskrcnn2go')}")
    with progress.step("reading the annotations"):
        listings = {split: original.images(split) for split in detection.SPLITS}
    labelled = [image for image in listings["train"] if _people(image)]
    if not fake:
        _check_counts(data_dir, labelled, len(listings["eval"]))
    listings["train"] = labelled
    counts = boxed_jpegs.write(folder, "COCO", original, listings, {1: "person"})
    return {"name": folder.name, "fake": fake > 0} | counts


def _people(image: coco_originals.Image) -> int:
    """How many have keypoints."""
    return 0 if image.points is None else int((image.points[..., 2] > 0).any(1).sum())


def _check_counts(data_dir: Path, train: Sequence[coco_originals.Image], num_eval: int) -> None:
    for what, count, wanted in (
        ("train images with keypoints", len(train), NUM_TRAIN),
        ("people with keypoints in train images", sum(map(_people, train)), NUM_PEOPLE),
        ("eval images", num_eval, NUM_EVAL),
    ):
        if count != wanted:
            raise UserError(
                f"The COCO in {data_dir} has {count:,} {what} where COCO 2017 has {wanted:,}; get all of it."
            )


class Records(coco_masks.MaskedRecords):
    """The `keypoint_detection.KeypointSource` of a prepared folder.

    Raises:
        UserError: it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        shape = len(self._labels), keypoints.COUNT, 3
        self._points = self._array("train", "keypoints", shape, np.float32)

    def __reduce__(self) -> tuple[Any, ...]:
        return Records, (self.folder,)

    def keypoints(self, index: int) -> np.ndarray:
        here = self.rows_of(index)
        return self._points[here][self._single[here]]


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> keypoint_detection.KeypointDetection:
    """Opens the prepared set, or the made-up one in its place if the options ask for that.

    Args:
        data_dir: see the module.
        options: `fake` (int, 0): the set that `prepare --fake=N` wrote; the rest is told by
            `keypoint_detection.KeypointDetection`.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    fake = options.get("fake") or 0
    folder = _folder(data_dir, fake)
    if not fake and not folder.is_dir():
        raise UserError(
            f"COCO 2017's keypoints are not prepared in {data_dir}; {coco.how_to_get_it('maskrcnn2go')}"
        )
    source = Records(folder)
    return keypoint_detection.KeypointDetection(
        source,
        category_ids=coco_originals.PERSON,
        ground_truth=folder / "eval.json",
        options=options,
        fake=source.fake,
        description=_describe(source),
    )


def _describe(source: boxed_jpegs.Records) -> str:
    what = "Fake COCO (random images, not MLPerf's data)" if source.fake else "COCO 2017"
    counts = source.counts
    return f"{what}, people with keypoints, {counts['train']:,} train and {counts['eval']:,} eval images"


def open_synthetic(options: Mapping[str, Any]) -> keypoint_detection.KeypointDetection:
    """What `--synthetic_data` makes up; see `keypoint_detection.KeypointDetection` for the options."""
    return keypoint_detection.open_synthetic(
        "coco_keypoints", num_train=NUM_TRAIN, num_eval=NUM_EVAL, sizes=_SIZES, options=options
    )
