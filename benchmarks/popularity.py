"""Ranking by popularity on MovieLens-100K: the HR@10 and NDCG that NCF's mini is held against, needing no training.

    python -m benchmarks.popularity

Each user's last film is ranked among the same candidates by how many users chose each in training; at equal
counts it comes last, by the rules.
"""

from __future__ import annotations

import sys

import numpy as np

import input_pipelines
from input_pipelines.ratings import movielens_100k
from input_pipelines.ratings.interactions import Interactions


def figures(data: Interactions) -> tuple[float, float]:
    """HR@10 and NDCG."""
    count = np.bincount(data.item, minlength=data.num_items)
    ranks = []
    for positive, negatives in zip(data.positive, data.negatives, strict=True):
        others = np.setdiff1d(negatives, positive)
        ranks.append(np.sum(count[others] >= count[positive]))
    hit = np.array(ranks) < 10
    return float(hit.mean()), float((hit / np.log2(np.array(ranks) + 2)).mean())


def main() -> int:
    data_dir = input_pipelines.default_data_dir()
    movielens_100k.prepare(data_dir)
    hit_rate, gain = figures(movielens_100k.open_dataset(data_dir, {}).data)
    print(f"ranking by popularity on MovieLens-100K: HR@10 {hit_rate:.4f}, NDCG {gain:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
