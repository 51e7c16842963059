"""How well gradient boosting does on DLRM mini's flights: what the minis' target is held against.

    python benchmarks/nycflights_boosting.py    writes benchmarks/nycflights_boosting.json

scikit-learn's HistGradientBoostingClassifier on the same split and the same allowed columns as DLRM: month,
day, scheduled times, distance, hour, carrier, origin, destination and tail number, the last four as numbers
by their order in the alphabet. Once with its own defaults but for 200 trees, and once far larger. It stops
earlier where a tenth of the train split, held out, no longer improves.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1]))

import input_pipelines
from input_pipelines import nycflights

MODELS = {
    "defaults": {"max_iter": 200},
    "large": {"max_iter": 1000, "max_leaf_nodes": 255, "n_iter_no_change": 30},
}


def columns(data: nycflights.Flights) -> np.ndarray:
    """The allowed columns, [N, 10] float64."""
    texts = [np.unique(values, return_inverse=True)[1] for values in data.texts.values()]
    return np.stack([*data.numbers.values(), *texts], axis=1).astype(np.float64)


def fitted(name: str, table: np.ndarray, data: nycflights.Flights) -> dict[str, Any]:
    """One model's figures."""
    model = HistGradientBoostingClassifier(random_state=0, **MODELS[name])
    began = time.perf_counter()
    model.fit(table[data.train], data.label[data.train])
    seconds = round(time.perf_counter() - began, 1)
    score = model.predict_proba(table[data.evaluation])[:, 1]
    area = float(roc_auc_score(data.label[data.evaluation], score))
    print(f"{name}: AUC {area:.5f} after {model.n_iter_} trees, {seconds} s", flush=True)
    return {"settings": MODELS[name], "auc": round(area, 5), "trees": model.n_iter_, "seconds": seconds}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data = nycflights.fetch_flights(input_pipelines.default_data_dir(), Path(scratch))
    table = columns(data)
    record = {
        "schema_version": 1,
        "command": "python benchmarks/nycflights_boosting.py",
        "split": {"train": len(data.train), "eval": len(data.evaluation)},
        "models": {name: fitted(name, table, data) for name in MODELS},
        "auc_of_one_constant_score": 0.5,
        "share_late": round(float(data.label[data.evaluation].mean()), 4),
        "versions": {"scikit-learn": sklearn.__version__, "python": platform.python_version()},
    }
    path = Path(__file__).with_suffix(".json")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
