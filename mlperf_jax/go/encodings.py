"""How the text of a game record is encoded: as it says, or else as its letters suggest.

In Shift-JIS, Big5 and GB18030 the second byte of a letter may be that of a backslash or of a bracket, so that a record must
be decoded before it is parsed.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

_CHARSET = re.compile(rb"(?<![A-Za-z])CA\s*\[\s*([\w.:-]{1,40})\s*\]")
_HEAD = 65_536  # bytes in which CA is looked for
_SAMPLE = 65_536  # letters by which an encoding is judged

# Encodings that records are written in, each by the widest that holds it.
_KNOWN = {
    "ascii": "ascii", "utf-8": "utf-8", "utf-16": "utf-16", "iso8859-1": "cp1252", "cp1252": "cp1252",
    "shift_jis": "cp932", "cp932": "cp932", "euc_jp": "euc_jp", "iso2022_jp": "iso2022_jp",
    "gb2312": "gb18030", "gbk": "gb18030", "gb18030": "gb18030", "big5": "big5hkscs", "big5hkscs": "big5hkscs",
    "cp950": "big5hkscs", "euc_kr": "cp949", "cp949": "cp949", "iso2022_kr": "iso2022_kr", "koi8-r": "koi8-r",
    "cp1250": "cp1250", "cp1251": "cp1251", "iso8859-2": "iso8859-2", "iso8859-5": "iso8859-5",
}  # fmt: skip


def decode(data: bytes) -> str:
    """The text; what no encoding explains is replaced."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    marked = data.startswith(codecs.BOM_UTF8)
    data = data.removeprefix(codecs.BOM_UTF8)
    for name in ("" if marked else _told(data), "utf-8"):
        text = name and _decoded(data, name)
        if text:
            return text
    texts = [(_decoded(data, name), is_common) for name, is_common in _USUAL]
    known = [(_share(text, is_common), text) for text, is_common in texts if text]
    return max(known, key=lambda pair: pair[0])[1] if known else data.decode("latin-1")


def _told(data: bytes) -> str:
    """The encoding that the record names; "" where it names none that is known."""
    match = _CHARSET.search(data[:_HEAD])
    try:
        return _KNOWN.get(codecs.lookup(match[1].decode()).name, "") if match else ""
    except (LookupError, ValueError):
        return ""


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode(name)
    except UnicodeDecodeError:
        return ""


def _in(name: str) -> Callable[[str], bool]:
    def is_common(letter: str) -> bool:
        try:
            return len(letter.encode(name)) > 1
        except UnicodeEncodeError:
            return False

    return is_common


def _is_common_big5(letter: str) -> bool:
    try:
        return 0xA1 <= letter.encode("big5")[0] <= 0xC6
    except UnicodeEncodeError:
        return False


# What records without CA are in, and which letters are common there: in another encoding the same bytes are rare ones.
_USUAL: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("gb18030", _in("gb2312")),
    ("cp932", _in("shift_jis")),
    ("big5hkscs", _is_common_big5),
    ("cp949", _in("euc_kr")),
    ("cp1252", str.isalpha),
)


def _share(text: str, is_common: Callable[[str], bool]) -> float:
    """Of the letters beyond ASCII, the share of common ones; letters of two bytes count twice, as bytes do."""
    letters = [letter for letter in text if ord(letter) > 127][:_SAMPLE]
    return sum(map(is_common, letters)) / max(len(letters), 1)
