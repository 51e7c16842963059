"""Composites: photographs of real things, cut out, on photographs and paintings of real places.

6,000 train and 500 eval images of 128x128 with one to four objects of six classes. The objects are stamps
of Tux Paint (Debian tuxpaint-stamps-default, GPL-2 and freer), whose transparency is their exact
outline; the places are from GCompris (Debian gcompris-qt-data, CC BY, CC BY-SA and public domain).
Every fourth of 281 objects and every fifth of 94 places is held out: the eval images show nothing that
was trained on. A box encloses what can be seen of its object.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipelines import base, fetch, prepared, progress
from input_pipelines.image import box_augmentation, detection, outlines, qt_resources
from mlperf_jax.errors import UserError

SIZE = 128
NUM_TRAIN, NUM_EVAL = 6_000, 500
MAX_OBJECTS = 4

# The folders of stamps that make up each class, in the order of the labels from 1.
CLASSES = {
    "bird": ("animals/birds/",),
    "mammal": ("animals/mammals/",),
    "food": ("food/",),
    "plant": ("plants/",),
    "vehicle": ("vehicles/", "military/vehicles/"),
    "household": ("household/",),
}
STAMPS = fetch.PinnedTree(
    tuple(f"{folder}*.png" for folders in CLASSES.values() for folder in folders),
    288,
    "67288a68125863897d86a070889c69f0982118e5c7e7c8da8999b3b7a24ebf23",
)
_BUNDLES = ("clickgame", "details", "explore_monuments", "paintings")
PLACES = fetch.PinnedTree(
    tuple(f"{name}.rcc" for name in _BUNDLES),
    4,
    "59f853b6981bd460a50677102db296b13fc132a630bdad62ebc5995585ca0d2a",
)

_HELD_OUT_OBJECTS, _HELD_OUT_PLACES = 4, 5  # every so many
_OPAQUE = 128  # the alpha from which a pixel belongs to its object
_SIDES = (0.25, 0.65)  # of an object's longer side, in parts of the image's
_LEAST_SEEN = 0.6  # of every object, when others are put before it
_PLACINGS = 10  # tried for an object
CATEGORY_IDS = tuple(range(1, len(CLASSES) + 1))
MASKS = "train_masks.npy"
_SPEC: base.Spec = {
    "image": ((SIZE, SIZE, 3), np.dtype(np.uint8)),
    "boxes": ((MAX_OBJECTS, 4), np.dtype(np.float32)),
    "labels": ((MAX_OBJECTS,), np.dtype(np.int32)),
}
MASKS_SHAPE = MAX_OBJECTS, outlines.CELLS, outlines.CELLS // 8


class CutOut(NamedTuple):
    """An object: its label from 1 and its pixels [h, w, 4] uint8, RGB and alpha, at most SIZE high and wide."""

    label: int
    pixels: np.ndarray


class Scene(NamedTuple):
    """An image [SIZE, SIZE, 3] uint8, its boxes [n, 4] int64 in pixels, labels [n], and what is seen, [n, SIZE, SIZE] bool."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False, masks: bool = False) -> str:
    """Makes DATA_DIR/composites unless it is there, and says what it is.

    Args:
        data_dir: holds all data sets.
        fake: must be 0.
        verify: compare the SHA-256 of every file that is there already.
        masks: make it again where an earlier version left none.

    Raises:
        UserError: the pictures could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError("Composites are small and real, so there is no --fake set of them; leave --fake out.")
    folder = data_dir / "composites"
    build = functools.partial(_build, manual=data_dir / "manual")
    prepared.prepare_folder(folder, build, verify=verify, wanted=(MASKS,) if masks else ())
    return f"{describe(NUM_TRAIN, NUM_EVAL)}, in {folder}"


def _build(folder: Path, *, manual: Path) -> dict[str, Any]:
    objects, places = fetch_pictures(folder, manual)
    for split, count in (("train", NUM_TRAIN), ("eval", NUM_EVAL)):
        scenes = _scenes(objects, places, split, count)
        _write(folder, split, scenes, count)
    return {"name": "composites", "fake": False, "num_train": NUM_TRAIN, "num_eval": NUM_EVAL}


def fetch_pictures(folder: Path, manual: Path) -> tuple[list[CutOut], list[np.ndarray]]:
    """The objects and the places, of packages put into `manual`, installed, or fetched through a folder beside `folder`.

    Raises:
        UserError: they could not be had from any source.
    """
    with prepared.scratch_folder(folder) as scratch:
        stamps = _fetched("Tux Paint's stamps", STAMPS, "tuxpaint-stamps-default", manual, scratch)
        bundles = _fetched("GCompris's pictures", PLACES, "gcompris-qt-data", manual, scratch)
    with progress.step("cutting out objects"):
        return cut_outs(stamps), pictures(bundles)


_FOLDERS = {
    "tuxpaint-stamps-default": "usr/share/tuxpaint/stamps",
    "gcompris-qt-data": "usr/share/gcompris-qt/rcc",
}


def _fetched(
    what: str, tree: fetch.PinnedTree, package: str, manual: Path, scratch: Path
) -> dict[str, bytes]:
    inside = _FOLDERS[package]
    by_hand = f"the content of the package's folder /{inside} into {manual / package}"
    sources = fetch.installable_tree(package, inside, manual / package)
    return fetch.fetch_tree(what, tree, sources, scratch, by_hand=by_hand)


def cut_outs(stamps: Mapping[str, bytes]) -> list[CutOut]:
    """Cuts the objects out of PNGs, path -> content, in the order given.

    Mirror images are left out, as each object is mirrored now and then, and what has no outline.
    """
    objects = []
    for path, data in stamps.items():
        label = next(
            label for label, folders in enumerate(CLASSES.values(), 1) if path.startswith(tuple(folders))
        )
        pixels = np.asarray(_opened(data).convert("RGBA"))
        solid = pixels[..., 3] >= _OPAQUE
        if path.endswith("_mirror.png") or not 0.05 < solid.mean() < 0.98:
            continue
        (top, bottom), (left, right) = (_extent(solid, axis) for axis in (1, 0))
        objects.append(CutOut(label, fitted(pixels[top:bottom, left:right], SIZE)))
    return objects


def pictures(bundles: Mapping[str, bytes]) -> list[np.ndarray]:
    """Returns the pictures [H, W, 3] uint8 without transparency of Qt resource bundles, by path."""
    found = []
    for bundle in bundles.values():
        for path, data in sorted(qt_resources.parse(bundle).items()):
            if path.endswith(".webp") and (picture := _opened(data)).mode == "RGB":
                found.append(np.asarray(picture))
    return [picture for picture in found if min(picture.shape[:2]) >= SIZE]


def _opened(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=("PNG", "WEBP"))


def _extent(occupied: np.ndarray, axis: int) -> tuple[int, int]:
    """Returns the first and the last place, plus one, of what is true in [h, w] bool, looking along `axis`."""
    places = np.flatnonzero(occupied.any(axis))
    return int(places[0]), int(places[-1]) + 1


def fitted(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Shrinks [h, w, 4] to a longer side of at most `longest`."""
    from PIL import Image

    scale = min(1.0, longest / max(pixels.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    # Pillow resizes bytes in whole numbers, so that every machine gets the same.
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def parted(
    objects: Sequence[CutOut], places: Sequence[np.ndarray], split: str
) -> tuple[list[list[CutOut]], list[np.ndarray]]:
    """The objects of each class, and the places, of a split: none is in both."""
    held_out = split == "eval"
    places = [p for i, p in enumerate(places) if (i % _HELD_OUT_PLACES == 0) == held_out]
    by_class = [[o for o in objects if o.label == label] for label in range(1, len(CLASSES) + 1)]
    by_class = [
        [o for i, o in enumerate(some) if (i % _HELD_OUT_OBJECTS == 0) == held_out] for some in by_class
    ]
    return by_class, places


def _scenes(
    objects: Sequence[CutOut], places: Sequence[np.ndarray], split: str, count: int
) -> Iterator[Scene]:
    by_class, some_places = parted(objects, places, split)
    for index in range(count):
        yield scene(by_class, some_places, box_augmentation.stream(int(split == "eval"), index))


def scene(
    by_class: Sequence[Sequence[CutOut]], places: Sequence[np.ndarray], draws: Iterator[float]
) -> Scene:
    """Puts one to four objects of random classes onto part of a random place.

    Args:
        by_class: the objects of each class, all of which are equally frequent.
        places: [H, W, 3] uint8 each, no side shorter than SIZE.
        draws: random numbers in [0, 1) without end.
    """
    image = background(chosen(places, draws), draws)
    labels: list[int] = []
    seen: list[np.ndarray] = []  # [SIZE, SIZE] bool, of each object
    solid: list[int] = []  # pixels of each object, seen or not
    for _ in range(1 + int(next(draws) * MAX_OBJECTS)):
        label, pixels = chosen(chosen(by_class, draws), draws)
        pixels = fitted(pixels, round(SIZE * (_SIDES[0] + next(draws) * (_SIDES[1] - _SIDES[0]))))
        if next(draws) < 0.5:
            pixels = pixels[:, ::-1]
        for _ in range(_PLACINGS):
            y, x = (int(next(draws) * (SIZE - side + 1)) for side in pixels.shape[:2])
            mask = mask_of(pixels, y, x)
            left = [other & ~mask for other in seen]
            if all(part.sum() >= _LEAST_SEEN * whole for part, whole in zip(left, solid, strict=True)):
                paste(image, pixels, y, x)
                seen = [*left, mask]
                solid.append(int(mask.sum()))
                labels.append(label)
                break
    return Scene(image, boxes_of(seen), np.array(labels), np.array(seen))


def mask_of(pixels: np.ndarray, y: int, x: int) -> np.ndarray:
    """What an object's pixels [h, w, 4] cover that lie at y, x, [SIZE, SIZE] bool."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels[..., 3] >= _OPAQUE
    return mask


def boxes_of(seen: Sequence[np.ndarray]) -> np.ndarray:
    """Left, top, right, bottom of masks [SIZE, SIZE] bool, [n, 4] int64."""
    extents = [(_extent(mask, 0), _extent(mask, 1)) for mask in seen]
    return np.array([(left, top, right, bottom) for (left, right), (top, bottom) in extents])


def chosen(some: Sequence[Any], draws: Iterator[float]) -> Any:
    """One of them."""
    return some[int(next(draws) * len(some))]


def background(place: np.ndarray, draws: Iterator[float]) -> np.ndarray:
    """Cuts a random square out of a picture, half its shorter side or more, and resizes it."""
    height, width = place.shape[:2]
    side = int(min(height, width) * (0.5 + 0.5 * next(draws)))
    y, x = (int(next(draws) * (extent - side + 1)) for extent in (height, width))
    return box_augmentation.resized(place[y : y + side, x : x + side], SIZE).copy()


def paste(image: np.ndarray, pixels: np.ndarray, y: int, x: int) -> None:
    """Blends [h, w, 4] over part of an image, in place, in whole numbers."""
    under = image[y : y + pixels.shape[0], x : x + pixels.shape[1]]
    alpha = pixels[..., 3:].astype(np.uint32)
    under[...] = (pixels[..., :3] * alpha + under * (255 - alpha) + 127) // 255


def _write(folder: Path, split: str, scenes: Iterator[Scene], count: int) -> None:
    """Writes a split's arrays, with the masks to train on, and for evaluation the ground truth as COCO has it."""
    arrays = {field: np.zeros((count, *shape), dtype) for field, (shape, dtype) in _SPEC.items()}
    masks = np.zeros((count if split == "train" else 0, *MASKS_SHAPE), np.uint8)
    truth: list[detection.TrueBox] = []
    with progress.step(f"drawing {split} composites", count, "images") as advance:
        for index, drawn in enumerate(scenes):
            arrays["image"][index] = drawn.image
            arrays["boxes"][index, : len(drawn.boxes)] = drawn.boxes / SIZE
            arrays["labels"][index, : len(drawn.labels)] = drawn.labels
            if split == "train":
                for row, seen, box in zip(masks[index], drawn.masks, drawn.boxes, strict=False):
                    row[...] = outlines.bits_of_pixels(seen, box, outlines.CELLS)
            else:
                truth += true_boxes(index, drawn)
            advance(1)
    if split == "train":
        arrays["masks"] = masks
    else:
        images = ((index, SIZE, SIZE) for index in range(count))
        content = detection.coco_truth(images, truth, enumerate(CLASSES, 1))
        (folder / "eval.json").write_text(json.dumps(content))
    prepared.save_arrays(folder, split, arrays)


def true_boxes(index: int, drawn: Scene) -> Iterator[detection.TrueBox]:
    """The objects of image `index` as COCO has them."""
    for (left, top, right, bottom), label, seen in zip(
        drawn.boxes.tolist(), drawn.labels.tolist(), drawn.masks, strict=True
    ):
        bbox = [left, top, right - left, bottom - top]
        yield detection.TrueBox(index, label, bbox, int(seen.sum()), 0, outlines.run_lengths(seen))


def open_synthetic(options: Mapping[str, Any]) -> detection.SyntheticDetection:
    """What `--synthetic_data` makes up; see `detection.AugmentedDetection` for the options."""
    return detection.SyntheticDetection(
        "composites",
        num_train=NUM_TRAIN,
        num_eval=NUM_EVAL,
        category_ids=CATEGORY_IDS,
        options=options,
    )


class Composites:
    """The `detection.Source` of a prepared folder."""

    most_objects = MAX_OBJECTS

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = prepared.read_manifest(folder)
        self.counts = {split: int(manifest[f"num_{split}"]) for split in detection.SPLITS}
        arrays = {
            split: prepared.open_arrays(folder, split, count, _SPEC) for split, count in self.counts.items()
        }
        self._images = {split: fields["image"] for split, fields in arrays.items()}
        self._boxes, self._labels = (np.array(arrays["train"][field]) for field in ("boxes", "labels"))
        self.image_ids = np.arange(self.counts["eval"], dtype=np.int32)
        self.sizes = np.full((self.counts["eval"], 2), SIZE, np.int32)

    def __reduce__(self) -> tuple[Any, ...]:
        return Composites, (self.folder,)  # A worker maps the files itself.

    def image(self, split: str, index: int) -> np.ndarray:
        return self._images[split][index]

    def objects(self, index: int) -> detection.Objects:
        labels = self._labels[index]
        return self._boxes[index][labels > 0], labels[labels > 0]


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> detection.AugmentedDetection:
    """Opens the prepared set; see `detection.AugmentedDetection` for the options.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    folder = data_dir / "composites"
    source = Composites(folder)
    return detection.AugmentedDetection(
        source,
        category_ids=CATEGORY_IDS,
        ground_truth=folder / "eval.json",
        options=options,
        fake=False,
        description=describe(*source.counts.values()),
    )


def describe(num_train: int, num_eval: int) -> str:
    return f"composites of {len(CLASSES)} classes, {num_train:,} train and {num_eval:,} eval images"
