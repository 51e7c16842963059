"""Pictures of a volume's slices with its classes, for people to look at."""

from __future__ import annotations

import colorsys
import io

import numpy as np

_LEAST_SIDE = 256  # pixels; smaller slices are enlarged
_COLOURED = 0.5


def draw(image: np.ndarray, true: np.ndarray, found: np.ndarray, num_classes: int) -> bytes:
    """Draws the three slices, one across each axis, that hold most of the true classes: true above, found below.

    Args:
        image: [D, H, W] float.
        true, found: [D, H, W] whole numbers, 0 for background; what is no class is not coloured.
        num_classes: background among them.

    Returns:
        The content of a PNG file.
    """
    from PIL import Image

    low, high = np.percentile(image, (1, 99))
    grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    counts = (true > 0) & (true < num_classes)
    columns = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        index = int(counts.sum(others).argmax())
        cut = [np.rot90(values.take(index, axis)) for values in (grey, true, found)]
        columns.append(np.concatenate([_coloured(cut[0], labels, num_classes) for labels in cut[1:]]))
    height = max(len(column) for column in columns)
    padded = [np.pad(column, ((0, height - len(column)), (0, 4), (0, 0))) for column in columns]
    picture = Image.fromarray((255 * np.concatenate(padded, axis=1)).astype(np.uint8))
    times = max(1, -(-_LEAST_SIDE // min(picture.size)))
    picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _coloured(grey: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """[H, W, 3] in [0, 1]."""
    hues = [colorsys.hsv_to_rgb((k - 1) / (num_classes - 1), 1, 1) for k in range(1, num_classes)]
    colours = np.array([(0.0, 0.0, 0.0), *hues])
    inside = (labels > 0) & (labels < num_classes)
    share = _COLOURED * inside[..., None]
    return grey[..., None] * (1 - share) + colours[np.where(inside, labels, 0)] * share
