"""Gradient boosting on nycflights13: the AUC that the mini presets of DLRM are held against.

    python -m benchmarks.flights_boosting --out=benchmarks/flights_boosting.json

scikit-learn's HistGradientBoostingClassifier on the split of `input_pipelines.clicks.nycflights`, over the same
columns: month, day, scheduled times, distance, hour, carrier, origin, destination and tail number, as
they are ("columns") and with the same functions of them that DLRM's numbers are made of, and the date and the
weekday ("columns and date"). Carrier, origin and destination are categories to it; tail numbers, of
which there are more than its 255, are numbers in alphabetical order. Rounds end when a tenth of the train
split no longer gets better; the loss on that tenth also decides which of the candidates is the bar.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

import input_pipelines
from benchmarks import records
from input_pipelines.clicks import nycflights

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Holds all data sets; default as everywhere.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

_CANDIDATES = [
    {"inputs": "columns and date", "max_leaf_nodes": 63},
    {"inputs": "columns", "max_leaf_nodes": 63},
    {"inputs": "columns and date", "max_leaf_nodes": 255},
]
_COMMON = {
    "learning_rate": 0.1,
    "max_iter": 1000,
    "early_stopping": True,
    "n_iter_no_change": 20,
    "random_state": 0,
}


def inputs(data: nycflights.Flights) -> dict[str, tuple[np.ndarray, list[int]]]:
    """By the name of a candidate's inputs: [N, columns] float64 and which of these are categories."""
    codes = [np.unique(values, return_inverse=True)[1] for values in data.texts.values()]
    columns = np.stack([*data.numbers.values(), *codes], axis=1).astype(np.float64)
    first = len(data.numbers)
    categories = [first, first + 1, first + 2]
    named = nycflights.categories(data)
    dates = np.stack([named["date"], named["weekday"]], axis=1)
    more = np.concatenate([columns, dates, nycflights.dense_features(data)], axis=1)
    return {"columns": (columns, categories), "columns and date": (more, categories)}


def measure(data: nycflights.Flights, candidate: dict[str, Any]) -> dict[str, Any]:
    values, categories = inputs(data)[candidate["inputs"]]
    started = time.monotonic()
    model = HistGradientBoostingClassifier(
        categorical_features=categories, max_leaf_nodes=candidate["max_leaf_nodes"], **_COMMON
    )
    model.fit(values[data.train], data.label[data.train])
    chances = model.predict_proba(values[data.evaluation])[:, 1]
    return candidate | {
        "rounds": model.n_iter_,
        "held_out_loss": -float(model.validation_score_[-1]),
        "eval_auc": float(roc_auc_score(data.label[data.evaluation], chances)),
        "seconds": time.monotonic() - started,
    }


def main(_: list[str]) -> None:
    data_dir = Path(_DATA_DIR.value) if _DATA_DIR.value else input_pipelines.default_data_dir()
    with tempfile.TemporaryDirectory() as scratch:
        data = nycflights.fetch_flights(data_dir, Path(scratch))
    results = []
    for candidate in _CANDIDATES:
        results.append(measure(data, candidate))
        records.show(results[-1])
        if _OUT.value:  # After each, as some take long.
            partial = Path(f"{_OUT.value}.partial")
            records.write(partial, report(data, results))
            partial.replace(_OUT.value)


def report(data: nycflights.Flights, results: list[dict[str, Any]]) -> dict[str, Any]:
    best = min(results, key=lambda result: result["held_out_loss"])
    return {
        "schema_version": 1,
        "command": "python -m benchmarks.flights_boosting --out=benchmarks/flights_boosting.json",
        "num_train": len(data.train),
        "num_eval": len(data.evaluation),
        "late_share_of_eval": float(data.label[data.evaluation].mean()),
        "auc_of_any_constant": 0.5,
        "common": _COMMON,
        "candidates": results,
        "eval_auc": best["eval_auc"],
        "versions": {"python": platform.python_version(), **records.versions("scikit-learn", "numpy")},
        "machine": {"cores": os.cpu_count(), "load_average_at_end": os.getloadavg()},
    }


if __name__ == "__main__":
    sys.exit(app.run(main))
