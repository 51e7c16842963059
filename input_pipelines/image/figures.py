"""Figures: articulated people with 17 keypoints, drawn over photographs and paintings of real places.

6,000 train and 500 eval images of 128x128 with one or two figures, up to two things before them and up to two
behind. The places and the things are those of the composites (`input_pipelines.image.composites`), and parted as
there: the eval images show none that was trained on. The people are drawn (`input_pipelines.image.articulated`),
each in a pose, a build and clothes of its own, so that keypoints, boxes and masks are exact. No package with photographs
of people and their keypoints was found that may be given on.

A box encloses, and a mask covers, what can be seen of a figure. A keypoint is visible, or hidden where something stands
before it. Joints turn so far that the mean pose, put into the true boxes,
has an OKS AP at .5 between .05 and .20 (`benchmarks/mean_pose.py`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipelines import base, prepared, progress
from input_pipelines.image import (
    articulated,
    box_augmentation,
    composites,
    detection,
    keypoint_detection,
    keypoints,
    outlines,
)
from mlperf_jax.errors import UserError

SIZE = composites.SIZE
NUM_TRAIN, NUM_EVAL = 6_000, 500
MAX_FIGURES = 2
CATEGORY_IDS = (1,)

JOINTS = articulated.JointRanges(
    lean=(-15, 15),
    turn=(-60, 60),
    look=(-30, 30),
    nod=(-15, 15),
    shoulder=(-10, 120),
    elbow=(-10, 90),
    hip=(-5, 40),
    knee=(0, 60),
    shown=(0.8, 1.0),
)

_HEIGHTS = (0.55, 0.95)  # of a figure that stands, in parts of the image's
_THINGS = 2  # at most, before the figures and behind
_SIDES = (0.15, 0.4)  # of a thing's longer side, in parts of the image's
_LEAST_SEEN = 0.6  # of every figure
_PLACINGS = 10  # tried for a figure or a thing
_STREAMS = 2  # the first of two, of draws that are not the composites'
_SPEC: base.Spec = {
    "image": ((SIZE, SIZE, 3), np.dtype(np.uint8)),
    "boxes": ((MAX_FIGURES, 4), np.dtype(np.float32)),
    "labels": ((MAX_FIGURES,), np.dtype(np.int32)),
    "masks": ((MAX_FIGURES, outlines.CELLS, outlines.CELLS // 8), np.dtype(np.uint8)),
    "keypoints": ((MAX_FIGURES, keypoints.COUNT, 3), np.dtype(np.float32)),
}


class Scene(NamedTuple):
    """An image with its figures, and their keypoints [n, 17, 3] in pixels."""

    picture: composites.Scene
    points: np.ndarray


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/figures unless it is there, and says what it is.

    Raises:
        UserError: the pictures could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError("Figures are drawn here, so there is no --fake set of them; leave --fake out.")
    folder = data_dir / "figures"
    prepared.prepare_folder(folder, functools.partial(_build, manual=data_dir / "manual"), verify=verify)
    return f"{_describe(NUM_TRAIN, NUM_EVAL)}, in {folder}"


def _build(folder: Path, *, manual: Path) -> dict[str, Any]:
    objects, places = composites.fetch_pictures(folder, manual)
    for split, count in (("train", NUM_TRAIN), ("eval", NUM_EVAL)):
        _write(folder, split, _scenes(objects, places, split, count), count)
    return {"name": "figures", "fake": False, "num_train": NUM_TRAIN, "num_eval": NUM_EVAL}


def _scenes(
    objects: Sequence[composites.CutOut], places: Sequence[np.ndarray], split: str, count: int
) -> Iterator[Scene]:
    by_class, some_places = composites.parted(objects, places, split)
    things = [thing for some in by_class for thing in some]
    for index in range(count):
        yield scene(things, some_places, box_augmentation.stream(_STREAMS + (split == "eval"), index))


def scene(things: Sequence[composites.CutOut], places: Sequence[np.ndarray], draws: Iterator[float]) -> Scene:
    """Puts one or two figures onto part of a random place, among things.

    Args:
        things: that stand behind and before them.
        places: [H, W, 3] uint8 each, no side shorter than SIZE.
        draws: random numbers in [0, 1) without end.
    """
    image = composites.background(composites.chosen(places, draws), draws)
    for _ in range(int(next(draws) * (_THINGS + 1))):
        pixels, (y, x) = _thing(things, draws)
        composites.paste(image, pixels, y, x)
    seen: list[np.ndarray] = []  # [SIZE, SIZE] bool, of each figure
    whole: list[int] = []  # pixels of each figure, seen or not
    points: list[np.ndarray] = []

    def leaves_enough(mask: np.ndarray) -> bool:
        left = [other & ~mask for other in seen]
        return all(part.sum() >= _LEAST_SEEN * all_ for part, all_ in zip(left, whole, strict=True))

    for _ in range(1 + int(next(draws) * MAX_FIGURES)):
        covers = articulated.clothes(draws)
        for _ in range(_PLACINGS):
            body = articulated.pose(JOINTS, draws)
            height = SIZE * (_HEIGHTS[0] + next(draws) * (_HEIGHTS[1] - _HEIGHTS[0]))
            at = _placed(body.points * height, draws)
            trial = image.copy()
            mask = articulated.draw(trial, body, covers, at, height)
            if leaves_enough(mask):
                image[...] = trial
                seen = [*(other & ~mask for other in seen), mask]
                whole.append(int(mask.sum()))
                points.append(body.points * height + at)
                break
    for _ in range(int(next(draws) * (_THINGS + 1))):
        pixels, (y, x) = _thing(things, draws)
        mask = composites.mask_of(pixels, y, x)
        if leaves_enough(mask):
            composites.paste(image, pixels, y, x)
            seen = [other & ~mask for other in seen]
    labelled = [_labelled(places_, mask) for places_, mask in zip(points, seen, strict=True)]
    picture = composites.Scene(image, composites.boxes_of(seen), np.ones(len(seen), np.int64), np.array(seen))
    return Scene(picture, np.array(labelled))


def _thing(things: Sequence[composites.CutOut], draws: Iterator[float]) -> tuple[np.ndarray, tuple[int, ...]]:
    """A thing's pixels [h, w, 4], and where its upper left lies, y and x."""
    _, pixels = composites.chosen(things, draws)
    pixels = composites.fitted(pixels, round(SIZE * (_SIDES[0] + next(draws) * (_SIDES[1] - _SIDES[0]))))
    return pixels, tuple(int(next(draws) * (SIZE - side + 1)) for side in pixels.shape[:2])


def _placed(points: np.ndarray, draws: Iterator[float]) -> np.ndarray:
    """Where the pelvis of a figure lies, [2] x and y, so that all of its keypoints [17, 2] are in the image."""
    low, high = points.min(0), points.max(0)
    drawn = np.array([next(draws), next(draws)])
    return np.asarray(drawn * (SIZE - (high - low)) - low)


def _labelled(points: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Keypoints [17, 2] in pixels of a figure of which `seen` [SIZE, SIZE] is seen, with their flags, [17, 3]."""
    inside = np.all((points >= 0) & (points < SIZE), axis=1)
    x, y = np.clip(np.floor(points).astype(int), 0, SIZE - 1).T
    flags = np.where(inside, np.where(seen[y, x], keypoints.VISIBLE, keypoints.HIDDEN), 0)
    return np.where(inside[:, None], np.concatenate([points, flags[:, None]], 1), 0)


def _write(folder: Path, split: str, scenes: Iterator[Scene], count: int) -> None:
    """Writes a split's arrays, and for evaluation the ground truth as COCO has it."""
    arrays = {field: np.zeros((count, *shape), dtype) for field, (shape, dtype) in _SPEC.items()}
    truth: list[detection.TrueBox] = []
    labelled: list[np.ndarray] = []
    with progress.step(f"drawing {split} figures", count, "images") as advance:
        for index, (picture, points) in enumerate(scenes):
            here = slice(len(points))
            arrays["image"][index] = picture.image
            arrays["boxes"][index, here] = picture.boxes / SIZE
            arrays["labels"][index, here] = picture.labels
            arrays["keypoints"][index, here] = points / (SIZE, SIZE, 1)
            for row, seen, box in zip(arrays["masks"][index], picture.masks, picture.boxes, strict=False):
                row[...] = outlines.bits_of_pixels(seen, box, outlines.CELLS)
            truth += composites.true_boxes(index, picture)
            labelled += list(points)
            advance(1)
    prepared.save_arrays(folder, split, arrays)
    if split == "eval":
        images = ((index, SIZE, SIZE) for index in range(count))
        content = detection.coco_truth(images, truth, [(1, "person")])
        (folder / "eval.json").write_text(json.dumps(keypoint_detection.with_keypoints(content, labelled)))


class Figures:
    """The `keypoint_detection.KeypointSource` of a prepared folder."""

    most_objects = MAX_FIGURES

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = prepared.read_manifest(folder)
        self.counts = {split: int(manifest[f"num_{split}"]) for split in detection.SPLITS}
        arrays = {
            split: prepared.open_arrays(folder, split, count, _SPEC) for split, count in self.counts.items()
        }
        self._images = {split: fields["image"] for split, fields in arrays.items()}
        self._train = arrays["train"]
        self.image_ids = np.arange(self.counts["eval"], dtype=np.int32)
        self.train_sizes, self.sizes = (np.full((count, 2), SIZE, np.int32) for count in self.counts.values())

    def __reduce__(self) -> tuple[Any, ...]:
        return Figures, (self.folder,)  # A worker maps the files itself.

    def image(self, split: str, index: int) -> np.ndarray:
        return self._images[split][index]

    def _of(self, index: int, field: str) -> np.ndarray:
        return np.array(self._train[field][index][self._train["labels"][index] > 0])

    def objects(self, index: int) -> detection.Objects:
        return self._of(index, "boxes"), self._of(index, "labels")

    def masked_objects(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return *self.objects(index), self._of(index, "masks")

    def keypoints(self, index: int) -> np.ndarray:
        return self._of(index, "keypoints")


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> keypoint_detection.KeypointDetection:
    """Opens the prepared set; see `keypoint_detection.KeypointDetection` for the options.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    source = Figures(data_dir / "figures")
    return keypoint_detection.KeypointDetection(
        source,
        category_ids=CATEGORY_IDS,
        ground_truth=source.folder / "eval.json",
        options=options,
        fake=False,
        description=_describe(*source.counts.values()),
    )


def _describe(num_train: int, num_eval: int) -> str:
    return f"drawn figures in photographed places, {num_train:,} train and {num_eval:,} eval images"


def open_synthetic(options: Mapping[str, Any]) -> keypoint_detection.KeypointDetection:
    """What `--synthetic_data` makes up; see `keypoint_detection.KeypointDetection` for the options."""
    return keypoint_detection.open_synthetic(
        "figures", num_train=NUM_TRAIN, num_eval=NUM_EVAL, sizes=[(SIZE, SIZE)], options=options
    )
