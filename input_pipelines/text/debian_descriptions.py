"""Debian's packages: their descriptions, and the line that their maintainers sum each up in.

Of every description of 25 words or more, each once, a prompt as the rules have it for reports, and the line behind it. Source
packages are held out whole, chosen by the hash of their name, and 64 of them are evaluated, one package of each. Tokens are SmolLM2's, whose
weights come with them. Debian's lists change a little with the months; they are those of the release that this machine has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipelines import fetch, prepared, progress
from input_pipelines.text import byte_pairs, smollm2, told_rows
from input_pipelines.text.token_rows import TokenRows
from mlperf_jax.errors import UserError

VOCAB_SIZE = 49_152
LENGTH, NUM_EVAL = 128, 64

_LISTS = fetch.MovingTree(("*_Packages", "*_Translation-en"), 2)
_LEAST_WORDS = 25
_HELD_OUT = 40  # one source package in so many


class Package(NamedTuple):
    """A package, by its name and its source's, with what is said of it."""

    source: str
    name: str
    description: str
    summary: str


def prompt(description: str) -> str:
    """As mlcommons/training, llama2_70b_lora/scripts/utils.py, asks for a report's summary."""
    return f"### Summarize the following text:\n {description}\n ### Summary:\n"


def packages(lists: Mapping[str, bytes]) -> list[Package]:
    """What Debian's lists say, by source and name; of those with the same description the first."""
    texts = {name: content.decode("utf-8", "replace") for name, content in lists.items()}
    sources, said = {}, {}
    for name, text in sorted(texts.items()):
        for fields in _stanzas(text):
            package = fields.get("Package", "")
            if name.endswith("_Packages"):
                sources[package] = fields.get("Source", package).split(" ")[0]
            elif "Description-en" in fields:
                said[package] = fields["Description-en"]
    found, seen = [], set()
    for name, source in sorted(sources.items(), key=lambda item: (item[1], item[0])):
        summary, _, description = said.get(name, "").partition("\n")
        description = _flowing(description)
        if len(description.split()) >= _LEAST_WORDS and summary.strip() and description not in seen:
            seen.add(description)
            found.append(Package(source, name, description, summary.strip()))
    return found


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Fields of each stanza of a control file; lines that go on begin with a space."""
    for stanza in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.split("\n"):
            if line[:1] in (" ", "\t"):
                fields[name] = f"{fields.get(name, '')}\n{line}"
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        yield fields


def _flowing(description: str) -> str:
    """Paragraphs, which a single point parts, each in a line."""
    paragraphs = [[]]  # type: list[list[str]]
    for line in description.split("\n"):
        if line.strip() == ".":
            paragraphs.append([])
        else:
            paragraphs[-1] += line.split()
    return "\n".join(" ".join(words) for words in paragraphs if words)


def split(found: Iterable[Package]) -> tuple[list[Package], list[Package]]:
    """To train on, and to evaluate: of source packages that are held out those with the least hashes, a package of each."""

    def digest(package: Package) -> int:
        return int(hashlib.sha256(package.source.encode()).hexdigest(), 16)

    train: list[Package] = []
    held_out: dict[int, Package] = {}
    for package in found:
        if digest(package) % _HELD_OUT:
            train.append(package)
        else:
            held_out.setdefault(digest(package), package)
    return train, [held_out[number] for number in sorted(held_out)[:NUM_EVAL]]


def row(tokenizer: Any, package: Package, *, evaluated: bool) -> told_rows.Row | None:
    """Prompt, summary and end in LENGTH tokens, ends behind them; None where they do not fit.

    Asked for is the summary, in training its end too, as in the rules.
    """
    before, after = (
        tokenizer.encode(text).ids for text in (prompt(package.description), f" {package.summary}")
    )
    end = tokenizer.token_to_id(smollm2.END)
    used = len(before) + len(after)
    if used >= LENGTH:
        return None
    tokens, told = np.full(LENGTH, end), np.zeros(LENGTH, bool)
    tokens[:used] = before + after
    told[len(before) : used if evaluated else used + 1] = True
    return tokens, told


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/debian_descriptions and DATA_DIR/weights/smollm2 unless they are there, and says what they are.

    Raises:
        UserError: the files could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError(
            "Debian's descriptions are small and real, so there is no --fake set of them; leave --fake out."
        )
    smollm2.prepare(data_dir, verify=verify)
    manual = data_dir / "manual" / "debian-lists"

    def build(folder: Path) -> dict[str, Any]:
        with prepared.scratch_folder(folder) as scratch:
            lists = fetch.fetch_tree(
                "Debian's descriptions",
                _LISTS,
                [fetch.folder_tree(manual), fetch.debian_lists()],
                scratch,
                by_hand=f"*_Packages and *_Translation-en of a Debian release, unpacked, into {manual}",
            )
        return write(folder, packages(lists), byte_pairs.read(smollm2.tokenizer_path(data_dir)))

    folder = data_dir / "debian_descriptions"
    prepared.prepare_folder(folder, build, verify=verify)
    return f"{open_dataset(data_dir, {'length': LENGTH}).description}, in {folder}"


def write(folder: Path, found: list[Package], tokenizer: Any) -> dict[str, Any]:
    """Writes the rows of packages whose texts fit, and gives the facts for their manifest."""
    facts: dict[str, Any] = {"name": "debian_descriptions", "fake": False, "length": LENGTH}
    with progress.step(f"cutting {len(found):,} descriptions"):
        rows = {package: row(tokenizer, package, evaluated=False) for package in found}
        parts = split(package for package in found if rows[package])
    for name, part in zip(("train", "eval"), parts, strict=True):
        if not part:
            raise UserError(f"Debian's lists have no descriptions to {name} on; get them again.")
        found_rows = (
            rows[package] if name == "train" else row(tokenizer, package, evaluated=True) for package in part
        )
        told_rows.save(folder, name, [one for one in found_rows if one])
        facts[f"num_{name}"] = len(part)
    return facts


def open_synthetic(options: Mapping[str, Any]) -> TokenRows:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    return told_rows.open_synthetic(
        "debian_descriptions", options, vocabulary_size=VOCAB_SIZE, num_train=25_000, num_eval=NUM_EVAL
    )


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> TokenRows:
    """Opens the prepared set.

    Args:
        data_dir: holds the prepared sets.
        options: `length` (int), tokens of a row that are read.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    folder = data_dir / "debian_descriptions"
    facts = prepared.read_manifest(folder)
    words = f"Debian's descriptions, {facts['num_train']:,} to train on and {facts['num_eval']} to evaluate"
    return told_rows.load(
        folder,
        options["length"],
        vocabulary_size=VOCAB_SIZE,
        tokenizer_file=smollm2.tokenizer_path(data_dir),
        description=words,
        facts=facts,
    )
