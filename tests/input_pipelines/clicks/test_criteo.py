"""Criteo's binary files: examples against plain Python, counts, damage, and the made-up set."""

import contextlib
import math

import numpy as np
import pytest

import input_pipelines
from input_pipelines.clicks import criteo
from mlperf_jax.errors import UserError


def examples(count, seed=0, columns=criteo.COLUMNS):
    random = np.random.default_rng(seed)
    return np.concatenate(
        [
            random.integers(2, size=(count, 1)),
            random.integers(2**31 - 1, size=(count, 13)) >> random.integers(31, size=(count, 13)),
            (columns.rows * random.random((count, 26))).astype(np.int64),
        ],
        axis=1,
    ).astype("<i4")


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A stand-in of 5000 + 70 examples."""
    rows = {"train": examples(5000), "test": examples(70, seed=1)}
    monkeypatch.setattr(criteo, "_SPLITS", {"train": ("train", 5000), "test": ("eval", 70)})
    (tmp_path / "criteo").mkdir()
    for split, values in rows.items():
        values.tofile(tmp_path / "criteo" / criteo.FILES[split])
    return rows


def test_mlperf_numbers():
    assert sum(criteo.COLUMNS.table_sizes) == 187_767_399
    assert criteo.NUM_TRAIN == 4_195_197_692 and criteo.NUM_EVAL == 89_137_319 == -(-178_274_637 // 2)


@pytest.mark.parametrize("fraction", [1.0, 0.001])
def test_examples_against_plain_python(tmp_path, real, fraction):
    data = input_pipelines.open_dataset("criteo", tmp_path, {"table_fraction": fraction, "num_threads": 1})
    assert data.description == "Criteo 1TB, 5,000 train and 70 eval examples" and not data.fake
    sizes = [math.ceil(size * fraction) for size in criteo.COLUMNS.table_sizes]
    assert (
        list(data.columns.table_sizes) == sizes
        and data.columns.num_dense == 13
        and data.columns.multi_hot_sizes == (1,) * 26
    )
    batches = list(data.eval_batches(batch_size=32, rows=slice(0, 32)))
    found = {name: np.concatenate([b[name] for b in batches])[:70] for name in batches[0]}
    for row, example in enumerate(real["test"].tolist()):
        assert found["label"][row] == example[0]
        assert found["sparse"][row].tolist() == [v % n for v, n in zip(example[14:], sizes, strict=True)]
        np.testing.assert_allclose(found["dense"][row], [math.log(x + 1) for x in example[1:14]], rtol=1e-6)


def test_dense_numbers_are_those_of_the_reference_to_the_last_place(tmp_path, real):
    torch = pytest.importorskip("torch", reason="the reference's own transform")
    data = input_pipelines.open_dataset("criteo", tmp_path, {})
    found = data.read_eval(np.arange(70), ["dense"])["dense"]
    expected = torch.log(
        torch.from_numpy(real["test"][:, 1:14].astype(np.int32)).type(torch.float) + 1
    ).numpy()
    np.testing.assert_array_max_ulp(found, expected, maxulp=1)


def test_training_shuffles_blocks_of_the_files_own_order(tmp_path, real):
    data = input_pipelines.open_dataset("criteo", tmp_path, {})
    with contextlib.closing(
        data.train_batches(seed=3, batch_size=5000, start_step=0, rows=slice(0, 5000))
    ) as batches:
        found = next(batches)["sparse"]
    blocks = [real["train"][start : start + 2048, 14:] for start in (0, 2048, 4096)]
    assert any(
        np.array_equal(found, np.concatenate([blocks[i] for i in order]))
        for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "Criteo 1TB is not in .*criteo_raw"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "no multiple of 160; it is cut off"),
        (lambda path: path.write_bytes(path.read_bytes()[:-160]), "has 4,999 examples .* 5,000"),
        (lambda path: path.write_bytes(b""), "has 0 bytes"),
    ],
)
def test_damaged_files_are_told(tmp_path, real, damage, message):
    damage(tmp_path / "criteo" / criteo.FILES["train"])
    with pytest.raises(UserError, match=message) as caught:
        input_pipelines.prepare("criteo", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value"), [(0, -1), (0, 2), (1, -1), (13, -7), (14, -1), (16, 17289), (39, 36)]
)
def test_impossible_numbers_are_told_when_they_are_read(tmp_path, real, column, value):
    rows = real["test"].copy()
    rows[69, column] = value
    rows.tofile(tmp_path / "criteo" / criteo.FILES["test"])
    assert "70 eval" in input_pipelines.prepare("criteo", tmp_path)
    with pytest.raises(UserError, match="terabyte_processed_test.bin, examples .* has impossible numbers"):
        input_pipelines.prepare("criteo", tmp_path, verify=True)


def test_raw_days_are_converted_once(tmp_path, real, monkeypatch):
    from input_pipelines.clicks import criteo_convert

    calls = []

    def convert(raw, folder):
        calls.append((raw, folder))
        folder.mkdir()
        for split, values in real.items():
            values.tofile(folder / criteo.FILES[split])

    monkeypatch.setattr(criteo_convert, "convert", convert)
    for split in real:
        (tmp_path / "criteo" / criteo.FILES[split]).unlink()
    (tmp_path / "criteo").rmdir()
    (tmp_path / "criteo_raw").mkdir()
    for _ in range(2):
        assert "5,000 train" in input_pipelines.prepare("criteo", tmp_path)
    assert calls == [(tmp_path / "criteo_raw", tmp_path / "criteo")]


def test_fake_set(tmp_path):
    assert "Fake Criteo 1TB" in input_pipelines.prepare("criteo", tmp_path, fake=4100, verify=True)
    data = input_pipelines.open_dataset("criteo", tmp_path, {"fake": 4100, "table_fraction": 0.01})
    assert (data.num_train, data.num_eval, data.fake) == (4100, 512, True)
    batch = data.read_eval(np.arange(512), ["sparse", "label"])
    assert (batch["sparse"] < np.array(data.columns.table_sizes)).all() and 0 < batch["label"].mean() < 0.3
    whole = input_pipelines.open_dataset("criteo", tmp_path, {"fake": 4100})
    assert whole.columns.table_sizes == criteo.COLUMNS.table_sizes


def test_synthetic_examples_have_cut_tables(tmp_path):
    data = input_pipelines.open_dataset("criteo", tmp_path, {"synthetic": True, "table_fraction": 0.001})
    assert data.num_train == criteo.NUM_TRAIN and data.columns.table_sizes[0] == 39885
    assert (data.read_eval(np.arange(64), ["sparse"])["sparse"] < np.array(data.columns.table_sizes)).all()


def test_synthetic_examples_come_in_order_and_differ(tmp_path):
    """The order of 4.2 billion would need 31 GiB; and equal examples would look up fewer rows than real ones."""
    data = input_pipelines.open_dataset("criteo", tmp_path, {"synthetic": True})
    batches = data.train_batches(seed=1, batch_size=32768, start_step=90_000, rows=slice(8192, 16384))
    here = next(batches)
    batches.close()
    assert here["sparse"].shape == (8192, 26)
    assert len(np.unique(here["sparse"], axis=0)) == 8192
    whole = data.train_batches(seed=2, batch_size=32768, start_step=90_000, rows=slice(0, 32768))
    np.testing.assert_array_equal(next(whole)["sparse"][8192:16384], here["sparse"])
    whole.close()
