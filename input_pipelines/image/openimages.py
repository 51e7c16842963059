"""OpenImages-MLPerf, object detection: the images of OpenImages V6 with one of MLPerf's 264 classes in a box.

1,170,301 train and 24,781 eval images (Kuznetsova et al., arXiv:1811.00982; the classes are listed in
mlcommons/training, retired_benchmarks/retinanet/scripts/download_openimages_mlperf.sh). `prepare` reads what
that script leaves, in DATA_DIR, DATA_DIR/openimages or DATA_DIR/open-images-v6-mlperf:
    train/data/*.jpg            train/labels/openimages-mlperf.json
    validation/data/*.jpg       validation/labels/openimages-mlperf.json
and writes DATA_DIR/openimages-mlperf: the JPEGs as they are, in ArrayRecord files, the boxes as arrays, and the
ground truth. Labels count from 1 in the order of the categories' ids. As in MLPerf's reference
(retired_benchmarks/retinanet/ssd/coco_utils.py, get_openimages) train images without boxes are kept, and groups
(`iscrowd`) are trained on like single objects.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipelines import prepared, progress
from input_pipelines.image import boxed_jpegs, coco_originals, detection, fake_images
from input_pipelines.prepared import one_line
from mlperf_jax.errors import UserError
from mlperf_jax.regular import read_regular

NUM_TRAIN, NUM_EVAL, NUM_CLASSES = 1_170_301, 24_781, 264
FAKE_BYTES = 100_000

_SPLITS = {"train": "train", "eval": "validation"}
_LABELS = Path("labels") / "openimages-mlperf.json"
_FOLDERS = (".", "openimages", "open-images-v6-mlperf")
_MOST_BYTES = 2**28  # of a JPEG: some are of more than a hundred million pixels


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/openimages-mlperf, or a made-up set in its form, unless it is there, and says what it is.

    Args:
        data_dir: see the module.
        fake: if not 0, the number of made-up train images; an eighth as many are for evaluation.
        verify: compare the SHA-256 of every file that is there already.

    Raises:
        UserError: OpenImages is not there, not whole or damaged, or the disk is full.
    """
    folder = _folder(data_dir, fake)
    prepared.prepare_folder(folder, functools.partial(_build, data_dir=data_dir, fake=fake), verify=verify)
    return f"{_describe(boxed_jpegs.Records(folder), fake > 0)}, in {folder}"


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"openimages_fake_{fake}" if fake else "openimages-mlperf")


def _build(folder: Path, *, data_dir: Path, fake: int) -> dict[str, Any]:
    if fake:
        counts = {"train": fake, "eval": max(1, fake // 8)}
        categories = {n: f"class {n}" for n in range(NUM_CLASSES)}
        original: coco_originals.Original = coco_originals.MadeUp(
            counts, fake_images.photograph, tuple(categories)
        )
    else:
        original = found = _Files(_find(data_dir))
        categories = found.categories
    with progress.step("reading the annotations"):
        listings = {split: original.images(split) for split in detection.SPLITS}
    if not fake:
        _check_counts(data_dir, len(listings["train"]), len(listings["eval"]), len(categories))
    counts = boxed_jpegs.write(folder, "OpenImages", original, listings, categories)
    return {
        "name": folder.name,
        "fake": fake > 0,
        "categories": [[number, name] for number, name in categories.items()],
    } | counts


_HOW_TO_GET_IT = (
    "get it with the script download_openimages_mlperf.sh of mlcommons/training (retired_benchmarks/retinanet/scripts) "
    "as DATA_DIR/openimages, then prepare it (--prepare, or python -m mlperf_jax.prepare); or use --preset=mini, "
    "--synthetic_data, or a made-up set: `python -m mlperf_jax.prepare --workload=retinanet --fake=N`, then "
    "--config.data.fake=N."
)


def _find(data_dir: Path) -> Path:
    """The folder that holds all of it.

    Raises:
        UserError: none does; names what the first that holds a part lacks.
    """
    wanted = [Path(name) / part for name in _SPLITS.values() for part in ("data", _LABELS)]
    for folder in (data_dir / name for name in _FOLDERS):
        missing = [path for path in wanted if not (folder / path).exists()]
        if not missing:
            return folder
        if len(missing) < len(wanted):
            raise UserError(f"OpenImages in {folder} lacks {', '.join(map(str, missing))}; {_HOW_TO_GET_IT}")
    raise UserError(f"OpenImages-MLPerf is not in {data_dir}; {_HOW_TO_GET_IT}")


def _check_counts(data_dir: Path, num_train: int, num_eval: int, num_classes: int) -> None:
    for what, count, wanted in (
        ("classes", num_classes, NUM_CLASSES),
        ("train images", num_train, NUM_TRAIN),
        ("eval images", num_eval, NUM_EVAL),
    ):
        if count != wanted:
            raise UserError(
                f"The OpenImages in {data_dir} has {count:,} {what} where OpenImages-MLPerf has {wanted:,}; get all of it."
            )


class _Files:
    """The files as the script leaves them; the two splits have the same categories."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._texts = {split: self._text(split) for split in detection.SPLITS}
        self.categories = self._categories("train")
        if self._categories("eval") != self.categories:
            raise UserError(f"The two splits of OpenImages in {folder} have different classes; get it again.")

    def _path(self, split: str) -> Path:
        return self._folder / _SPLITS[split] / _LABELS

    def _text(self, split: str) -> bytes:
        try:
            return read_regular(self._path(split))
        except OSError as error:
            raise UserError(f"{self._path(split)} cannot be read ({error.strerror}); get it again.") from None

    def _categories(self, split: str) -> dict[int, str]:
        """Their ids in ascending order, and names."""
        try:
            found = coco_originals.parse_categories(self._texts[split])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{self._path(split)} names no classes ({one_line(error) or type(error).__name__}); get it again."
            ) from None
        return dict(sorted(found.items()))

    def images(self, split: str) -> list[coco_originals.Image]:
        # What was read is let go: the train images' is gigabytes.
        return coco_originals.parse_annotations(
            self._texts.pop(split), str(self._path(split)), tuple(self.categories)
        )

    def jpeg(self, split: str, image: coco_originals.Image) -> bytes:
        path = self._folder / _SPLITS[split] / "data" / image.key
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ValueError(f"{path.stat().st_size:,} bytes are too many")
            return read_regular(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
            raise UserError(f"{path} cannot be read ({reason}); get OpenImages's files again.") from None


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
        raise UserError(f"OpenImages-MLPerf is not prepared in {data_dir}; {_HOW_TO_GET_IT}")
    source = boxed_jpegs.Records(folder)
    categories = prepared.read_manifest(folder)["categories"]
    return detection.AugmentedDetection(
        source,
        category_ids=tuple(number for number, _ in categories),
        ground_truth=folder / "eval.json",
        options=options,
        fake=source.fake,
        description=_describe(source, source.fake),
    )


def _describe(source: boxed_jpegs.Records, fake: bool) -> str:
    what = "Fake OpenImages (random images, not MLPerf's data)" if fake else "OpenImages-MLPerf"
    return f"{what}, {source.counts['train']:,} train and {source.counts['eval']:,} eval images"


def open_synthetic(options: Mapping[str, Any]) -> detection.SyntheticDetection:
    """What `--synthetic_data` makes up; see `detection.AugmentedDetection` for the options."""
    return detection.SyntheticDetection(
        "openimages",
        num_train=NUM_TRAIN,
        num_eval=NUM_EVAL,
        category_ids=tuple(range(NUM_CLASSES)),
        options=options,
    )
