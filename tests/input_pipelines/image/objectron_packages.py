"""The packages of `input_pipelines.image.objectron` as small ones of the same form, put where users may put theirs."""

import hashlib
import json

import numpy as np

from input_pipelines import fetch
from input_pipelines.image import objectron
from tests.input_pipelines.image.test_composites import digest, encoded, qt_bundle

BUNDLED = {"explore_farm_animals.rcc": ("cow", "cat"), "explore_world_music.rcc": ("drum",)}
NAMES = ("flat", "tall", "farm_animals/cat", "farm_animals/cow", "world_music/drum")


def pinned(name, content):
    return fetch.PinnedFile(name, len(content), hashlib.sha256(content).hexdigest(), "none")


def picture(seed, height, width):
    """Blocks of random colours."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return blocks.repeat(-(-height // 8), 0).repeat(-(-width // 8), 1)[:height, :width]


def put(data_dir, detector, patch, answers=None):
    """Fills DATA_DIR/manual/objectron with five photographs and a detector (bytes), and pins what lies there."""
    folder = data_dir / "manual" / "objectron"
    folder.mkdir(parents=True)
    pictures = {
        "tall.png": encoded(picture(0, 400, 210), "PNG"),
        "flat.jpg": encoded(picture(1, 220, 500), "JPEG"),
    }
    bundles = {}
    for i, (bundle, names) in enumerate(BUNDLED.items()):
        files = {
            f"{name}.webp": (0, encoded(picture(2 + i + 5 * j, 256, 320), "WEBP"))
            for j, name in enumerate(names)
        }
        files["button.webp"] = (0, encoded(picture(9, 64, 64), "WEBP"))
        files["clear.webp"] = (0, encoded(np.zeros((300, 300, 4), np.uint8), "WEBP"))
        files["sound.ogg"] = (0, b"OggS")
        bundles[bundle] = qt_bundle(files)
    assets = bytes(objectron._DETECTOR_AT) + detector
    for name, content in {**pictures, **bundles, objectron._ASSETS.name: assets}.items():
        (folder / name).write_bytes(content)
    patch.setattr(objectron, "_ASSETS", pinned(objectron._ASSETS.name, assets))
    patch.setattr(objectron, "_PICTURES", tuple(pinned(*item) for item in pictures.items()))
    tree = fetch.PinnedTree(tuple(bundles), len(bundles), digest(dict(sorted(bundles.items()))))
    patch.setattr(objectron, "_BUNDLES", tree)
    patch.setattr(objectron, "_ANSWERS", data_dir / "answers.json")
    record(data_dir, answers or {})


def record(data_dir, answers):
    """What is recorded as answered: photograph -> (class, score, corners)."""
    (data_dir / "answers.json").write_text(json.dumps({"by": "nobody", "answers": answers}))
