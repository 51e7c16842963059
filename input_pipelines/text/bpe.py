"""Byte-pair subwords as GNMT's reference writes them, and words as Moses' tokeniser parts them, undone.

A text comes cut already: "ein Bei@@ spiel &quot; ." says that "Bei" goes on in "spiel" (Sennrich et al.,
arXiv:1508.07909; rsennrich/subword-nmt). A vocabulary file holds a subword a line; ids count from 4, after padding,
what is unknown, start and end. Source: NVIDIA/DeepLearningExamples, PyTorch/Translation/GNMT/seq2seq/data, tokenizer.py
and config.py; the rules of joining words: moses-smt/mosesdecoder, scripts/tokenizer/detokenizer.perl.
"""

from __future__ import annotations

import html
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlperf_jax.errors import UserError

PADDING, UNKNOWN, START, END = range(4)
RESERVED = ("<pad>", "<unk>", "<s>", "<\\s>")

_CUT = re.compile(r"@@( |$)")
_BEFORE_WORDS = frozenset("([{¿¡")
_AFTER_WORDS = frozenset(",.?!:;\\%}])")
_QUOTES = frozenset("'\"„“”`")
_ENTITIES = {"&#124;": "|", "&#91;": "[", "&#93;": "]"}


class Vocabulary:
    """A vocabulary of such subwords.

    Args:
        subwords: in the order of their ids, `RESERVED` first.
    """

    def __init__(self, subwords: Sequence[str]) -> None:
        self.subwords = tuple(subwords)
        self._ids = {subword: id for id, subword in enumerate(self.subwords)}

    def __len__(self) -> int:
        return len(self.subwords)

    def encode(self, line: str) -> list[int]:
        """The ids of a line that is cut already, without start and end."""
        return [self._ids.get(subword, UNKNOWN) for subword in line.split()]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first `END`, if there is one, as people write it."""
        ids = itertools.takewhile(lambda id: id != END, ids)
        cut = " ".join(self.subwords[id] for id in ids if UNKNOWN <= id < len(self) and id != START)
        return joined(_CUT.sub("", cut).split())

    def write(self, path: Path) -> None:
        """Writes the vocabulary file."""
        lines = (f"{subword}\n" for subword in self.subwords[len(RESERVED) :])
        path.write_text("".join(lines), "utf-8", newline="\n")


def read(path: Path) -> Vocabulary:
    """Reads a vocabulary file.

    Raises:
        UserError: it cannot be read, or names a subword twice.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The vocabulary {path} cannot be read ({error}); put a sound copy there.") from None
    words = [line.strip() for line in lines if line.strip()]
    if len(set(words)) < len(words) or not words:
        raise UserError(f"The vocabulary {path} is empty or names a subword twice; put a sound copy there.")
    return Vocabulary([*RESERVED, *words])


def joined(words: Iterable[str]) -> str:
    """Words and punctuation [N] as a text: brackets and stops go to their words, every second quote ends one."""
    text, space, open_quotes = "", "", dict.fromkeys("'\"`", False)
    for word in " ".join(words).replace(" @-@ ", "-").split():
        word = _unescaped(word)
        if _BEFORE_WORDS.issuperset(word) or all(unicodedata.category(c) == "Sc" for c in word):
            text, space = text + space + word, ""
        elif _AFTER_WORDS.issuperset(word):
            text, space = text + word, " "
        elif _QUOTES.issuperset(word):
            kind = '"' if word[0] in "„“”" else word[0]
            if open_quotes[kind]:
                text, space = text + word, " "
            else:
                text, space = text + space + word, ""
            open_quotes[kind] = not open_quotes[kind]
        else:
            text, space = text + space + word, " "
    return text.strip()


def _unescaped(word: str) -> str:
    """What Moses escapes, as it was."""
    return html.unescape(_ENTITIES.get(word, word))
