"""Fashion-MNIST: 60,000 train and 10,000 eval images of clothes, 28x28 grey, 10 balanced classes; MIT.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv:1708.07747.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import fetch, prepared, synthetic
from input_pipelines.base import InMemoryDataset, Spec
from mlperf_jax.errors import UserError

IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10
NUM_TRAIN, NUM_EVAL = 60_000, 10_000

_FILES = {
    "train_image": fetch.PinnedFile(
        "train-images-idx3-ubyte.gz",
        47_040_016,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train_label": fetch.PinnedFile(
        "train-labels-idx1-ubyte.gz",
        60_008,
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "eval_image": fetch.PinnedFile(
        "t10k-images-idx3-ubyte.gz",
        7_840_016,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "eval_label": fetch.PinnedFile(
        "t10k-labels-idx1-ubyte.gz",
        10_008,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_SPEC: Spec = {"image": (IMAGE_SHAPE, np.dtype(np.uint8)), "label": ((), np.dtype(np.int32))}
_COUNTS = {"train": NUM_TRAIN, "eval": NUM_EVAL}


def open_synthetic(options: Mapping[str, Any]) -> InMemoryDataset:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    _check_size(options)
    return synthetic.open_dataset(
        InMemoryDataset,
        "fashion_mnist",
        _SPEC,
        {"image": 256, "label": NUM_CLASSES},
        num_train=NUM_TRAIN,
        num_eval=NUM_EVAL,
        options=options,
    )


def _check_size(options: Mapping[str, Any]) -> None:
    size = options.get("image_size", IMAGE_SHAPE[0])
    if size != IMAGE_SHAPE[0]:
        raise UserError(f"Fashion-MNIST has images of 28x28, so image_size cannot be {size}; leave it at 28.")


def sources(data_dir: Path) -> list[fetch.Source]:
    """Returns where the four files can come from, in the order in which they are tried."""
    return [
        fetch.folder(data_dir / "manual" / "fashion-mnist"),
        fetch.folder(Path("/usr/share/datasets/fashion-mnist")),
        fetch.debian_package("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
        fetch.tfds_urls("fashion_mnist"),
    ]


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/fashion_mnist unless it is there, and says what it is.

    Raises:
        UserError: the data could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError("Fashion-MNIST is small and real, so there is no --fake set of it; leave --fake out.")

    def build(folder: Path) -> dict[str, Any]:
        by_hand = f"its four .gz files into {data_dir / 'manual' / 'fashion-mnist'}"
        with prepared.scratch_folder(folder) as scratch:
            files = fetch.fetch(
                "Fashion-MNIST", list(_FILES.values()), sources(data_dir), scratch, by_hand=by_hand
            )
        for split, count in _COUNTS.items():
            for field, (shape, dtype) in _SPEC.items():
                values = parse_idx(files[_FILES[f"{split}_{field}"].name]).reshape(count, *shape)
                prepared.save_arrays(folder, split, {field: values.astype(dtype)})
        return {"name": "fashion_mnist", "fake": False, "num_train": NUM_TRAIN, "num_eval": NUM_EVAL}

    prepared.prepare_folder(data_dir / "fashion_mnist", build, verify=verify)
    return f"{open_dataset(data_dir, {}).description}, in {data_dir / 'fashion_mnist'}"


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> InMemoryDataset:
    """Opens the prepared set: image [28, 28, 1] uint8, label [] int32 in [0, 10).

    Args:
        data_dir: holds the prepared sets.
        options: `image_size`, if there at all, must be 28.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    _check_size(options)
    folder = data_dir / "fashion_mnist"
    prepared.read_manifest(folder)
    return InMemoryDataset(
        *(prepared.open_arrays(folder, split, count, _SPEC) for split, count in _COUNTS.items()),
        fake=False,
        description="Fashion-MNIST, 60,000 train and 10,000 eval images",
    )


def parse_idx(data: bytes) -> np.ndarray:
    """Reads an IDX file of unsigned bytes: two zero bytes, type 8, rank, big-endian sizes, values.

    Raises:
        ValueError: it is not one, or longer or shorter than its header says.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError("not an IDX file of unsigned bytes")
    rank = data[3]
    start = 4 + 4 * rank
    if not rank or len(data) < start:
        raise ValueError("an IDX file with a damaged header")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", rank, offset=4))
    if len(data) != start + math.prod(shape):
        raise ValueError(f"an IDX file of {len(data) - start} values where its header says {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
