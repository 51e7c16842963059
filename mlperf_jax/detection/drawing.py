"""Pictures with boxes and masks, for people to look at."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable

import numpy as np

_TRUE, _FOUND = (0, 170, 90), (255, 130, 0)
_MASKS = (230, 60, 60), (70, 110, 240), (240, 200, 40), (160, 60, 220), (40, 200, 200), (240, 120, 180)
_LEAST_SIDE = 256  # pixels; smaller images are enlarged, so that labels can be read

LabelledBox = tuple[tuple[float, float, float, float], str]
"""Corners (left, top, right, bottom) in [0, 1], and what is written at them."""


def draw(
    image: np.ndarray,
    true: Iterable[LabelledBox],
    found: Iterable[LabelledBox],
    masks: Iterable[np.ndarray] = (),
    lines: Iterable[np.ndarray] = (),
) -> bytes:
    """Draws true boxes green and predicted ones orange, over predicted masks, each of a colour of its own, and lines.

    Args:
        image: [H, W, 3] uint8.
        true, found: the boxes.
        masks: [H, W] bool each.
        lines: [n, 2, 2] each, from point to point, x and y in [0, 1], of the masks' colours.

    Returns:
        The content of a PNG file.
    """
    from PIL import Image, ImageDraw

    height, width, _ = image.shape
    for mask, colour in zip(masks, itertools.cycle(_MASKS)):
        image = np.where(mask[..., None], (image // 2 + np.array(colour) // 2).astype(np.uint8), image)
    times = max(1, -(-_LEAST_SIDE // min(height, width)))
    picture = Image.fromarray(image).resize((width * times, height * times), Image.Resampling.BILINEAR)
    canvas = ImageDraw.Draw(picture)
    for boxes, colour, below in ((true, _TRUE, True), (found, _FOUND, False)):
        for corners, text in boxes:
            left, top, right, bottom = (
                float(np.clip(share, 0, 1)) * (side - 1)
                for share, side in zip(corners, picture.size * 2, strict=True)
            )
            if right < left or bottom < top:
                continue
            canvas.rectangle((left, top, right, bottom), outline=colour, width=2)
            canvas.text((left + 3, bottom - 13 if below else top + 2), text, fill=colour)
    for some, colour in zip(lines, itertools.cycle(_MASKS)):
        bright = tuple(128 + value // 2 for value in colour)
        for ends in (some * picture.size).tolist():
            canvas.line([tuple(end) for end in ends], fill=bright, width=2)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
