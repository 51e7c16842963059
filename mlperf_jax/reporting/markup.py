"""HTML that cannot be injected into: every string is text unless it was made here."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Any

# Control characters have no place in HTML, and characters that turn the direction of writing can make a
# text look like another.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_VOID = {"meta", "link", "br", "img", "input"}


class Markup(str):
    """HTML as opposed to text."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """`value` as it is to be read: markup stays, all else is escaped; None is nothing."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("")
    return Markup(html.escape(readable(str(value)), quote=True))


def readable(value: str) -> str:
    """Makes unprintable characters visible as such, and replaces what is no Unicode."""
    value = value.encode("utf-8", "replace").decode("utf-8")
    return _UNPRINTABLE.sub("\ufffd", unicodedata.normalize("NFC", value))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. A trailing underscore of an attribute's name is dropped, others become hyphens; an
    attribute that is None or False is left out, True has no value."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{text(value)}"')
    parts.append(">")
    if name not in _VOID:
        parts += [join(children), f"</{name}>"]
    return Markup("".join(parts))


def join(children: Any) -> Markup:
    """Children one after another; lists are taken apart."""
    found = []
    for child in children:
        found.append(join(child) if isinstance(child, (list, tuple)) else text(child))
    return Markup("".join(found))
