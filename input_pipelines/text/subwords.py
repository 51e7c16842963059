"""Subwords in the text format of MLPerf's Transformer: reading, writing, encoding, decoding, learning.

Text is cut into tokens where letters and numbers meet anything else; a single space between two words is
left out. Each token is escaped so that it consists of known characters ("_" becomes "\\u", "\\" becomes
"\\\\", an unknown character its code point as "\\8364;") and ends with "_"; then the longest known subword
is taken from the left, again and again. So every text has an encoding, and decoding gives it back.

A vocabulary file holds a subword a line, in quotes; ids count from 0 in file order, with padding and the
end of a sentence first. Source of the algorithm: mlcommons/training,
retired_benchmarks/transformer/tensorflow/transformer/utils/tokenizer.py.
"""

from __future__ import annotations

import collections
import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mlperf_jax.errors import UserError

PADDING, END = 0, 1
RESERVED = ("<pad>", "<EOS>")

_ESCAPES = "\\_u;0123456789"  # what escapes are written with
_ESCAPED = re.compile(r"\\u|\\\\|\\([0-9]+);")
_UNDEFINED = "\u3013"
_KEPT_TOKENS = 1 << 20
_ROUNDS = 4


class Subwords:
    """A vocabulary of subwords.

    Args:
        subwords: in the order of their ids, `RESERVED` first.
    """

    def __init__(self, subwords: Sequence[str]) -> None:
        self.subwords = tuple(subwords)
        self._ids = {subword: id for id, subword in enumerate(self.subwords)}
        self._longest = max(map(len, self.subwords))
        self._alphabet = _alphabet(self.subwords)
        self._ids_of = functools.lru_cache(maxsize=_KEPT_TOKENS)(self._encode_token)

    def __len__(self) -> int:
        return len(self.subwords)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without an end."""
        return list(itertools.chain.from_iterable(map(self._ids_of, split(text))))

    def _encode_token(self, token: str) -> tuple[int, ...]:
        return tuple(
            self._ids[part] for part in _cut(escape(token, self._alphabet), self._ids, self._longest)
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first `END`, if there is one; ids out of range are passed over."""
        ids = itertools.takewhile(lambda id: id != END, ids)
        escaped = "".join(self.subwords[id] for id in ids if 0 <= id < len(self.subwords))
        return join([unescape(token) for token in escaped.split("_") if token])

    def write(self, path: Path) -> None:
        """Writes the vocabulary file."""
        path.write_text("".join(f"'{subword}'\n" for subword in self.subwords), "utf-8", newline="\n")


def read(path: Path) -> Subwords:
    """Reads a vocabulary file; padding and end may be written with or without "_", or be missing.

    Raises:
        UserError: it cannot be read or is no such file.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The vocabulary {path} cannot be read ({error}); put a sound copy there.") from None
    subwords = []
    for number, line in enumerate(filter(None, lines), 1):
        if len(line) < 3 or line[0] not in "'\"" or line[-1] != line[0]:
            raise UserError(
                f"{path}, subword {number}, is {line[:40]!r}, not a subword in quotes; use MLPerf's vocabulary file."
            )
        subwords.append(line[1:-1])
    marks = {mark + ending for mark in RESERVED for ending in ("", "_")}
    subwords = [subword for subword in subwords if subword not in marks]
    missing = set(_ESCAPES) - set(subwords)
    if missing or len(set(subwords)) < len(subwords):
        why = f"lacks {min(missing)!r}" if missing else "names a subword twice"
        raise UserError(f"The vocabulary {path} {why}, so it is damaged; put a sound copy there.")
    return Subwords([*RESERVED, *subwords])


def split(text: str) -> list[str]:
    """Cuts a text into runs of letters and numbers and runs of anything else."""
    runs = ["".join(run) for _, run in itertools.groupby(text, _is_word)]
    last = len(runs) - 1
    return [run for n, run in enumerate(runs) if run != " " or n in (0, last)]


def join(tokens: Sequence[str]) -> str:
    """Puts tokens together again, with a space between two words."""
    parts: list[str] = []
    for n, token in enumerate(tokens):
        if n and token and tokens[n - 1] and _is_word(token[0]) and _is_word(tokens[n - 1][0]):
            parts.append(" ")
        parts.append(token)
    return "".join(parts)


@functools.cache
def _is_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN"


def escape(token: str, alphabet: frozenset[str]) -> str:
    """Writes a token with characters of the alphabet alone, and "_" at its end."""
    token = token.replace("\\", "\\\\").replace("_", "\\u")
    return "".join(c if c in alphabet and c != "\n" else f"\\{ord(c)};" for c in token) + "_"


def unescape(token: str) -> str:
    """Undoes `escape`, of a token without its last "_"."""

    def character(match: re.Match[str]) -> str:
        if match[1] is None:
            return "_" if match[0] == "\\u" else "\\"
        try:
            return chr(int(match[1]))
        except (ValueError, OverflowError):
            return _UNDEFINED

    return _ESCAPED.sub(character, token)


def _alphabet(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(itertools.chain(_ESCAPES, *texts, *RESERVED))


def _cut(token: str, known: Mapping[str, int], longest: int) -> list[str]:
    """Cuts an escaped token into the longest known subwords, from the left."""
    parts, start = [], 0
    while start < len(token):
        stop = min(len(token), start + longest)
        while token[start:stop] not in known:
            stop -= 1
            if stop == start:
                raise ValueError(f"no subword begins {token[start:]!r}")
        parts.append(token[start:stop])
        start = stop
    return parts


def learn(texts: Iterable[str], size: int) -> Subwords:
    """Learns a vocabulary of at most `size` subwords, and near it, from texts.

    A subword is kept if it occurs at least so often where no longer kept one begins at the same place; that
    number is searched by bisection. Four rounds cut the tokens with the subwords so far and count what may
    follow from each cut.

    Raises:
        ValueError: the characters of the texts alone are more.
    """
    counts = collections.Counter(itertools.chain.from_iterable(map(split, texts)))
    alphabet = _alphabet(counts)
    if len(alphabet) + len(RESERVED) > size:
        raise ValueError(
            f"the texts have {len(alphabet)} characters, which a vocabulary of {size} cannot hold"
        )
    tokens = {escape(token, alphabet): count for token, count in counts.items()}
    first = _counted(tokens, sorted(alphabet))
    best, low, high = sorted(alphabet), 2, 1000
    while low <= high:
        middle = (low + high) // 2
        found = _candidates(tokens, first, alphabet, middle)
        if len(found) + len(RESERVED) <= size:
            best, high = found, middle - 1
        else:
            low = middle + 1
    return Subwords([*RESERVED, *best])


def _candidates(
    tokens: Mapping[str, int], first: Mapping[str, int], alphabet: frozenset[str], least: int
) -> list[str]:
    """Subwords that occur at least `least` times, the most frequent first, and the alphabet."""
    subwords = _kept(first, alphabet, least)
    for _ in range(_ROUNDS - 1):
        subwords = _kept(_counted(tokens, subwords), alphabet, least)
    return subwords


def _counted(tokens: Mapping[str, int], subwords: Sequence[str]) -> collections.Counter[str]:
    """How often each substring of the tokens occurs that begins where a subword begins."""
    known = {subword: n for n, subword in enumerate(subwords)}
    longest = max(map(len, subwords))
    counts: collections.Counter[str] = collections.Counter()
    for token, count in tokens.items():
        start = 0
        for part in _cut(token, known, longest):
            for stop in range(start + 1, len(token) + 1):
                counts[token[start:stop]] += count
            start += len(part)
    return counts


def _kept(all_counts: Mapping[str, int], alphabet: frozenset[str], least: int) -> list[str]:
    """The substrings that are frequent enough, and the alphabet, by falling count."""
    counts = {
        subword: count for subword, count in all_counts.items() if count >= least or subword in alphabet
    }
    kept = []
    # Longer ones first: what begins a kept subword counts only where it occurs without it.
    for subword in sorted(counts, key=lambda s: (-len(s), s)):
        count = counts[subword]
        if count < least:
            continue
        if subword not in alphabet:
            kept.append((count, subword))
        for stop in range(1, len(subword)):
            counts[subword[:stop]] -= count  # there, as it occurs at least as often
    kept += [(counts.get(character, 0), character) for character in alphabet]
    return [subword for _, subword in sorted(kept, key=lambda entry: (-entry[0], entry[1]))]
