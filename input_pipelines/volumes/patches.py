"""Random patches of volumes, as MLPerf's 3D U-Net is trained on.

Follows mlcommons/training, retired_benchmarks/unet3d/pytorch/data_loading/pytorch_loader.py: RandBalancedCrop, RandFlip,
RandomBrightnessAugmentation, GaussianNoise, in this order. A patch is cut around one of the two largest objects of a
class, or anywhere; flipped; multiplied; made noisy.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from input_pipelines.image.box_augmentation import stream
from input_pipelines.image.preprocessing import uniforms

Box = tuple[tuple[int, int], ...]
"""First voxel and the one after the last, axis by axis."""

_KEPT_OBJECTS = 2
_NOISE = 2**62  # in seeds, so that noise has a stream of its own


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How often, and how far.

    Attributes:
        oversampling: share of patches that are cut around an object.
        flips: how often each axis is turned around.
        brightness: how often a patch is brighter; then it is multiplied by 1 and a number of .7 to 1.3 more.
        noise: how often there is noise; its deviation is drawn from 0 to .1.
    """

    oversampling: float = 0.4
    flips: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    brightness: float = 0.1
    noise: float = 0.1


def objects(labels: np.ndarray) -> dict[int, list[Box]]:
    """The connected regions of each class in labels [X, Y, Z], class -> boxes; 0 is background."""
    from scipy import ndimage

    found = {}
    for label in np.unique(labels[labels > 0]).tolist():
        parts, _ = ndimage.label(labels == label)
        slices = ndimage.find_objects(parts)
        found[label] = [tuple((s.start, s.stop) for s in box) for box in slices if box is not None]
    return found


def largest(boxes: Sequence[Box]) -> list[Box]:
    """The two of the largest volume, the larger one last."""
    volumes = [np.prod([stop - start for start, stop in box]) for box in boxes]
    return [boxes[i] for i in np.argsort(volumes, kind="stable")[-_KEPT_OBJECTS:]]


def corner(
    shape: Sequence[int],
    patch: Sequence[int],
    boxes: Mapping[int, Sequence[Box]],
    draws: Iterator[float],
    oversampling: float,
) -> tuple[int, ...]:
    """The first voxel of a patch.

    Args:
        shape: of the volume, at least the patch's.
        patch: its shape.
        boxes: class -> `largest` objects.
        draws: random numbers in [0, 1) without end.
        oversampling: see `Augmentation`.
    """
    if next(draws) < oversampling and boxes:
        of_class = boxes[sorted(boxes)[_below(len(boxes), draws)]]
        box = of_class[_below(len(of_class), draws)]
        return tuple(_around(*axis, draws) for axis in zip(box, shape, patch, strict=True))
    return tuple(_below(size - side, draws) for size, side in zip(shape, patch, strict=True))


def _below(count: int, draws: Iterator[float]) -> int:
    """A whole number in [0, count), 0 where there is none."""
    return int(next(draws) * count)


def _around(box: tuple[int, int], size: int, side: int, draws: Iterator[float]) -> int:
    """Where a patch begins on an axis: it holds the object, or lies within it if the object is longer."""
    start, stop = box
    spare = side - (stop - start)
    before = _below(abs(spare), draws)
    return min(max(0, start - before if spare >= 0 else start + before), size - side)


def augment(
    image: np.ndarray,
    label: np.ndarray,
    *,
    seed: int,
    position: int,
    numbers: Augmentation,
    draws: Iterator[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Turns, brightens and blurs a patch [X, Y, Z] float32 and its labels uint8; the arguments stay as they are."""
    turned = tuple(axis for axis, often in enumerate(numbers.flips) if next(draws) < often)
    image, label = np.flip(image, turned), np.flip(label, turned)
    if next(draws) < numbers.brightness:
        image = image * np.float32(1.7 + 0.6 * next(draws))
    if next(draws) < numbers.noise:
        image = image + np.float32(0.1 * next(draws)) * _normal(seed, position, image.shape)
    return image, label


def drawn(seed: int, position: int) -> Iterator[float]:
    """The random numbers in [0, 1) of a position of the global stream."""
    return itertools.chain(stream(seed, position))


def _normal(seed: int, position: int, shape: Sequence[int]) -> np.ndarray:
    """Normal noise, float32, that depends on nothing else (Box and Muller)."""
    count = int(np.prod(shape))
    first, second = uniforms(seed, _NOISE + position, count + count % 2).reshape(2, -1)
    radius, angle = np.sqrt(-2 * np.log1p(-first)), 2 * np.pi * second
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return pairs[:count].astype(np.float32).reshape(shape)
