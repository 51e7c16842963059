"""106 articles of the English Wikipedia, from PyPI's `gensim` (CC BY-SA): their paragraphs as plain text."""

from __future__ import annotations

import bz2
import hashlib
import html
import re
from pathlib import Path

from input_pipelines import fetch

_DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_FILE = fetch.PinnedFile(
    _DUMP, 1_695_871, "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d", "none"
)
_PAGE = re.compile(r"<page>(.*?)</page>", re.DOTALL)
_TEXT = re.compile(r"<text[^>]*>(.*?)</text>", re.DOTALL)
_TITLE = re.compile(r"<title>(.*?)</title>")

_NESTED = re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", re.DOTALL)
_DROPPED = re.compile(r"<ref[^<>]*/>|<ref.*?</ref>|<!--.*?-->|<math.*?</math>|<[^<>]*>", re.DOTALL)
_LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_ADDRESS = re.compile(r"\[\w+://\S* ?([^\]]*)\]")
_NO_PARAGRAPH = tuple("=*#|!{}[<;: ")
_DEPTH = 5  # of tables and templates in one another
_HELD_OUT = 10  # one article in so many

Articles = dict[str, list[str]]
"""Title -> paragraphs."""


def sources(data_dir: Path) -> list[fetch.Source]:
    """Returns where the articles can come from, in the order in which they are tried."""
    return [
        fetch.folder(data_dir / "manual" / "gensim"),
        fetch.pypi_package("gensim==4.4.0", "gensim/test/test_data"),
    ]


def fetch_articles(data_dir: Path, scratch: Path) -> Articles:
    """Fetches the articles.

    Raises:
        UserError: they could not be had from any source.
    """
    by_hand = f"{_DUMP} of gensim 4.4.0 into {data_dir / 'manual' / 'gensim'}"
    files = fetch.fetch("gensim's Wikipedia articles", [_FILE], sources(data_dir), scratch, by_hand=by_hand)
    return articles(bz2.decompress(files[_DUMP]).decode("utf-8", "ignore"))


def articles(dump: str) -> Articles:
    """The articles of MediaWiki's XML; what redirects or is none is left out."""
    found = {}
    for page in _PAGE.findall(dump):
        title, text = _TITLE.search(page), _TEXT.search(page)
        if title and text and "<redirect" not in page and "<ns>0</ns>" in page:
            found[html.unescape(title[1])] = paragraphs(html.unescape(text[1]))
    return found


def paragraphs(wikitext: str) -> list[str]:
    """The paragraphs of an article without what is no running text.

    >>> paragraphs("'''Ants''' {{x|{{y}}}}are [[insect|insects]].<ref>A book.</ref>\\n* a list")
    ['Ants are insects.']
    """
    text = wikitext
    for _ in range(_DEPTH):
        text = _NESTED.sub("", text)
    text = _ADDRESS.sub(r"\1", _LINK.sub(r"\1", _LINK.sub(r"\1", _DROPPED.sub("", text))))
    text = html.unescape(text).replace("'''", "").replace("''", "")
    lines = (" ".join(line.split()) for line in text.split("\n") if not line.startswith(_NO_PARAGRAPH))
    return [line for line in lines if line]


def held_out(title: str) -> bool:
    """Whether an article is kept for evaluation, by the hash of its title."""
    return int(hashlib.sha256(title.encode()).hexdigest(), 16) % _HELD_OUT == 0
