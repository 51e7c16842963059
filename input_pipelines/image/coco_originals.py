"""COCO 2017 as people have it: the files of cocodataset.org, unpacked or not, or TFDS's `coco/2017`.

Each form is read into the same listing of images and their objects, and yields JPEGs by name. Nothing
of an archive is written to disk, so that no path in it matters. TFDS keeps the areas of outlines as
whole numbers, which only the averages over objects of one size can notice.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from input_pipelines.image import keypoints, outlines
from input_pipelines.prepared import one_line
from mlperf_jax.errors import UserError
from mlperf_jax.regular import read_regular

# Of the 91 ids that were planned, those of the 80 categories that were annotated.
PERSON = (1,)
CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))

_YEAR_SPLITS = {"train": "train2017", "eval": "val2017"}
_MOST_BYTES = 2**26  # of a JPEG; COCO's largest has a hundredth of that
_MOST_ANNOTATION_BYTES = 2**31  # of a file of annotations; COCO's largest has a quarter of that


Outline = list[np.ndarray] | dict[str, Any]
"""An object's polygons, points [n, 2] float64 each (x and y in pixels), or its runs of pixels as COCO has those of crowds."""


class Image(NamedTuple):
    """An image and its objects.

    Attributes:
        id: COCO's.
        height, width: in pixels.
        boxes: [n, 4] float64: left, top, width, height in pixels.
        categories: [n] int64, COCO's ids.
        crowds: [n] bool.
        areas: [n] float64, of the objects' outlines in pixels.
        key: what the original knows its JPEG by.
        outlines: of every object; None where the original has none.
        points: [n, 17, 3] float64, keypoints of people, x and y in pixels, whole ones as the middle of their pixel, and
            their flags; None where the original has none.
    """

    id: int
    height: int
    width: int
    boxes: np.ndarray
    categories: np.ndarray
    crowds: np.ndarray
    areas: np.ndarray
    key: Any
    outlines: Sequence[Outline] | None = None
    points: np.ndarray | None = None


class Original(Protocol):
    """A form of the data set."""

    def images(self, split: str) -> list[Image]:
        """Returns all images of "train" or "eval", those without objects too, by id.

        Raises:
            UserError: they cannot be read, or are not what COCO has.
        """
        ...

    def jpeg(self, split: str, image: Image) -> bytes:
        """Returns an encoded image.

        Raises:
            UserError: it is missing or cannot be read.
        """
        ...


def find(data_dir: Path) -> Original | None:
    """Returns COCO 2017 in whichever form it is in DATA_DIR or DATA_DIR/coco, None if it is not there."""
    for folder in (data_dir, data_dir / "coco"):
        if all(_holds(folder, name) for name in ("annotations", *_YEAR_SPLITS.values())):
            return _Files(folder)
    candidates = [data_dir, *sorted(data_dir.glob("coco/2017/*.*.*"), reverse=True)]
    for folder in candidates:
        if (folder / "dataset_info.json").is_file():
            return _TfdsRecords(folder)
    return None


def find_people(data_dir: Path) -> Original | None:
    """As `find`, with people's keypoints and nothing but people; only cocodataset.org's files have them."""
    for folder in (data_dir, data_dir / "coco"):
        if all(_holds(folder, name) for name in ("annotations", *_YEAR_SPLITS.values())):
            return _Files(folder, people=True)
    return None


def _holds(folder: Path, name: str) -> bool:
    return (folder / name).is_dir() or (folder / _archive(name)).is_file()


def _archive(name: str) -> str:
    return "annotations_trainval2017.zip" if name == "annotations" else f"{name}.zip"


_FARTHEST = 2.0**24  # pixels: single precision still tells them apart


class _Files:
    """`annotations/instances_*2017.json` and `*2017/*.jpg`, each in a folder or in the archive of its name.

    Of people it is `annotations/person_keypoints_*2017.json`.
    """

    def __init__(self, folder: Path, *, people: bool = False) -> None:
        self._folder, self._people = folder, people
        self._archives: dict[str, zipfile.ZipFile] = {}

    def images(self, split: str) -> list[Image]:
        name = f"{'person_keypoints' if self._people else 'instances'}_{_YEAR_SPLITS[split]}.json"
        text = self._read("annotations", name, most=_MOST_ANNOTATION_BYTES)
        where = str(self._folder / "annotations" / name)
        if self._people:
            return parse_annotations(text, where, PERSON, outlined=True, people=True)
        return parse_annotations(text, where, outlined=True)

    def jpeg(self, split: str, image: Image) -> bytes:
        return self._read(_YEAR_SPLITS[split], image.key, most=_MOST_BYTES)

    def _read(self, folder: str, name: str, most: int) -> bytes:
        unpacked = self._folder / folder
        path = unpacked / name if unpacked.is_dir() else self._folder / _archive(folder) / folder / name
        try:
            if unpacked.is_dir():
                if path.stat().st_size > most:
                    raise ValueError(f"{path.stat().st_size:,} bytes are too many")
                return read_regular(path)
            archive = self._opened(folder)
            member = archive.getinfo(f"{folder}/{name}")
            if member.file_size > most:
                raise ValueError(f"{member.file_size:,} bytes are too many")
            return archive.read(member)
        except (
            OSError,
            ValueError,
            KeyError,
            RuntimeError,
            NotImplementedError,
            zipfile.BadZipFile,
        ) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
            raise UserError(f"{path} cannot be read ({reason}); get COCO's files again.") from None

    def _opened(self, name: str) -> zipfile.ZipFile:
        if name not in self._archives:
            self._archives[name] = zipfile.ZipFile(self._folder / _archive(name))
        return self._archives[name]


def parse_annotations(
    text: bytes,
    where: str,
    categories: Sequence[int] = CATEGORY_IDS,
    *,
    outlined: bool = False,
    people: bool = False,
) -> list[Image]:
    """Reads an annotation file of COCO's instances, whose images are then in the order of their ids.

    Args:
        text: its content.
        where: it is, for people.
        categories: that objects may have.
        outlined: whether objects have outlines that are wanted.
        people: whether objects must have keypoints.

    Raises:
        UserError: it is not such a file; names `where`.
    """
    try:
        # Outlines are most of a file of COCO's, OpenImages has ten million objects.
        content = json.loads(text, object_hook=_with_outline if outlined else _needed)
        objects: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in content["images"]}
        if len(objects) != len(content["images"]):
            raise ValueError("two images have the same id")
        for annotation in content["annotations"]:
            if type(annotation["image_id"]) is not int:
                raise ValueError(f"an object of image {annotation['image_id']!r}")
            objects[annotation["image_id"]].append(annotation)
        images = [_image(image, objects[image["id"]], categories) for image in content["images"]]
        if people and any(image.points is None for image in images):
            raise ValueError("people without keypoints")
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{where} is not an annotation file of COCO ({one_line(error) or type(error).__name__}); get it again."
        ) from None
    return sorted(images, key=lambda image: image.id)


def parse_categories(text: bytes) -> dict[int, str]:
    """The ids and names of an annotation file's categories.

    Raises:
        ValueError, LookupError, TypeError: it has none, or two of one id.
    """
    content = json.loads(
        text, object_hook=lambda part: part if "name" in part or "categories" in part else None
    )
    found = {category["id"]: str(category["name"]) for category in content["categories"]}
    if len(found) != len(content["categories"]) or not all(type(number) is int for number in found):
        raise ValueError("ids of categories that are no whole numbers, or twice the same")
    return found


def _needed(content: dict[str, Any]) -> dict[str, Any]:
    """An object without what nothing here reads; anything else as it is."""
    return {key: content[key] for key in _READ if key in content} if "bbox" in content else content


_READ = ("image_id", "category_id", "bbox", "area", "iscrowd", "keypoints", "num_keypoints")


def _with_outline(content: dict[str, Any]) -> dict[str, Any]:
    """As `_needed`, with the outline, whose polygons become arrays at once: lists of numbers would fill the memory."""
    needed = _needed(content)
    if "bbox" not in content or "segmentation" not in content:
        return needed
    outline = content["segmentation"]
    if isinstance(outline, list):
        if not outline:
            raise ValueError("an object without an outline")
        outline = [_points(polygon) for polygon in outline]
    return needed | {"segmentation": outline}


def _points(polygon: list[float]) -> np.ndarray:
    if not all(type(value) in (int, float) for value in polygon):
        raise ValueError("an outline of something else than numbers")
    points = np.array(polygon, np.float64)
    if len(points) < 4 or len(points) % 2 or not (np.abs(points) <= _FARTHEST).all():
        raise ValueError("an outline that is none")
    return points.reshape(-1, 2)


def _require_runs(image: Image) -> None:
    """Refuses runs of pixels that are not of their image, in an object that is a crowd; others must have polygons.

    Raises:
        ValueError: says which image has what.
    """
    pixels = image.height * image.width
    for outline, crowd in zip(image.outlines or (), image.crowds.tolist(), strict=False):
        if isinstance(outline, list):
            continue
        if not crowd:
            raise ValueError(f"image {image.id} has an object without polygons that is no crowd")
        counts = outline["counts"]
        whole = isinstance(counts, list) and all(type(n) is int and 0 <= n <= pixels for n in counts)
        if outline["size"] != [image.height, image.width] or not whole or sum(counts) != pixels:
            raise ValueError(f"image {image.id} has a crowd whose runs of pixels are not of its size")


def _image(image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], known: Sequence[int]) -> Image:
    number, height, width, name = (image[key] for key in ("id", "height", "width", "file_name"))
    if not all(type(value) is int and 0 <= value < 2**31 for value in (number, height, width)):
        raise ValueError("an image whose id, height or width is no number of 31 bits")
    if not (height and width):
        raise ValueError(f"image {number} has no size")
    if Path(name).name != name:
        raise ValueError(f"image {number} has the name {name!r}")
    rows = [(*a["bbox"], a.get("area", 0), a["category_id"], a.get("iscrowd", 0)) for a in annotations]
    # NumPy would make numbers of text, of true and of false.
    if not all(type(value) in (int, float) for row in rows for value in row):
        raise ValueError(f"image {number} has an object with something else than numbers")
    numbers = np.array(rows, np.float64).reshape(len(rows), 7)
    boxes, areas, categories, crowds = numbers[:, :4], numbers[:, 4], numbers[:, 5], numbers[:, 6]
    if not np.isin(categories, known).all():
        raise ValueError(f"image {number} has an object of a category that there is not")
    if not np.isin(crowds, (0, 1)).all():
        raise ValueError(f"image {number} has an object whose iscrowd is neither 0 nor 1")
    drawn = (
        [a["segmentation"] for a in annotations] if all("segmentation" in a for a in annotations) else None
    )
    placed = _keypoints(annotations) if all("keypoints" in a for a in annotations) else None
    found = Image(
        number, height, width, boxes, categories.astype(np.int64), crowds > 0, areas, name, drawn, placed
    )
    _require_boxes(found)
    _require_runs(found)
    return found


def _keypoints(annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """People's keypoints, see `Image`.

    Raises:
        ValueError: they are not 17 places with flags, as many of them labelled as is said.
    """
    flat = [a["keypoints"] for a in annotations]
    if not all(type(value) in (int, float) for points in flat for value in points):
        raise ValueError("keypoints of something else than numbers")
    if not all(len(points) == 3 * keypoints.COUNT for points in flat):
        raise ValueError(f"a person with other than {keypoints.COUNT} keypoints")
    points = np.array(flat, np.float64).reshape(-1, keypoints.COUNT, 3)
    if not (np.abs(points) <= _FARTHEST).all() or not np.isin(points[..., 2], (0, 1, 2)).all():
        raise ValueError("a keypoint that is none")
    labelled = points[..., 2:] > 0
    if labelled.sum((1, 2)).tolist() != [a["num_keypoints"] for a in annotations]:
        raise ValueError("a person with another number of keypoints than is said")
    return np.where(labelled, points + [0.5, 0.5, 0], 0)


def _require_boxes(image: Image) -> None:
    """Refuses boxes that are none; they may be empty, and reach out of their image.

    Raises:
        ValueError: says which image has what.
    """
    if not (np.isfinite(image.boxes).all() and np.isfinite(image.areas).all()):
        raise ValueError(f"image {image.id} has a box that is not a number")
    if (np.abs(image.boxes) > _FARTHEST).any() or (image.areas > _FARTHEST**2).any():
        raise ValueError(f"image {image.id} has a box far beyond any image")
    if (image.boxes[:, 2:] < 0).any() or (image.areas < 0).any():
        raise ValueError(f"image {image.id} has a box of a negative size")


class _TfdsRecords:
    """The TFDS builder `coco/2017`, prepared in ArrayRecord format; read without TensorFlow."""

    _SPLITS = {"train": "train", "eval": "validation"}

    def __init__(self, folder: Path) -> None:
        import tensorflow_datasets as tfds

        self._folder = folder
        try:
            builder = tfds.builder_from_directory(folder)
            undecoded = {"image": tfds.decode.SkipDecoding()}
            self._records = {
                split: builder.as_data_source(name, decoders=undecoded)
                for split, name in self._SPLITS.items()
            }
            num_classes = builder.info.features["objects"]["label"].num_classes
        except Exception as error:  # TFDS and protobuf raise whatever the damage makes of their metadata.
            raise UserError(
                f"{folder} is not a whole TFDS data set coco/2017 in array_record format ({one_line(error)}); "
                "prepare it again with TFDS."
            ) from None
        if num_classes != len(CATEGORY_IDS):
            raise UserError(f"{folder} has {num_classes} classes where COCO has {len(CATEGORY_IDS)}.")

    def images(self, split: str) -> list[Image]:
        rows = range(len(self._records[split]))
        return sorted((self._image(split, row) for row in rows), key=lambda image: image.id)

    def _image(self, split: str, row: int) -> Image:
        import simplejpeg

        example = self._example(split, row)
        objects = example["objects"]
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(bytes(example["image"]))
        except ValueError as error:
            raise UserError(
                f"{self._folder}, {split} image {example['image/id']}, is not a JPEG ({error}); "
                "prepare it again with TFDS."
            ) from None
        edges = np.asarray(objects["bbox"], np.float64).reshape(-1, 4) * [height, width, height, width]
        top, left, bottom, right = edges.T
        labels = np.asarray(objects["label"], np.int64)
        known = (labels >= 0) & (labels < len(CATEGORY_IDS))
        image = Image(
            id=int(example["image/id"]),
            height=height,
            width=width,
            boxes=np.stack([left, top, right - left, bottom - top], 1),
            categories=np.array(CATEGORY_IDS)[np.where(known, labels, 0)],
            crowds=np.asarray(objects["is_crowd"], bool),
            areas=np.asarray(objects["area"], np.float64),
            key=row,
        )
        try:
            if not known.all():
                raise ValueError(f"image {image.id} has an object of a class that COCO lacks")
            _require_boxes(image)
        except ValueError as error:
            raise UserError(
                f"{self._folder}, {split} record {row}, is damaged ({error}); prepare it again with TFDS."
            ) from None
        return image

    def jpeg(self, split: str, image: Image) -> bytes:
        return bytes(self._example(split, image.key)["image"])

    def _example(self, split: str, row: int) -> Mapping[str, Any]:
        try:
            return self._records[split][row]
        except Exception as error:  # ArrayRecord and protobuf raise their own.
            raise UserError(
                f"{self._folder}, {split} record {row}, cannot be read ({one_line(error)}); "
                "prepare it again with TFDS."
            ) from None


class MadeUp:
    """Random photographs with random boxes, of COCO's usual sizes and numbers; some without any.

    Args:
        counts: split -> number of images.
        photograph: (random, label, size=(H, W)) -> an image [H, W, 3] uint8.
        categories: that objects have.
        outlined: objects are ellipses, crowds rectangles; else nothing but boxes.
        people: they have keypoints somewhere in their boxes.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        photograph: Callable[..., np.ndarray],
        categories: Sequence[int] = CATEGORY_IDS,
        *,
        outlined: bool = False,
        people: bool = False,
    ) -> None:
        self._people = people
        self._counts, self._photograph, self._categories = counts, photograph, categories
        self._outlined = outlined

    def images(self, split: str) -> list[Image]:
        return [self._image(split, index) for index in range(self._counts[split])]

    def _image(self, split: str, index: int) -> Image:
        random = np.random.default_rng([split == "eval", index])
        height, width = ((480, 640), (480, 640), (640, 480), (427, 640), (640, 426))[random.integers(5)]
        # COCO has seven objects in an image on average; one eval image in a hundred has none, here the second.
        count = min(int(random.geometric(1 / 7)), 90) * (split == "train" or index % 100 != 1)
        corners = np.sort(random.random((count, 2, 2)), axis=1) * [width, height]
        boxes = np.concatenate([corners[:, 0], corners[:, 1] - corners[:, 0]], 1).round(2)
        categories, crowds = random.choice(self._categories, count), random.random(count) < 0.01
        made = [
            rectangle_runs(box, height, width)
            if crowd
            else [outlines.ellipse(box.reshape(2, 2).cumsum(0).ravel())]
            for box, crowd in zip(boxes, crowds.tolist(), strict=True)
        ]
        points = None
        if self._people:
            flags = random.integers(3, size=(count, keypoints.COUNT, 1)) * ~crowds[:, None, None]
            places = boxes[:, None, :2] + random.random((count, keypoints.COUNT, 2)) * boxes[:, None, 2:]
            points = np.where(flags > 0, np.concatenate([places, flags], -1), 0)
        return Image(
            id=1000 * (split == "eval") + index + 1,
            height=height,
            width=width,
            boxes=boxes,
            categories=categories,
            crowds=crowds,
            areas=boxes[:, 2:].prod(1),
            key=index,
            outlines=made if self._outlined else None,
            points=points,
        )

    def jpeg(self, split: str, image: Image) -> bytes:
        import simplejpeg

        random = np.random.default_rng([split == "eval", image.key, 1])
        pixels = self._photograph(random, int(random.integers(1000)), size=(image.height, image.width))
        return simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420")


def rectangle_runs(box: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """The pixels of a box [4] (left, top, width, height) as COCO has those of crowds: runs along columns, off and on in turn."""
    left, top, right, bottom = np.round(box.reshape(2, 2).cumsum(0).ravel()).astype(int).tolist()
    covered = np.zeros((width, height), bool)
    covered[left:right, top:bottom] = True
    turns = np.flatnonzero(np.diff(covered.ravel().astype(int), prepend=0)).tolist()
    return {"size": [height, width], "counts": np.diff([0, *turns, covered.size]).tolist()}
