"""Pictures of translations and answers, for people to look at."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable

_COLUMNS, _LINE, _MARGIN, _NAMES = 100, 14, 8, 80  # characters; pixels
_TIMES = 2  # by which all is enlarged
_GIVEN, _SAID = (90, 90, 90), (0, 0, 0)
_BY_THE_MODEL = ("translation", "answer")


def draw(texts: Iterable[tuple[str, str]]) -> bytes:
    """Draws texts below each other, each with what it is before it.

    Args:
        texts: (what it is, text); a "translation" or an "answer" is dark, the others grey.

    Returns:
        The content of a PNG file.
    """
    from PIL import Image, ImageDraw, ImageFont

    lines = []
    for name, text in texts:
        colour = _SAID if name in _BY_THE_MODEL else _GIVEN
        latin = text.encode("latin-1", "replace").decode("latin-1")  # the letters that the font has
        wrapped = textwrap.wrap(latin, _COLUMNS) or [""]
        lines += [(name if n == 0 else "", line, colour) for n, line in enumerate(wrapped)]
    font = ImageFont.load_default_imagefont()
    width = int(2 * _MARGIN + _NAMES + font.getlength("m" * _COLUMNS))
    picture = Image.new("RGB", (width, 2 * _MARGIN + _LINE * len(lines)), "white")
    canvas = ImageDraw.Draw(picture)
    for n, (name, line, colour) in enumerate(lines):
        top = _MARGIN + n * _LINE
        canvas.text((_MARGIN, top), name, fill=_GIVEN, font=font)
        canvas.text((_MARGIN + _NAMES, top), line, fill=colour, font=font)
    picture = picture.resize((_TIMES * width, _TIMES * picture.height), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
