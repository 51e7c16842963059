"""Tokens to text as they come: no half character, nothing of a stop string, and in the end what decoding all at once gives."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from input_pipelines.text import byte_pairs
from mlperf_jax.errors import UserError
from mlperf_jax.tokens.openai.refusals import Refusal


class Vocabulary(Protocol):
    """Tokens and what they are in text."""

    most_bytes: int
    """Of a token."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """The tokens of a text, `special` with those that the tokenizer puts around every text; raises `Refusal`."""

    def spelled(self, token: int) -> bytes:
        """A token's part of a text in UTF-8: maybe half a character, and nothing of tokens that stand for no text."""


class Subwords:
    """Of a tokenizer over bytes (see `byte_pairs`).

    Args:
        path: its file.
        vocabulary: tokens that the model knows.

    Raises:
        UserError: it cannot be read, is of another kind, or has more tokens than the model knows.
    """

    def __init__(self, path: Path, vocabulary: int) -> None:
        from tokenizers import decoders

        self._tokenizer = byte_pairs.read(path)
        if not isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            raise UserError(f"{path} has no byte-level decoder; give a tokenizer of byte pairs over bytes.")
        size = self._tokenizer.get_vocab_size()
        if size > vocabulary:
            raise UserError(
                f"{path} has {size:,} tokens, and the model {vocabulary:,}; give the model's own tokenizer."
            )
        self._bytes = _spelled(self._tokenizer, vocabulary)
        self.most_bytes = max(map(len, self._bytes))

    def encode(self, text: str, *, special: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=special).ids

    def spelled(self, token: int) -> bytes:
        return self._bytes[token]


def _spelled(tokenizer: Any, vocabulary: int) -> list[bytes]:
    """Of each number of a token, b"" where it stands for no text or for nothing."""
    added = tokenizer.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special}
    letters = _letters()
    found = []
    for number in range(vocabulary):
        written = tokenizer.id_to_token(number)
        if written is None or number in special:
            found.append(b"")
        elif all(letter in letters for letter in written):
            found.append(bytes(letters[letter] for letter in written))
        else:  # it was added as a text
            found.append(written.encode())
    return found


def _letters() -> dict[str, int]:
    """The letters in which byte pairs are written -> the bytes: printing ones as they are, others from 256 on (GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


class Numbers:
    """Where no tokenizer is known: a token is written as a space and its number."""

    most_bytes = 11

    def encode(self, text: str, *, special: bool) -> list[int]:
        raise Refusal(
            400,
            "This model's tokenizer is not known here, so it takes no texts; give /v1/completions a prompt of tokens, or "
            "start the server with --tokenizer=FILE.",
            param="prompt",
        )

    def spelled(self, token: int) -> bytes:
        return b" %d" % token


class Detokenizer:
    """One text.

    It ends before the stop string that is the first to be complete, and of several that are so at once before the longest,
    wherever tokens begin and end. What may be the beginning of one is held back. Bytes that are no UTF-8 become U+FFFD.

    Args:
        spelled: see `Vocabulary`.
        stops: none empty.

    Attributes:
        stopped: whether one was found; then nothing more is to be added.
    """

    def __init__(self, spelled: Callable[[int], bytes], stops: Sequence[str]) -> None:
        self._spelled, self._stops = spelled, stops
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What of the text is certain now, and was not before."""
        return self._certain(self._decode(self._spelled(token)), last=False)

    def end(self) -> str:
        """The rest of it."""
        return "" if self.stopped else self._certain(self._decode(b"", True), last=True)

    def _certain(self, new: str, *, last: bool) -> str:
        if not self._stops:
            return new
        text = self._held + new
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        kept = 0 if last else max(_begun(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _begun(text: str, stop: str) -> int:
    """How many characters at a text's end are a stop string's first ones, at most."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
