"""Pairs of random sentences, apart and packed, and a count of a jaxpr's products: for tests of translators."""

import numpy as np

from input_pipelines.text import packing
from input_pipelines.text.packing import Ragged


def sentences(seed, count, longest, vocab_size):
    """Pairs of sentences of random lengths, each ended by 1."""
    random = np.random.default_rng(seed)
    return [
        [[*random.integers(2, vocab_size, random.integers(0, longest)).tolist(), 1] for _ in range(2)]
        for _ in range(count)
    ]


def padded(sequences, length):
    rows = np.zeros((len(sequences), length), np.int32)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows


def apart(pairs, length):
    """A row for each pair."""
    source, target = (padded([pair[side] for pair in pairs], length) for side in (0, 1))
    return dict(
        source=source, source_segment=(source > 0) * 1, target=target, target_segment=(target > 0) * 1
    )


def packed(pairs, length, num_rows):
    """As few rows as `packing` needs, and empty ones after them."""
    sides = [Ragged.of([pair[side] for pair in pairs], np.dtype(np.int32)) for side in (0, 1)]
    rows = packing.pack(sides[0].lengths, sides[1].lengths, length)
    batch = {}
    for name, sequences in zip(("source", "target"), sides, strict=True):
        batch[name], batch[f"{name}_segment"] = np.zeros((2, num_rows, length), np.int32)
        packing.fill(rows, sequences, batch[name], batch[f"{name}_segment"])
    return batch, rows


def products(jaxpr):
    """2 per multiply-add of every dot in a jaxpr; a loop's as often as it goes round."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            out = int(np.prod(equation.outvars[0].aval.shape))
            total += 2 * out * int(np.prod([shape[d] for d in contracted]))
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += products(inner) * equation.params.get("length", 1)
    return total
