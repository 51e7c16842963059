"""A published detector, and photographs on which it is to find things.

The detector is that of MediaPipe's Objectron (npm `@mediapipe/objectron`, Apache-2.0): an SSD on MobileNet v2 for 23 of Open
Images's classes, a TFLite file. The photographs are eight of scikit-image's (PyPI `scikit-image`: CC0, public domain, and
the Middlebury stereo pair) and 33 of GCompris (Debian `gcompris-qt-data`: CC BY, CC BY-SA, GFDL, public domain), of animals and of
people who make music. Nobody drew boxes on them. What stands for the truth is what this very detector answered to them when it
was run once by TensorFlow Lite's own interpreter (`objectron_answers.json`, made by `python -m benchmarks.objectron --record`).
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipelines import base, fetch, prepared, progress, synthetic
from input_pipelines.image import detection, qt_resources
from mlperf_jax.errors import UserError

SIZE = 300
DETECTOR, NAMES = "detector.tflite", "names.json"

CLASSES = (
    "Bicycle", "Boot", "Laptop", "Person", "Chair", "Cattle", "Desk", "Cat", "Computer mouse", "Computer monitor", "Box",
    "Mug", "Coffee cup", "Stationary bicycle", "Table", "Bottle", "High heels", "Vehicle", "Footwear", "Dog", "Book",
    "Camera", "Car",
)  # fmt: skip
"""Open Images's names of labels 1, 2, ..., as the package's object_detection_oidv4_labelmap.txt has them."""

_PACKAGE = "@mediapipe/objectron@0.4.1675468480"
_ASSETS = fetch.PinnedFile(
    "objectron_solution_packed_assets.data",
    9_987_912,
    "470986ca5df183f41698da6de74b027d838fe289d77b5ab094497d350bee664e",
    "none",
)
_DETECTOR_AT = 184  # before it stands the list of labels

_SCIKIT_IMAGE = "scikit-image==0.26.0"
_PICTURES = tuple(
    fetch.PinnedFile(name, size, sha256, "none")
    for name, size, sha256 in (
        ("astronaut.png", 791_555, "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"),
        ("camera.png", 139_512, "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a"),
        ("chelsea.png", 240_512, "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
        ("clock_motion.png", 58_784, "f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955"),
        ("coffee.png", 466_706, "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
        ("motorcycle_left.png", 644_701, "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"),
        ("motorcycle_right.png", 640_373, "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797"),
        ("rocket.jpg", 112_525, "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
    )
)
_BUNDLES = fetch.PinnedTree(
    ("explore_farm_animals.rcc", "explore_world_animals.rcc", "explore_world_music.rcc"),
    3,
    "e86764699a716d43ceb140d2daad1e28d0b6c254ee1c682a3778ebdc165ccfb3",
)
_GCOMPRIS, _INSIDE = "gcompris-qt-data", "usr/share/gcompris-qt/rcc"
_LEAST_SIDE = 200  # pixels; what is smaller is a button

_ANSWERS = Path(__file__).with_name("objectron_answers.json")
TRUE_SCORE = 0.3
"""From which on a recorded answer stands for something that is there."""


class Photograph(NamedTuple):
    """Its name, as "chelsea" or "farm_animals/cow", and its pixels [H, W, 3] uint8."""

    name: str
    pixels: np.ndarray


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/objectron unless it is there, and says what it is.

    Raises:
        UserError: the detector or the photographs could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError("Objectron's detector and photographs are small and real; leave --fake out.")
    folder = data_dir / "objectron"
    manual = data_dir / "manual" / "objectron"
    manifest = prepared.prepare_folder(folder, functools.partial(_build, manual=manual), verify=verify)
    return f"{_describe(manifest['num_eval'])}, in {folder}"


def _build(folder: Path, *, manual: Path) -> dict[str, Any]:
    with prepared.scratch_folder(folder) as scratch:
        assets = fetch.fetch(
            "Objectron's detector",
            (_ASSETS,),
            [fetch.folder(manual), fetch.npm_package(_PACKAGE)],
            scratch,
            by_hand=f"{_ASSETS.name} of npm's {_PACKAGE} into {manual}",
        )
        pictures = fetch.fetch(
            "scikit-image's photographs",
            _PICTURES,
            [fetch.folder(manual), fetch.pypi_package(_SCIKIT_IMAGE, "skimage/data")],
            scratch,
            by_hand=f"the files of skimage/data in PyPI's {_SCIKIT_IMAGE} into {manual}",
        )
        bundles = fetch.fetch_tree(
            "GCompris's photographs",
            _BUNDLES,
            fetch.installable_tree(_GCOMPRIS, _INSIDE, manual),
            scratch,
            by_hand=f"the content of Debian's {_GCOMPRIS}, /{_INSIDE}, into {manual}",
        )
    (folder / DETECTOR).write_bytes(assets[_ASSETS.name][_DETECTOR_AT:])
    with progress.step("decoding photographs"):
        found = [*photographs(pictures), *_bundled(bundles)]
    prepared.save_arrays(
        folder,
        "eval",
        {
            "image": np.stack([stretched(photograph.pixels) for photograph in found]),
            "size": np.array([photograph.pixels.shape[:2] for photograph in found], np.int32),
        },
    )
    (folder / NAMES).write_text(json.dumps([photograph.name for photograph in found]))
    return {"name": "objectron", "fake": False, "num_eval": len(found)}


def photographs(files: Mapping[str, bytes]) -> Iterator[Photograph]:
    """Decodes pictures by their files' names."""
    for name, data in sorted(files.items()):
        yield Photograph(Path(name).stem, np.asarray(_opened(data).convert("RGB")))


def _bundled(bundles: Mapping[str, bytes]) -> Iterator[Photograph]:
    """The photographs in Qt's bundles of resources, which hold drawings and buttons too."""
    for bundle, content in sorted(bundles.items()):
        about = Path(bundle).stem.removeprefix("explore_")
        for path, data in sorted(qt_resources.parse(content).items()):
            if not path.endswith(".webp"):
                continue
            picture = _opened(data)
            if picture.mode == "RGB" and min(picture.size) >= _LEAST_SIDE:
                yield Photograph(f"{about}/{Path(path).stem}", np.asarray(picture))


def _opened(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))


def stretched(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3] to [SIZE, SIZE, 3] uint8, whatever its sides: MediaPipe's graph has its images so."""
    from PIL import Image

    # Pillow resizes bytes in whole numbers, so that every machine gets the same.
    return np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


@dataclasses.dataclass(frozen=True)
class Answer:
    """Something that the detector found once.

    Attributes:
        label: from 1, of `CLASSES`.
        score: of 1.
        corners: left, top, right, bottom in parts of the photograph.
    """

    label: int
    score: float
    corners: tuple[float, float, float, float]


def recorded_answers() -> dict[str, list[Answer]]:
    """What TensorFlow Lite's interpreter answered, by photograph, best first; see `benchmarks.objectron`."""
    recorded = json.loads(_ANSWERS.read_text())["answers"]
    return {
        name: [Answer(CLASSES.index(label) + 1, score, tuple(corners)) for label, score, corners in rows]
        for name, rows in recorded.items()
    }


class Photographs(base.InMemoryDataset):
    """Photographs to be answered: `image` [300, 300, 3] uint8, `image_id` [] and `size` [2] int32, height and width.

    Attributes:
        names: of the photographs.
        ground_truth: in COCO's form, recorded answers in place of a person's.
    """

    def __init__(
        self,
        images: base.Field,
        sizes: np.ndarray,
        names: Collection[str],
        answers: Mapping[str, list[Answer]],
        *,
        fake: bool,
        description: str,
    ) -> None:
        ids = np.arange(len(sizes), dtype=np.int32)
        super().__init__(
            {"image": np.zeros((0, SIZE, SIZE, 3), np.uint8)},
            {"image": images, "image_id": ids, "size": sizes},
            fake=fake,
            description=description,
        )
        self.names = tuple(names)
        self.ground_truth = detection.coco_truth(
            ((i, height, width) for i, (height, width) in enumerate(sizes.tolist())),
            (
                _true_box(i, size, answer)
                for i, (name, size) in enumerate(zip(self.names, sizes.tolist(), strict=True))
                for answer in answers.get(name, [])
                if answer.score >= TRUE_SCORE
            ),
            enumerate(CLASSES, 1),
        )


def _true_box(image: int, size: tuple[int, int], answer: Answer) -> detection.TrueBox:
    height, width = size
    left, top, right, bottom = np.clip(answer.corners, 0, 1).tolist()
    box = [left * width, top * height, (right - left) * width, (bottom - top) * height]
    return detection.TrueBox(image, answer.label, box, box[2] * box[3], 0)


def detector_file(data_dir: Path) -> Path:
    """The detector of a prepared set."""
    return data_dir / "objectron" / DETECTOR


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> Photographs:
    """Opens the prepared set.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    folder = data_dir / "objectron"
    count = int(prepared.read_manifest(folder)["num_eval"])
    spec: base.Spec = {"image": ((SIZE, SIZE, 3), np.dtype(np.uint8)), "size": ((2,), np.dtype(np.int32))}
    arrays = prepared.open_arrays(folder, "eval", count, spec)
    try:
        names = json.loads((folder / NAMES).read_text())
        if len(names) != count or not all(isinstance(name, str) for name in names):
            raise ValueError("it has other names than photographs")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{folder / NAMES} cannot be read ({prepared.one_line(error)}); {prepared.AGAIN}"
        ) from None
    return Photographs(
        arrays["image"],
        np.array(arrays["size"]),
        names,
        recorded_answers(),
        fake=False,
        description=_describe(count),
    )


def open_synthetic(options: Mapping[str, Any]) -> Photographs:
    """Random images, of which no answers are recorded."""
    _, count = synthetic.counts(options, 1, 41)
    images = np.random.default_rng(0).integers(256, size=(8, SIZE, SIZE, 3), dtype=np.uint8)
    names = [str(i) for i in range(count)]
    sizes = np.full((count, 2), SIZE, np.int32)
    description = synthetic.describe("objectron", 0, count)
    return Photographs(
        synthetic.Repeated(images, count), sizes, names, {}, fake=True, description=description
    )


def _describe(count: int) -> str:
    return f"{count:,} photographs, and the detector of MediaPipe's Objectron"
