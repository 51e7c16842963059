"""What translating nothing is worth: BLEU of the source itself, on the evaluation pairs of a prepared set.

python -m benchmarks.copied_source libreoffice_help
"""

from __future__ import annotations

import sys

import numpy as np

import input_pipelines
from input_pipelines.text.parallel_text import TranslationDataset
from mlperf_jax.metrics.bleu import bleu

_SIDES = ("source", "target")


def copied(name: str) -> float:
    """BLEU between 0 and 1 of the sources as translations."""
    dataset = input_pipelines.open_dataset(name, input_pipelines.default_data_dir(), {})
    if not isinstance(dataset, TranslationDataset) or not dataset.vocabulary:
        sys.exit(f"{name} has no sentences.")
    decode, pairs = dataset.vocabulary.decode, dataset.read_eval(np.arange(dataset.num_eval), _SIDES)
    sources, targets = ([decode(row.tolist()) for row in pairs[side]] for side in _SIDES)
    return bleu(sources, targets)


if __name__ == "__main__":
    print(f"copying the source: BLEU {copied(sys.argv[1]):.4f}")
