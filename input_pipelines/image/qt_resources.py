"""Reads the resource bundles (.rcc) in which Qt programs keep their images.

The layout is that of Qt's own tool (qtbase, src/tools/rcc/rcc.cpp): a header, a tree of nodes, the
names and the data, all big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_COMPRESSED = 1 | 4  # zlib, Zstandard
_FOLDER = 2


def parse(bundle: bytes) -> dict[str, bytes]:
    """Returns the files that are stored without compression, path -> content.

    Images are, since they would not shrink; compressed text is passed over.

    Raises:
        ValueError: it is not such a bundle, or is damaged.
    """
    if bundle[:4] != b"qres":
        raise ValueError("not a Qt resource bundle")
    try:
        return dict(_files(bundle))
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"a damaged Qt resource bundle ({error})") from None


def _files(bundle: bytes) -> Iterator[tuple[str, bytes]]:
    version, tree, data, names = struct.unpack_from(">4I", bundle, 4)
    node_size = 22 if version >= 2 else 14  # Later versions hold the time of change.
    seen, waiting = set(), [(0, "")]
    while waiting:
        node, parent = waiting.pop()
        if node in seen:
            raise ValueError("a damaged Qt resource bundle (a folder is inside itself)")
        seen.add(node)
        at = tree + node * node_size
        name, flags, first, second = struct.unpack_from(">IHII", bundle, at)
        path = f"{parent}/{_name(bundle, names + name)}" if node else ""
        if flags & _FOLDER:
            if first > len(bundle) // node_size:
                raise ValueError(f"a damaged Qt resource bundle ({first} files in a folder)")
            waiting.extend((second + child, path) for child in range(first))
        elif not flags & _COMPRESSED:
            yield path, _sized(bundle, data + second)


def _name(bundle: bytes, at: int) -> str:
    (length,) = struct.unpack_from(">H", bundle, at)
    (text,) = struct.unpack_from(f"{2 * length}s", bundle, at + 6)  # A hash stands between.
    return text.decode("utf-16-be")


def _sized(bundle: bytes, at: int) -> bytes:
    (length,) = struct.unpack_from(">I", bundle, at)
    (content,) = struct.unpack_from(f"{length}s", bundle, at + 4)
    return content
