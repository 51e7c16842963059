"""LibreOffice's help pages, English and German: 35,262 pairs of paragraphs with the same id; MPL-2.0.

A page of one language stands at the same path as in the other, and its paragraphs have the same ids. Pages
are held out whole, since neighbouring paragraphs repeat each other; a pair that occurs on several pages
belongs to the first, and one whose source also occurs on a training page is not evaluated.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from input_pipelines import fetch, prepared, progress
from input_pipelines.text import parallel_text, subwords
from mlperf_jax.errors import UserError

MAX_LENGTH = 64
VOCAB_SIZE = 4096

# Language: Debian package, its pages.
_PAGES = {
    "en-US": (
        "libreoffice-help-en-us",
        fetch.PinnedTree(
            ("*.html",), 2561, "66e9d96227414acedb7cbd5523897e9e7aa4a4f25aa1f23883eadc4393656e80"
        ),
    ),
    "de": (
        "libreoffice-help-de",
        fetch.PinnedTree(
            ("*.html",), 2561, "f2a996986af2ba53f3ea6e5ffcba404995df78abe287c4a4d03334ec3732d6c1"
        ),
    ),
}
_PARAGRAPH = re.compile(r'<(p|h[1-6])\b[^>]*\bid="((?:par|hd)_id[^"]*)"[^>]*>(.*?)</\1>', re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
_HELD_OUT = 80  # one page in so many

Pages = dict[str, str]
Pair = tuple[str, str, str]
"""Page, English, German."""


def open_synthetic(options: Mapping[str, Any]) -> parallel_text.TranslationDataset:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    length = options.get("max_length", MAX_LENGTH)
    return parallel_text.open_synthetic(
        "libreoffice_help", length, VOCAB_SIZE, options, num_train=10_000, num_eval=700
    )


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/libreoffice_help unless it is there, and says what it is.

    Raises:
        UserError: the data could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError(
            "LibreOffice's help is small and real, so there is no --fake set of it; leave --fake out."
        )

    def build(folder: Path) -> dict[str, Any]:
        with prepared.scratch_folder(folder) as scratch:
            train, evaluation = split(_fetch(data_dir, scratch))
        with progress.step(f"learning {VOCAB_SIZE:,} subwords"):
            vocabulary = subwords.learn(itertools.chain.from_iterable(pair[1:] for pair in train), VOCAB_SIZE)
        with progress.step(f"encoding {len(train) + len(evaluation):,} pairs"):
            encoded = [
                parallel_text.encode(vocabulary, (pair[1:] for pair in part)) for part in (train, evaluation)
            ]
        short = parallel_text.at_most(encoded[1], MAX_LENGTH)
        facts = parallel_text.write(folder, vocabulary, encoded[0], short, MAX_LENGTH)
        return {"name": "libreoffice_help", "fake": False, **facts}

    folder = data_dir / "libreoffice_help"
    prepared.prepare_folder(folder, build, verify=verify)
    return f"{open_dataset(data_dir, {}).description}, in {folder}"


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> parallel_text.TranslationDataset:
    """Opens the prepared set; see `parallel_text`.

    Args:
        data_dir: holds the prepared sets.
        options: `max_length`, if there, must be 64.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    return parallel_text.open_folder(data_dir / "libreoffice_help", "LibreOffice help en-de", options)


def _fetch(data_dir: Path, scratch: Path) -> list[Pair]:
    """The pairs.

    Raises:
        UserError: the pages of a language could not be had from any source.
    """
    pages = []
    for language, (package, tree) in _PAGES.items():
        manual = data_dir / "manual" / "libreoffice-help" / language
        sources = fetch.installable_tree(package, f"usr/share/libreoffice/help/{language}", manual)
        place = scratch / language
        place.mkdir()
        files = fetch.fetch_tree(
            f"LibreOffice's help ({language})",
            tree,
            sources,
            place,
            by_hand=f"its pages of version 7.4.7 into {manual}",
        )
        pages.append({path: data.decode("utf-8", "ignore") for path, data in files.items()})
    return pairs(*pages)


def pairs(english: Pages, german: Pages) -> list[Pair]:
    """Paragraphs of both languages by page and id, each pair once, in the order of pages and ids.

    Untranslated paragraphs are left out.
    """
    found: dict[tuple[str, str], str] = {}
    for page in sorted(english.keys() & german.keys()):
        sides = [dict(paragraphs(pages[page])) for pages in (english, german)]
        for id in sorted(sides[0].keys() & sides[1].keys()):
            pair = sides[0][id], sides[1][id]
            if pair[0] != pair[1]:
                found.setdefault(pair, page)
    return [(page, *pair) for pair, page in found.items()]


def paragraphs(page: str) -> Iterator[tuple[str, str]]:
    """Id and text of every paragraph and heading; the first of several with one id comes last."""
    for _, id, text in reversed(_PARAGRAPH.findall(page)):
        text = " ".join(html.unescape(_TAG.sub("", text)).split())
        if text:
            yield id, text


def split(all_pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Train and evaluation pairs: of the latter, whole pages, chosen by the hash of their path."""

    def held_out(page: str) -> bool:
        return int(hashlib.sha256(page.encode()).hexdigest(), 16) % _HELD_OUT == 0

    train = [pair for pair in all_pairs if not held_out(pair[0])]
    seen = {pair[1] for pair in train}
    return train, [pair for pair in all_pairs if held_out(pair[0]) and pair[1] not in seen]
