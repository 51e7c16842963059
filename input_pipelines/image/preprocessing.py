"""JPEG bytes to training and evaluation images, as the ImageNet benchmarks prepare them.

Follows the reference of MLPerf Training's ResNet-50 (image_classification/tensorflow2,
imagenet_preprocessing.py): decode whole, crop, bilinear without antialiasing. libjpeg's scaled
decoding is not used: it changes the pixels (an averaged half-size image in place of bilinear
samples of the full one), and since most of the time goes into entropy decoding it gains 11 % at
half size, which a crop must be 448 pixels wide and high to allow.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from mlperf_jax.errors import UserError

_ASPECTS = (0.75, 1.33)  # width / height
_AREAS = (0.05, 1.0)  # of the image
_MIN_OBJECT_COVERED = 0.1
_ATTEMPTS = 100
_DRAWS = 4  # random numbers that an attempt takes
_LIKELY_ATTEMPTS = 8  # for which numbers are drawn at first; more are hardly ever wanted

Box = tuple[int, int, int, int]  # y, x, height, width in pixels


def decode(data: bytes, where: str) -> np.ndarray:
    """Decodes a JPEG, [H, W, 3] uint8 RGB; ImageNet's one PNG and its CMYK JPEGs too.

    Raises:
        UserError: it is damaged or not an image; names `where`.
    """
    import simplejpeg

    try:
        _, _, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        colorspace = None
        reason = error
    if colorspace in ("YCbCr", "RGB", "Gray"):
        try:
            return simplejpeg.decode_jpeg(data)
        except ValueError as error:
            if "extraneous bytes" in str(error):  # Before a marker: nothing of the image is lost.
                return simplejpeg.decode_jpeg(data, strict=False)
            reason = error
    elif colorspace or data.startswith(b"\x89PNG"):
        return _decode_oddity(data, where)
    raise _damaged(where, reason)


def _decode_oddity(data: bytes, where: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _damaged(where, error) from None


def _damaged(where: str, reason: Exception) -> UserError:
    return UserError(f"{where} is not a whole image ({reason}); put a sound copy in its place.")


def uniforms(seed: int, position: int, count: int) -> np.ndarray:
    """Returns random numbers in [0, 1) that depend on nothing but seed and stream position, [count] float64.

    The key's upper bit keeps them apart from `base.epoch_permutation`'s.
    """
    words = np.random.Philox(key=np.array([seed, 2**63 + position], np.uint64)).random_raw(count)
    return (words >> np.uint64(11)) * 2.0**-53


def train_image(
    data: bytes, where: str, *, size: int, seed: int, position: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Returns a random crop, resized and perhaps flipped, [size, size, 3] uint8.

    Args:
        data, where: the JPEG and its name.
        seed, position: of the example in the global stream; fix the randomness.
        out: an array to put it into, as a row of a batch; None for a new one.

    Raises:
        UserError: as `decode`.
    """
    image = decode(data, where)
    # The first numbers of a long draw are those of a short one.
    flip, *draws = uniforms(seed, position, 1 + _LIKELY_ATTEMPTS * _DRAWS).tolist()
    crop = random_crop(image.shape[0], image.shape[1], draws)
    if crop is None:
        draws = uniforms(seed, position, 1 + _ATTEMPTS * _DRAWS)[1:].tolist()
        crop = random_crop(image.shape[0], image.shape[1], draws) or (0, 0, *image.shape[:2])
    y, x, height, width = crop
    if flip >= 0.5:
        return _resize(image[y : y + height, x : x + width], size, size, out)
    return mirrored(_resize(image[y : y + height, x : x + width], size, size), out)


def eval_image(data: bytes, where: str, *, size: int) -> np.ndarray:
    """Returns the centre of the image resized to a shorter side of 256 / 224 size, [size, size, 3] uint8.

    Raises:
        UserError: as `decode`.
    """
    image = decode(data, where)
    shorter = size * 256 // 224
    height, width = (shorter * side // min(image.shape[:2]) for side in image.shape[:2])
    y, x = (height - size) // 2, (width - size) // 2
    return _resize(image, height, width)[y : y + size, x : x + size]


def _resize(image: np.ndarray, height: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
    cv2 = import_cv2()
    return cv2.resize(image, (width, height), out, interpolation=cv2.INTER_LINEAR)


def mirrored(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """An image [H, W, 3] uint8 left to right; copying NumPy's view takes 25 to 40 times as long."""
    return import_cv2().flip(image, 1, out)


@functools.cache
def import_cv2() -> ModuleType:
    import cv2

    cv2.setNumThreads(1)  # Images are made in parallel already.
    return cv2


def random_crop(height: int, width: int, draws: Sequence[float]) -> Box | None:
    """Chooses a crop as TensorFlow's `sample_distorted_bounding_box` does.

    An attempt draws the aspect ratio, then the height uniformly among those whose area is within
    bounds, then the place. It counts if it covers a tenth of the object, which is the whole image:
    neither TFDS nor class folders have ImageNet's bounding boxes, and accepted submissions do
    without. After 100 attempts in vain the caller takes the whole image.
    (tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc)

    Args:
        height, width: of the image.
        draws: random numbers in [0, 1), four for each attempt; 100 attempts are to be made.

    Returns:
        The first crop that counts, None if none does.
    """
    for attempt in range(len(draws) // _DRAWS):
        crop = _attempt_crop(height, width, *draws[_DRAWS * attempt : _DRAWS * (attempt + 1)])
        if crop and crop[2] * crop[3] >= _MIN_OBJECT_COVERED * height * width:
            return crop
    return None


def _attempt_crop(height: int, width: int, *draws: float) -> Box | None:
    """Returns a random crop, or None if no size fits the drawn aspect ratio."""
    for_aspect, for_height, for_y, for_x = draws
    aspect = _ASPECTS[0] + for_aspect * (_ASPECTS[1] - _ASPECTS[0])
    least, most = (area * height * width for area in _AREAS)
    tallest = round(math.sqrt(most / aspect))
    if round(tallest * aspect) > width:  # The tallest whose width, rounded, still fits.
        tallest = int((width + 0.5 - 1e-7) / aspect)
        tallest -= round(tallest * aspect) > width
    tallest = min(tallest, height)
    crop_height = min(round(math.sqrt(least / aspect)), tallest)
    crop_height += int(for_height * (tallest - crop_height + 1))
    crop_width = round(crop_height * aspect)
    if crop_height * crop_width < least:  # Mend what rounding did to the area.
        crop_height += 1
        crop_width = round(crop_height * aspect)
    if crop_height * crop_width > most:
        crop_height -= 1
        crop_width = round(crop_height * aspect)
    fits = 0 < crop_height <= height and 0 < crop_width <= width
    if not fits or not least <= crop_height * crop_width <= most:
        return None
    return int(for_y * (height - crop_height)), int(for_x * (width - crop_width)), crop_height, crop_width
