"""A made-up set in ImageNet's form: for exercising and timing the closed path, not for quality.

The images are random fields with the 1/f spectrum of photographs (Field, "Relations between the
statistics of natural images and the response properties of cortical cells", 1987), at ImageNet's
usual sizes and about its 110 kB, so that decoding costs what it costs there. Labels are random,
and each class has a mean colour of its own: a model can learn them, slowly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

NUM_CLASSES = 1000
_SIZES = [(375, 500), (375, 500), (333, 500), (500, 375), (500, 500), (288, 432)]  # height, width
_QUALITY = 90


def write(folder: Path, num_train: int, num_eval: int) -> None:
    """Writes `train` and `val` with a folder for each class."""
    import simplejpeg

    classes = [f"n{label:08d}" for label in range(NUM_CLASSES)]
    for split, count in (("train", num_train), ("val", num_eval)):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
        for index in range(count):
            random = np.random.default_rng([split == "val", index])
            label = int(random.integers(NUM_CLASSES))
            jpeg = simplejpeg.encode_jpeg(photograph(random, label), quality=_QUALITY, colorsubsampling="420")
            (folder / split / classes[label] / f"{split}_{index:08d}.JPEG").write_bytes(jpeg)


def photograph(random: np.random.Generator, label: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Makes up an image, [H, W, 3] uint8, of the given height and width or one of ImageNet's usual sizes."""
    height, width = size or _SIZES[random.integers(len(_SIZES))]
    colour = np.random.default_rng(label).uniform(88, 168, size=3)
    light = _field(random, height, width, channels=1)
    tint = _field(random, height, width, channels=3)
    return np.clip(colour + 35 * light + 12 * tint, 0, 255).astype(np.uint8)


def _field(random: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """Returns a field of mean 0 and deviation 1 with amplitude 1/f, [height, width, channels] float64."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = random.standard_normal((*frequency.shape, channels, 2)).view(np.complex128)[..., 0]
    field = np.fft.irfft2(spectrum / frequency[..., None], s=(height, width), axes=(0, 1))
    return field / field.std(axis=(0, 1))
