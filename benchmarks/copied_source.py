"""What translating nothing is worth: BLEU of the source itself, on the evaluation pairs of a prepared set.

python -m benchmarks.copied_source libreoffice_help
"""

from __future__ import annotations

import sys

import numpy as np

import input_pipelines
from mlperf_jax.metrics.bleu import bleu


def copied(name: str) -> float:
    """BLEU between 0 and 1 of the sources as translations."""
    dataset = input_pipelines.open_dataset(name, input_pipelines.default_data_dir(), {})
    pairs = dataset.read_eval(np.arange(dataset.num_eval), ("source", "target"))
    sources, targets = (
        [dataset.vocabulary.decode(row.tolist()) for row in pairs[side]] for side in ("source", "target")
    )
    return bleu(sources, targets)


if __name__ == "__main__":
    print(f"copying the source: BLEU {copied(sys.argv[1]):.4f}")
