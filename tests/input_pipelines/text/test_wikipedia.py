"""MLPerf's Wikipedia: counted, drawn from all parts, each sequence once an epoch, and never held whole."""

import numpy as np
import pytest

from input_pipelines import prepared, tfrecord
from input_pipelines.text import wikipedia
from mlperf_jax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wikipedia")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wikipedia, "BLOCK", 3)
        assert wikipedia.prepare(folder, fake=42) == (
            f"made-up sequences, not MLPerf's data, in {folder / 'wikipedia_fake_42'}"
        )
    return folder


def as_rows(batch):
    return [row.tobytes() for row in batch["tokens"]]


def all_of(folder):
    records = []
    for path in sorted((folder / "wikipedia_fake_42" / "tfrecord").iterdir()):
        records += tfrecord.block(path, 0, path.stat().st_size)
    return wikipedia.parsed(records)


def test_an_epoch_has_every_sequence_once_in_another_order(data_dir, monkeypatch):
    monkeypatch.setattr(wikipedia, "WINDOW", 4)
    dataset = wikipedia.open_dataset(data_dir, {"fake": 42})
    assert dataset.num_train == 42 and dataset.num_eval == 5 and dataset.fake
    expected = as_rows(all_of(data_dir))
    epochs = [as_rows(dataset.read_train(42 * n, 42 * (n + 1), seed=7)) for n in range(2)]
    assert epochs[0] != epochs[1] and all(sorted(epoch) == sorted(expected) for epoch in epochs)
    assert as_rows(dataset.read_train(0, 42, seed=8)) != epochs[0]
    begun = [row for epoch in epochs for row in epoch]
    for start, stop in (
        (0, 5),
        (11, 13),
        (37, 60),
        (80, 84),
    ):  # within windows, over their borders and epochs'
        assert as_rows(dataset.read_train(start, stop, seed=7)) == begun[start:stop]


def test_fields_are_those_of_the_records(data_dir):
    dataset = wikipedia.open_dataset(data_dir, {"fake": 42})
    batch = dataset.read_train(0, 6, seed=1)
    for name, (shape, dtype) in wikipedia.SPEC.items():
        assert batch[name].shape == (6, *shape) and batch[name].dtype == dtype
    lengths = batch["segment"].sum(1)
    assert ((batch["tokens"] > 0).sum(1) == lengths).all() and lengths.min() < 512
    assert (np.where(batch["word_weight"], batch["masked"], 0).max(1) < lengths).all()
    evaluated = dataset.read_eval(np.array([4, 0]), ["tokens", "is_random"])
    assert evaluated["tokens"].shape == (2, 512) and evaluated["is_random"].shape == (2, 1)


def test_a_window_or_two_are_held(data_dir, monkeypatch):
    """Blocks are read once each while an epoch goes by, and no more than two windows stay."""
    monkeypatch.setattr(wikipedia, "WINDOW", 2)
    dataset, read = wikipedia.open_dataset(data_dir, {"fake": 42}), []
    block = tfrecord.block
    monkeypatch.setattr(tfrecord, "block", lambda *place: read.append(place) or block(*place))
    for start in range(0, 42, 2):
        dataset.read_train(start, start + 2, seed=3)
    assert len(read) == len(set(read)) == 16  # four parts of 11 or 10 in blocks of 3
    assert dataset._window.cache_info().currsize <= 2


def test_real_sets_are_counted(tmp_path, monkeypatch):
    root = tmp_path / "wikipedia"
    with pytest.raises(UserError, match="MLPerf's Wikipedia is not in"):
        wikipedia.prepare(tmp_path)
    (root / "tfrecord").mkdir(parents=True)
    records = [
        tfrecord.framed(tfrecord.encode(wikipedia._made_up(np.random.default_rng(n)))) for n in range(5)
    ]
    (root / "tfrecord" / "part-00000-of-00001").write_bytes(b"".join(records[:3]))
    (root / "eval_10k").write_bytes(b"".join(records[3:]))
    with pytest.raises(
        UserError, match="has 3 sequences to train on and 2 to evaluate, where 156,725,653 or 156,726,829"
    ):
        wikipedia.prepare(tmp_path)
    monkeypatch.setattr(wikipedia, "NUM_TRAIN", (2, 3))
    monkeypatch.setattr(wikipedia, "NUM_EVAL", 2)
    assert wikipedia.prepare(tmp_path).startswith("Wikipedia, in ")
    assert wikipedia.open_dataset(tmp_path, {}).read_train(0, 3, seed=0)["tokens"].shape == (3, 512)
    (root / "tfrecord" / "part-00000-of-00001").write_bytes(b"".join(records[:2]))
    with pytest.raises(
        UserError, match=r"part-00000-of-00001 is not the file that was counted; prepare it again"
    ):
        wikipedia.open_dataset(tmp_path, {})


def test_records_of_other_sets_are_refused():
    example = wikipedia._made_up(np.random.default_rng(0))
    with pytest.raises(UserError, match="has no input_ids of 512; make the set for 512 tokens"):
        wikipedia.parsed([tfrecord.encode(example | {"input_ids": np.arange(128)})])
    with pytest.raises(UserError, match="has a masked_lm_ids that is not below 30522"):
        wikipedia.parsed([tfrecord.encode(example | {"masked_lm_ids": np.full(76, 40_000)})])
    with pytest.raises(UserError, match="cannot be read: "):
        wikipedia.parsed([b"\xff"])


def test_what_is_not_prepared_is_told(tmp_path):
    with pytest.raises(UserError, match="no prepared data set in"):
        wikipedia.open_dataset(tmp_path, {})
    assert prepared.AGAIN
