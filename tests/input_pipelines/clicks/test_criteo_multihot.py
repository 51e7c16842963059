"""Criteo multi-hot: the reference's files mapped in place, its look-ups drawn again, order kept."""

import contextlib
import hashlib
import math
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import input_pipelines
from input_pipelines.clicks import click_logs, criteo_multihot
from mlperf_jax.errors import UserError

SMALL = click_logs.Columns(
    num_dense=13,
    table_sizes=(400, 39, 17, 3, 1, *range(5, 26)),
    multi_hot_sizes=criteo_multihot.COLUMNS.multi_hot_sizes,
)
COUNTS = (50, 31, 21)


def write_onehot(folder, counts=COUNTS, columns=SMALL):
    folder.mkdir()
    random = np.random.default_rng(0)
    for day, count in enumerate(counts):
        np.save(folder / f"day_{day}_dense.npy", random.normal(size=(count, 13)).astype(np.float32))
        np.save(folder / f"day_{day}_labels.npy", random.integers(2, size=(count, 1), dtype=np.int32))
        np.save(
            folder / f"day_{day}_sparse.npy", random.integers(2**31 - 1, size=(count, 26), dtype=np.int32)
        )


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(criteo_multihot, "COLUMNS", SMALL)
    monkeypatch.setattr(criteo_multihot, "NUM_DAYS", len(COUNTS))
    monkeypatch.setattr(criteo_multihot, "NUM_TRAIN", sum(COUNTS[:-1]))
    monkeypatch.setattr(criteo_multihot, "NUM_EVAL", 11)
    write_onehot(tmp_path / "criteo_onehot")
    return tmp_path


def reference_tables(columns):
    """multi_hot.py of the reference, with the generator that it uses."""
    np.random.seed(0)
    tables = []
    for size, width in zip(columns.table_sizes, columns.multi_hot_sizes, strict=True):
        ids = np.arange(size)[:, np.newaxis]
        tables.append(
            np.concatenate((ids, np.random.randint(0, size, size=(size, width - 1))), axis=-1).astype(
                np.int32
            )
        )
    return tables


def test_mlperf_numbers():
    columns = criteo_multihot.COLUMNS
    assert sum(columns.table_sizes) == 204_184_588 and sum(columns.multi_hot_sizes) == 214
    assert len(columns.table_sizes) == len(columns.multi_hot_sizes) == 26


@pytest.mark.parametrize("at_once", [2**18, 7])
def test_files_are_those_of_the_reference_byte_for_byte(small, monkeypatch, at_once):
    monkeypatch.setattr(criteo_multihot, "_ROWS_AT_ONCE", at_once)
    tables = reference_tables(SMALL)
    input_pipelines.prepare("criteo_multihot", small)
    for day in range(len(COUNTS)):
        sparse = np.load(small / "criteo_onehot" / f"day_{day}_sparse.npy")
        expected = {str(t): table[sparse[:, t] % len(table)] for t, table in enumerate(tables)}
        np.savez(small / "expected.npz", **expected)
        made = small / "criteo_multihot" / f"day_{day}_sparse_multi_hot.npz"
        assert digest(made) == digest(small / "expected.npz")
        for part in ("dense", "labels"):
            name = f"day_{day}_{part}.npy"
            assert digest(small / "criteo_onehot" / name) == digest(small / "criteo_multihot" / name)
    assert not list((small / "criteo_multihot").glob(".*"))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_ended_preparation_goes_on(small, monkeypatch):
    real, calls = criteo_multihot._write_day, []

    def killed(path, *arguments):
        calls.append(path.name)
        if len(calls) == 2:
            path.with_name(f".{path.name}.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        real(path, *arguments)

    monkeypatch.setattr(criteo_multihot, "_write_day", killed)
    with pytest.raises(KeyboardInterrupt):
        input_pipelines.prepare("criteo_multihot", small)
    input_pipelines.prepare("criteo_multihot", small, verify=True)
    days = [f"day_{day}_sparse_multi_hot.npz" for day in (0, 1, 1, 2)]
    assert calls == days
    assert not list((small / "criteo_multihot").glob(".*"))


@pytest.mark.parametrize("fraction", [1.0, 0.1])
def test_training_keeps_the_order_and_evaluation_takes_the_first_half_of_the_last_day(small, fraction):
    input_pipelines.prepare("criteo_multihot", small)
    data = input_pipelines.open_dataset(
        "criteo_multihot", small, {"table_fraction": fraction, "num_threads": 1}
    )
    assert data.description == "Criteo 1TB multi-hot, 81 train and 11 eval examples"
    sizes = [math.ceil(n * fraction) for n in SMALL.table_sizes]
    tables = reference_tables(SMALL)

    def day(number):
        folder = small / "criteo_onehot"
        sparse = np.load(folder / f"day_{number}_sparse.npy")
        looked_up = [t[sparse[:, i] % len(t)] % sizes[i] for i, t in enumerate(tables)]
        return {
            "dense": np.load(folder / f"day_{number}_dense.npy"),
            "sparse": np.concatenate(looked_up, axis=1),
            "label": np.load(folder / f"day_{number}_labels.npy")[:, 0],
        }

    train = {name: np.concatenate([day(0)[name], day(1)[name]]) for name in day(0)}
    for seed in (0, 1):
        with contextlib.closing(
            data.train_batches(seed=seed, batch_size=20, start_step=0, rows=slice(0, 20))
        ) as batches:
            seen = [next(batches) for _ in range(5)]
        for name in train:  # The fifth batch goes on into the second epoch.
            found = np.concatenate([batch[name] for batch in seen])
            assert np.array_equal(found, np.concatenate([train[name], train[name]])[:100]), name
    (batch,) = data.eval_batches(batch_size=16, rows=slice(0, 16))
    for name, values in day(2).items():
        assert np.array_equal(batch[name][:11], values[:11]), name


@given(
    st.lists(
        st.tuples(st.sampled_from(["<i4", "<f4", "<i8", "|u1"]), st.integers(1, 50), st.integers(1, 5)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=40, deadline=None)
def test_members_are_mapped_where_they_lie(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    random = np.random.default_rng(0)
    arrays = {str(i): random.integers(100, size=shape).astype(d) for i, (d, *shape) in enumerate(arrays)}
    np.savez(path, **arrays)
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for name, array in arrays.items():
            mapped = criteo_multihot._map_member(path, file, archive.getinfo(f"{name}.npy"))
            assert isinstance(mapped, np.memmap) and mapped.dtype == array.dtype
            assert np.array_equal(mapped, array)


def rewrite(path, change):
    """Saves the arrays of an .npz file again, changed."""
    with np.load(path) as arrays:
        arrays = {name: arrays[name] for name in arrays.files}
    save = change(arrays) or np.savez
    save(path, **arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: np.savez_compressed, "0.npy is compressed"),
        (lambda a: a.pop("7") is None, "lacks an array"),
        (lambda a: a.update({"3": a["3"].astype(np.int64)}), r"table 3, holds int64 .* int32 \[n, 2\]"),
        (lambda a: a.update({"3": a["4"]}), r"table 3, holds int32 \[31, 6\] where int32 \[n, 2\]"),
        (lambda a: a.update({"3": np.asfortranarray(a["3"])}), "no array of rows of numbers"),
        (lambda a: a.update({"3": a["3"].astype(object)}), "3.npy is no array of rows of numbers"),
        (lambda a: a.update({n: v[:-1] for n, v in a.items()}), "different numbers of examples"),
    ],
)
def test_other_files_are_refused(small, change, message):
    input_pipelines.prepare("criteo_multihot", small)
    rewrite(small / "criteo_multihot" / "day_1_sparse_multi_hot.npz", change)
    with pytest.raises(UserError, match=message) as caught:
        input_pipelines.open_dataset("criteo_multihot", small, {})
    assert "\n" not in str(caught.value) and "day_1" in str(caught.value)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_archive_is_refused_or_read_within_its_bounds(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez(path, **{str(t): np.arange(6, dtype=np.int32).reshape(3, 2) for t in range(2)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(UserError):
        for array in criteo_multihot._open_tables(path, (2, 2)):
            array.sum()  # Beyond the end of the file this would end the process.


@pytest.mark.parametrize(
    ("part", "column", "value"), [("dense", 5, np.nan), ("labels", 0, -1), ("labels", 0, 2)]
)
def test_impossible_numbers_are_told(small, part, column, value):
    input_pipelines.prepare("criteo_multihot", small)
    path = small / "criteo_multihot" / f"day_2_{part}.npy"
    array = np.load(path)
    array[3, column] = value
    np.save(path, array)
    with pytest.raises(UserError, match=r"day_2_\*, examples 0 to 11, has impossible numbers"):
        input_pipelines.prepare("criteo_multihot", small, verify=True)


def test_negative_one_hot_rows_are_told(small):
    path = small / "criteo_onehot" / "day_1_sparse.npy"
    sparse = np.load(path)
    sparse[7, 3] = -1
    np.save(path, sparse)
    with pytest.raises(UserError, match="day_1_sparse.npy has negative rows after example 0; get it again"):
        input_pipelines.prepare("criteo_multihot", small)
    assert not (small / "criteo_multihot" / "day_1_sparse_multi_hot.npz").exists()


def test_other_counts_are_told(small, monkeypatch):
    input_pipelines.prepare("criteo_multihot", small)
    monkeypatch.setattr(criteo_multihot, "NUM_TRAIN", 82)
    with pytest.raises(UserError, match="has 81 train examples where MLPerf's set has 82"):
        input_pipelines.open_dataset("criteo_multihot", small, {})


def test_missing_sets_say_where_to_put_them(tmp_path, small):
    with pytest.raises(UserError, match="criteo_multihot.*criteo_onehot.*--fake=N"):
        input_pipelines.open_dataset("criteo_multihot", tmp_path / "empty", {})
    (small / "criteo_onehot" / "day_1_labels.npy").unlink()
    with pytest.raises(UserError, match="day_1_labels.npy is missing"):
        input_pipelines.prepare("criteo_multihot", small)


def test_fake_set(tmp_path):
    assert "Fake Criteo" in input_pipelines.prepare("criteo_multihot", tmp_path, fake=101, verify=True)
    options = {"fake": 101, "table_fraction": 0.001}
    data = input_pipelines.open_dataset("criteo_multihot", tmp_path, options)
    assert (data.num_train, data.num_eval, data.fake) == (101, 12, True)
    batch = data.read_eval(np.arange(12), ["sparse"])
    sizes = data.columns.rows
    assert batch["sparse"].shape == (12, 214) and (batch["sparse"] < sizes).all()
    with pytest.raises(UserError, match="at least 2"):
        input_pipelines.prepare("criteo_multihot", tmp_path, fake=1)
