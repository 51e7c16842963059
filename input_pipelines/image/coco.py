"""COCO 2017, object detection: 117,266 train images with objects and 5,000 eval images, 80 categories.

Lin et al., "Microsoft COCO: Common Objects in Context", arXiv:1405.0312. `prepare` reads either form:
  original   annotations_trainval2017.zip, train2017.zip and val2017.zip of cocodataset.org, each as it is
             or unpacked into folders annotations, train2017 and val2017; in DATA_DIR or DATA_DIR/coco
  TFDS       DATA_DIR/coco/2017/<version>/, the builder `coco/2017` in ArrayRecord files
and writes DATA_DIR/coco2017: the JPEGs as they are, in ArrayRecord files, boxes and masks as arrays, and the
ground truth. TFDS's has no outlines, and so no masks. Images are in the order of their ids, whatever they came from. As in
MLPerf's reference (retired_benchmarks/ssd-v1/ssd/utils.py, COCODetection) train images without any
annotation are left out, and crowds are trained on like single objects (with masks they are not trained on:
`input_pipelines.image.coco_masks`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipelines import prepared, progress
from input_pipelines.image import boxed_jpegs, coco_originals, detection, fake_images
from mlperf_jax.errors import UserError

NUM_TRAIN, NUM_EVAL = 117_266, 5_000
NUM_TRAIN_WITH_EMPTY = 118_287
CATEGORY_IDS = coco_originals.CATEGORY_IDS
_CATEGORIES = {category: str(category) for category in CATEGORY_IDS}

FAKE_BYTES = 100_000


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False, masks: bool = False) -> str:
    """Makes DATA_DIR/coco2017, or a made-up set in its form, unless it is there, and says what it is.

    Args:
        data_dir: see the module.
        fake: if not 0, the number of made-up train images; an eighth as many are for evaluation.
        verify: compare the SHA-256 of every file that is there already.
        masks: they must be there; make it again where an earlier version left none.

    Raises:
        UserError: COCO is not there, not whole or damaged, or the disk is full.
    """
    folder = folder_of(data_dir, fake)
    build = functools.partial(_build, data_dir=data_dir, fake=fake, masks=masks)
    wanted = (boxed_jpegs.MASKS,) if masks else ()
    prepared.prepare_folder(folder, build, verify=verify, wanted=wanted)
    return f"{describe(boxed_jpegs.Records(folder), fake > 0)}, in {folder}"


def folder_of(data_dir: Path, fake: int) -> Path:
    """Where the set, or a made-up one, lies."""
    return data_dir / (f"coco_fake_{fake}" if fake else "coco2017")


def _build(folder: Path, *, data_dir: Path, fake: int, masks: bool) -> dict[str, Any]:
    if fake:
        counts = {"train": fake, "eval": max(1, fake // 8)}
        original: coco_originals.Original = coco_originals.MadeUp(
            counts, fake_images.photograph, outlined=True
        )
    elif found := coco_originals.find(data_dir):
        original = found
    else:
        raise UserError(f"COCO 2017 is not in {data_dir}; {how_to_get_it('ssd_resnet34')}")
    with progress.step("reading the annotations"):
        listings = {split: original.images(split) for split in detection.SPLITS}
    with_objects = [image for image in listings["train"] if len(image.boxes)]
    if not fake:
        _check_counts(data_dir, len(listings["train"]), len(with_objects), len(listings["eval"]))
    listings["train"] = with_objects
    if masks and not boxed_jpegs.has_outlines(with_objects):
        raise UserError(
            f"The COCO in {data_dir} has no outlines (TFDS's has none); get annotations_trainval2017.zip, "
            "train2017.zip and val2017.zip from cocodataset.org and put them there instead."
        )
    counts = boxed_jpegs.write(folder, "COCO", original, listings, _CATEGORIES)
    return {"name": folder.name, "fake": fake > 0} | counts


def how_to_get_it(workload: str) -> str:
    """What people without it can do."""
    return (
        "get annotations_trainval2017.zip, train2017.zip and val2017.zip from cocodataset.org and put them there, "
        "unpacked or not, or (without masks) TFDS's coco/2017 in array_record format, then prepare it (--prepare, or "
        "python -m mlperf_jax.prepare); or use --preset=mini, --synthetic_data, or a made-up set: `python -m "
        f"mlperf_jax.prepare --workload={workload} --fake=N`, then --config.data.fake=N."
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
    folder = folder_of(data_dir, fake)
    if not fake and not folder.is_dir():
        raise UserError(f"COCO 2017 is not prepared in {data_dir}; {how_to_get_it('ssd_resnet34')}")
    source = boxed_jpegs.Records(folder)
    return detection.AugmentedDetection(
        source,
        category_ids=CATEGORY_IDS,
        ground_truth=folder / "eval.json",
        options=options,
        fake=source.fake,
        description=describe(source, source.fake),
    )


def describe(source: boxed_jpegs.Records, fake: bool) -> str:
    """One phrase for logs."""
    what = "Fake COCO (random images, not MLPerf's data)" if fake else "COCO 2017"
    return f"{what}, {source.counts['train']:,} train and {source.counts['eval']:,} eval images"


def open_synthetic(options: Mapping[str, Any]) -> detection.SyntheticDetection:
    """What `--synthetic_data` makes up; see `detection.AugmentedDetection` for the options."""
    return detection.SyntheticDetection(
        "coco", num_train=NUM_TRAIN, num_eval=NUM_EVAL, category_ids=CATEGORY_IDS, options=options
    )
