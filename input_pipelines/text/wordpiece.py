"""WordPiece subwords as BERT cuts them (Devlin et al., arXiv:1810.04805), by the package `tokenizers`.

Text is lower-cased, accents are dropped, words are parted at white space and around punctuation; of a word the longest
known beginning is taken, and of the rest, marked by "##", again. A vocabulary file holds a subword a line, whose id is
its line's number from 0. Source: google-research/bert, tokenization.py.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError

PADDING, UNKNOWN, CLASS, SEPARATOR, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PADDING, UNKNOWN, CLASS, SEPARATOR, MASK)

_LONGEST_WORD = 200  # characters; of longer ones nothing is known
_ASCII = string.ascii_lowercase + string.digits


def tokenizer(vocabulary: Sequence[str]) -> Any:
    """A `tokenizers.Tokenizer` of a vocabulary: `encode_batch(texts)` gives `ids` and `offsets` in each text."""
    import tokenizers
    from tokenizers import models

    ids = {subword: number for number, subword in enumerate(vocabulary)}
    cut = models.WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=_LONGEST_WORD)
    return _as_bert(tokenizers.Tokenizer(cut))


def learn(texts: Iterable[str], size: int) -> tuple[str, ...]:
    """A vocabulary of `size` subwords, `SPECIAL` first; of ASCII, the same for the same texts."""
    import tokenizers
    from tokenizers import models, trainers

    found = _as_bert(tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN)))
    # Characters inside of words are numbered as they are met, which is in no fixed order: so they are named before.
    named = [*SPECIAL, *_ASCII, *(f"##{character}" for character in _ASCII)]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=named, show_progress=False)
    found.train_from_iterator((text.encode("ascii", "ignore").decode() for text in texts), trainer)
    ids = found.get_vocab()
    return tuple(sorted(ids, key=ids.__getitem__))


def _as_bert(made: Any) -> Any:
    from tokenizers import normalizers, pre_tokenizers

    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def read(path: Path) -> tuple[str, ...]:
    """Reads a vocabulary file.

    Raises:
        UserError: it cannot be read, names a subword twice, or lacks one that BERT needs.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The vocabulary {path} cannot be read ({error}); put a sound copy there.") from None
    subwords = tuple(line.strip() for line in lines if line.strip())
    missing = set(SPECIAL) - set(subwords)
    if missing or len(set(subwords)) < len(subwords):
        why = f"lacks {min(missing)}" if missing else "names a subword twice"
        raise UserError(f"The vocabulary {path} {why}, so it is damaged; put a sound copy there.")
    return subwords


def write(path: Path, vocabulary: Sequence[str]) -> None:
    """Writes a vocabulary file."""
    path.write_text("".join(f"{subword}\n" for subword in vocabulary), "utf-8", newline="\n")
