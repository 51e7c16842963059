"""The documentation of Linux 6.1, as its authors wrote it: 2,840 files of reStructuredText, 21 million characters; GPL-2.0.

Translations are left out, and of files with the same text all but one. Files are held out whole, chosen by the hash of their path.
Tokens are 4,096 byte-pair subwords, learned from the files to train on. Debian updates the package every few weeks and keeps
the newest only: the manifest says which one it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import fetch, prepared, progress
from input_pipelines.text import byte_pairs, token_rows
from mlperf_jax.errors import UserError

VOCAB_SIZE = 4096

_PACKAGE = "linux-doc-6.1"
_INSIDE = f"usr/share/doc/{_PACKAGE}/html/_sources"
_TREE = fetch.MovingTree(("*.rst.txt",), 3000)
_TRANSLATIONS = "translations/"
_HELD_OUT = 40  # one file in so many
_UINT16 = np.dtype(np.uint16)
_TOKENIZER = "tokenizer.json"


def split(files: Mapping[str, bytes]) -> tuple[list[str], list[str]]:
    """The texts to train on and to evaluate, each once, in the order of their paths."""
    train: list[str] = []
    evaluation: list[str] = []
    seen: set[bytes] = set()
    for path, content in sorted(files.items()):
        if path.startswith(_TRANSLATIONS) or content in seen:
            continue
        seen.add(content)
        held_out = int(hashlib.sha256(path.encode()).hexdigest(), 16) % _HELD_OUT == 0
        (evaluation if held_out else train).append(content.decode("utf-8", "ignore"))
    return train, evaluation


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/linux_doc unless it is there, and says what it is.

    Raises:
        UserError: the files could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError(
            "Linux's documentation is small and real, so there is no --fake set of it; leave --fake out."
        )

    def build(folder: Path) -> dict[str, Any]:
        manual = data_dir / "manual" / "linux-doc"
        with prepared.scratch_folder(folder) as scratch:
            files = fetch.fetch_tree(
                "Linux's documentation",
                _TREE,
                fetch.installable_tree(_PACKAGE, _INSIDE, manual),
                scratch,
                by_hand=f"the *.rst.txt of {_INSIDE} of Debian's {_PACKAGE} into {manual}",
            )
        digest = hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in files.values()))
        return write(folder, *split(files)) | {"sha256_of_files": digest.hexdigest()}

    folder = data_dir / "linux_doc"
    prepared.prepare_folder(folder, build, verify=verify)
    return f"{open_dataset(data_dir, {'length': 128}).description}, in {folder}"


def write(folder: Path, train: list[str], evaluation: list[str]) -> dict[str, Any]:
    """Learns the subwords, writes both streams, and returns the facts for their manifest."""
    with progress.step(f"learning {VOCAB_SIZE:,} subwords"):
        tokenizer = byte_pairs.learn(train, VOCAB_SIZE)
    tokenizer.save(str(folder / _TOKENIZER))
    facts: dict[str, Any] = {"name": "linux_doc", "fake": False, "vocabulary": tokenizer.get_vocab_size()}
    for name, texts in (("train", train), ("eval", evaluation)):
        with progress.step(f"cutting {len(texts):,} texts"):
            ids = [found.ids for found in tokenizer.encode_batch_fast(texts)]
        tokens = np.concatenate([np.array(text, _UINT16) for text in ids])
        prepared.save_arrays(folder, name, {"tokens": tokens})
        facts |= {f"{name}_tokens": len(tokens), f"{name}_texts": len(texts)}
        facts[f"{name}_bytes"] = sum(len(text.encode()) for text in texts)
    return facts


def tokenizer_path(data_dir: Path) -> Path:
    """Where the prepared set has its subwords; see `byte_pairs.read`."""
    return data_dir / "linux_doc" / _TOKENIZER


def open_synthetic(options: Mapping[str, Any]) -> token_rows.TokenRows:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    return token_rows.open_synthetic(
        "linux_doc", options, vocabulary_size=VOCAB_SIZE, num_train=50_000, num_eval=1_200
    )


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> token_rows.TokenRows:
    """Opens the prepared set.

    Args:
        data_dir: holds the prepared sets.
        options: `length` (int), tokens to be told in a row.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    folder, length = data_dir / "linux_doc", options["length"]
    facts = prepared.read_manifest(folder)
    streams = [
        prepared.open_array(folder / f"{split}_tokens.npy", (facts[f"{split}_tokens"],), _UINT16)
        for split in ("train", "eval")
    ]
    if max(int(stream.max(initial=0)) for stream in streams) >= facts["vocabulary"]:
        raise UserError(f"{folder} is damaged (a token is not in its vocabulary); {prepared.AGAIN}")
    train, evaluation = (token_rows.Rows([stream], length) for stream in streams)
    if not len(train) or not len(evaluation):
        raise UserError(f"{folder} has no row of {length} tokens; use a smaller --config.data.length.")
    return token_rows.TokenRows(
        train,
        evaluation,
        vocabulary_size=facts["vocabulary"],
        bytes_per_token=facts["eval_bytes"] / facts["eval_tokens"],
        tokenizer_file=folder / _TOKENIZER,
        fake=False,
        description=f"Linux 6.1's documentation, {facts['train_texts']:,} and {facts['eval_texts']:,} texts",
    )
