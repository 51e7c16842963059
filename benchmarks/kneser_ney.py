"""What counting alone makes of the mini text of language models: Kneser-Ney models of pairs, triples and longer runs of subwords.

    python -m benchmarks.kneser_ney

Interpolated, with one discount an order, n1 / (n1 + 2 n2) of the runs that occur once and twice (Kneser and Ney, 1995; Chen and
Goodman, 1999). Counted on the whole training text, of which a mini that trains for minutes sees a part.
"""

from __future__ import annotations

import math
import sys

import numpy as np

import input_pipelines
from input_pipelines import prepared

ORDERS = (2, 3, 5)


def losses(train: np.ndarray, evaluation: np.ndarray, vocabulary: int, order: int) -> np.ndarray:
    """The loss in nats of each token of a text but the first `order` - 1, [E - order + 1] float64.

    Args:
        train, evaluation: tokens [T] and [E] below `vocabulary`.
        vocabulary: V; V to the power of `order` + 1 fits 64 bits, or `order` is the highest that is asked for.
        order: tokens of the longest runs.
    """
    first = order - 1
    probability = np.full(len(evaluation) - first, 1 / vocabulary)
    for size in range(1, order + 1):
        runs, counts = _counted(train, vocabulary, size, whole=size == order)
        contexts, start = np.unique(runs // vocabulary, return_index=True)
        totals, kinds = np.add.reduceat(counts, start), np.diff(np.append(start, len(runs)))
        once, twice = (int((counts == n).sum()) for n in (1, 2))
        discount = once / max(once + 2 * twice, 1)
        asked = _codes(evaluation, vocabulary, size)[first - size + 1 :]
        of_context = _looked_up(contexts, totals, asked // vocabulary)
        counted = np.maximum(_looked_up(runs, counts, asked) - discount, 0)
        left = discount * _looked_up(contexts, kinds, asked // vocabulary)
        seen = of_context > 0
        probability[seen] = (counted[seen] + left[seen] * probability[seen]) / of_context[seen]
    return -np.log(probability)


def _codes(tokens: np.ndarray, vocabulary: int, size: int) -> np.ndarray:
    """A number of each run of `size` tokens, [T - size + 1] int64."""
    count = len(tokens) - size + 1
    found = np.zeros(count, np.int64)
    for n in range(size):
        found = found * vocabulary + tokens[n : n + count]
    return found


def _counted(tokens: np.ndarray, vocabulary: int, size: int, *, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """The runs of so many tokens in order, and how often each occurs; else after how many different tokens."""
    if whole:
        return np.unique(_codes(tokens, vocabulary, size), return_counts=True)
    longer = np.unique(_codes(tokens, vocabulary, size + 1))
    return np.unique(longer % vocabulary**size, return_counts=True)


def _looked_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Values by sorted keys; 0 where there is none."""
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)


def main() -> int:
    data_dir = input_pipelines.default_data_dir()
    print(f"Ready: {input_pipelines.prepare('linux_doc', data_dir)}")
    folder = data_dir / "linux_doc"
    facts = prepared.read_manifest(folder)
    train, evaluation = (
        prepared.open_array(folder / f"{split}_tokens.npy", (facts[f"{split}_tokens"],), np.dtype(np.uint16))
        for split in ("train", "eval")
    )
    bytes_per_token = facts["eval_bytes"] / facts["eval_tokens"]
    print(f"{len(train):,} tokens counted, {len(evaluation):,} told, {bytes_per_token:.3f} bytes each")
    for order in ORDERS:
        loss = losses(np.asarray(train), np.asarray(evaluation), facts["vocabulary"], order).mean()
        print(
            f"runs of {order}: {loss:.4f} nats a token, {loss / math.log(2) / bytes_per_token:.4f} bits a byte"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
