"""Byte-pair subwords over bytes (Sennrich et al., arXiv:1508.07909; Radford et al., 2019), by the package `tokenizers`.

Every text has an encoding, as all bytes are subwords. A file of them is a `tokenizer.json`, which also holds Llama 3.1's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError


def learn(texts: Iterable[str], size: int) -> Any:
    """A `tokenizers.Tokenizer` of `size` subwords, the 256 bytes first; the same for the same texts."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    found.train_from_iterator(texts, trainer)
    return found


def of(tokens: Sequence[str], merges: Sequence[str], special: Sequence[str]) -> Any:
    """A `tokenizers.Tokenizer` of subwords that were learned elsewhere, for which digits stood alone.

    Args:
        tokens: by number; bytes as GPT-2 writes them.
        merges: "a b" for each pair that is put together, the first ones first.
        special: of the tokens those that are told apart before all else.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    numbers = {token: number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    found = tokenizers.Tokenizer(models.BPE(numbers, pairs))
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in special])
    return found


def read(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file.

    Raises:
        UserError: it cannot be read.
    """
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises no narrower one
        raise UserError(f"The tokenizer {path} cannot be read ({error}); put a sound copy there.") from None


def decoder(path: Path) -> Callable[[Sequence[int]], str]:
    """What gives the text of tokens, by the tokenizer of a file, which is read when the first is asked for."""
    tokenizer = functools.cache(lambda: read(path))
    return lambda tokens: tokenizer().decode(tokens)
