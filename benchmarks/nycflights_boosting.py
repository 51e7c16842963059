"""How well gradient boosting does on DLRM mini's flights: what the minis' target is held against.

    python benchmarks/nycflights_boosting.py    writes benchmarks/nycflights_boosting.json

scikit-learn's HistGradientBoostingClassifier with its own defaults but for the number of iterations,
which stops where a tenth of the train split, held out, no longer improves. It sees the same split and the
same allowed columns as DLRM: month, day, scheduled times, distance, hour, carrier, origin, destination
and tail number. Of tail numbers it takes the 254 most frequent (it has no more bins), and one for the rest.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sklearn
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1]))

import input_pipelines
from input_pipelines import nycflights

_MOST_CATEGORIES = 255


def columns(data: nycflights.Flights) -> tuple[np.ndarray, list[bool]]:
    """The allowed columns [N, 10], and which of them are categories."""
    texts = [_numbered(values, data.train) for values in data.texts.values()]
    table = np.stack([*data.numbers.values(), *texts], axis=1).astype(np.float64)
    return table, [False] * len(data.numbers) + [True] * len(texts)


def _numbered(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Categories by frequency in the train split, the rarest all one."""
    names, numbers = np.unique(values, return_inverse=True)
    counts = np.bincount(numbers[train], minlength=len(names))
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(names))
    return np.minimum(rank, _MOST_CATEGORIES - 1)[numbers]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data = nycflights.fetch_flights(input_pipelines.default_data_dir(), Path(scratch))
    table, categorical = columns(data)
    areas, seconds = [], []
    for seed in range(3):
        model = HistGradientBoostingClassifier(
            categorical_features=categorical,
            max_iter=2000,
            early_stopping=True,
            random_state=seed,
        )
        began = time.perf_counter()
        model.fit(table[data.train], data.label[data.train])
        seconds.append(round(time.perf_counter() - began, 1))
        score = model.predict_proba(table[data.evaluation])[:, 1]
        areas.append(round(float(roc_auc_score(data.label[data.evaluation], score)), 5))
        print(f"seed {seed}: AUC {areas[-1]} after {model.n_iter_} trees, {seconds[-1]} s", flush=True)
    record = {
        "schema_version": 1,
        "command": "python benchmarks/nycflights_boosting.py",
        "model": "sklearn.ensemble.HistGradientBoostingClassifier(max_iter=2000, early_stopping=True)",
        "split": {"train": len(data.train), "eval": len(data.evaluation)},
        "auc_by_seed": areas,
        "auc": float(np.mean(areas)),
        "auc_of_one_constant_score": 0.5,
        "share_late": float(data.label[data.evaluation].mean()),
        "seconds": seconds,
        "versions": {"scikit-learn": sklearn.__version__, "python": platform.python_version()},
    }
    path = Path(__file__).with_suffix(".json")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
    print(f"mean AUC {record['auc']:.5f}; written: {path}")


if __name__ == "__main__":
    main()
