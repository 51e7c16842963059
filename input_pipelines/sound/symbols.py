"""What transcripts are written in: characters, or pieces of words.

A blank, which speech recognisers put between symbols, is none of them; by MLPerf's convention it is the number after
the last one.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from mlperf_jax.errors import UserError

SAMPLE_RATE = 16_000
"""Samples per second of all sound here."""


class Symbols(Protocol):
    """The symbols of transcripts, numbered from 0."""

    def __len__(self) -> int:
        """How many there are, without a blank."""

    def encode(self, text: str) -> list[int]:
        """The symbols of a text."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of symbols."""


class Characters:
    """Space, a to z and the apostrophe, 28 in all; what else is in a text is left out.

    Source: mlcommons/training, rnn_speech_recognition/pytorch/configs/baseline_v3-1023sp.yaml, labels.

    >>> Characters().decode(Characters().encode("it's"))
    "it's"
    """

    ALL = f" {string.ascii_lowercase}'"
    _NUMBERS = bytes.maketrans(ALL.encode(), bytes(range(len(ALL))))
    _OTHERS = bytes(set(range(256)).difference(ALL.encode()))

    def __len__(self) -> int:
        return len(self.ALL)

    def encode(self, text: str) -> list[int]:
        return list(text.encode().translate(self._NUMBERS, self._OTHERS))

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.ALL[id] for id in ids)


class Pieces:
    """Pieces of words that SentencePiece learned (Kudo and Richardson, arXiv:1808.06226).

    Few texts give fewer than were asked for; numbers that are none of them say nothing.

    Args:
        path: of a model file, as `learn` writes it.

    Raises:
        UserError: it is not one.
    """

    def __init__(self, path: Path) -> None:
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path} is no model of SentencePiece ({error}); prepare it again.") from None

    def __len__(self) -> int:
        return len(self._model)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode([id for id in ids if id < len(self)])


def learn(texts: Sequence[str], count: int, path: Path) -> None:
    """Learns pieces as the reference does: unigrams over all characters, without marks of sentences.

    Source: mlcommons/training, rnn_speech_recognition/pytorch/scripts/create_sentencepieces.sh.

    Args:
        texts: to learn from.
        count: of pieces, the unknown one among them.
        path: of the model file to write.

    Raises:
        UserError: the texts are too few for so many pieces.
    """
    import sentencepiece

    try:
        with open(path, "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=file,
                vocab_size=count,
                model_type="unigram",
                character_coverage=1.0,
                bos_id=-1,
                eos_id=-1,
                # Texts of made-up words may have fewer.
                hard_vocab_limit=False,
                minloglevel=2,
            )
    except RuntimeError as error:
        raise UserError(
            f"{len(texts):,} texts are too few to learn {count:,} pieces from ({error})."
        ) from None
