"""Utterances come in buckets: every one once an epoch, whole, and beside its transcript."""

import contextlib

import numpy as np
import pytest

from input_pipelines import base
from input_pipelines.sound import symbols, utterances
from input_pipelines.sound.utterances import FlatSounds, SpeechDataset, Utterances
from input_pipelines.text.packing import Ragged
from mlperf_jax.errors import UserError

SECONDS = (0.01, 0.02, 0.03)


def _made_up(count, random):
    lengths = random.integers(1, 481, count)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    samples = random.integers(1, 2**15, starts[-1]).astype(np.int16)
    texts = ["".join(random.choice(list("ab c'"), random.integers(1, 9))) for _ in range(count)]
    alphabet = symbols.Characters()
    numbers = Ragged.of([alphabet.encode(text) for text in texts], np.dtype(np.int32))
    return (samples, starts, texts), Utterances(FlatSounds(samples, starts), numbers, texts)


@pytest.fixture(scope="module")
def both():
    random = np.random.default_rng(0)
    (raw_train, train), (raw_eval, evaluation) = _made_up(57, random), _made_up(21, random)
    alphabet = symbols.Characters()
    dataset = SpeechDataset(
        train, evaluation, symbols=alphabet, seconds=SECONDS, fake=False, description="made up"
    )
    return raw_train, raw_eval, dataset


def _same(raw, row, batch, index, alphabet):
    samples, starts, texts = raw
    length, said = batch["num_samples"][row], batch["num_symbols"][row]
    assert np.array_equal(batch["samples"][row, :length], samples[starts[index] : starts[index + 1]])
    assert not batch["samples"][row, length:].any()
    assert alphabet.decode(batch["symbols"][row, :said]) == texts[index]


def test_every_utterance_comes_once_an_epoch_in_the_bucket_that_holds_it(both):
    raw, _, dataset = both
    size, epochs = 3, 4
    with contextlib.closing(
        dataset.train_batches(seed=5, batch_size=size, start_step=0, rows=slice(0, 3))
    ) as read:
        batches = [next(read) for _ in range(epochs * 57 // size)]
    firsts = raw[0][raw[1][:-1]].astype(int) * 1000 + np.diff(raw[1])
    seen = np.zeros(57, int)
    for batch in batches:
        (bucket,) = [b for b in dataset.train_buckets if b.samples == batch["samples"].shape[1]]
        assert batch["symbols"].shape == (size, bucket.symbols)
        shorter = [b.samples for b in dataset.buckets if b.samples < bucket.samples]
        assert (batch["num_samples"] > max(shorter, default=0)).all()
        keys = batch["samples"][:, 0].astype(int) * 1000 + batch["num_samples"]
        for row, key in enumerate(keys):
            (index,) = np.flatnonzero(firsts == key)
            seen[index] += 1
            _same(raw, row, batch, index, dataset.symbols)
    assert seen.sum() == epochs * 57 and set(seen) <= {epochs - 1, epochs, epochs + 1}


def test_processes_read_their_rows_of_the_same_batches(both):
    _, _, dataset = both

    def batches(rows, start):
        read = dataset.train_batches(seed=1, batch_size=4, start_step=start, rows=rows)
        with contextlib.closing(read):
            return [next(read) for _ in range(3)]

    whole = batches(slice(0, 4), 6)
    for part in (slice(0, 2), slice(2, 4)):
        for batch, of_whole in zip(batches(part, 6), whole, strict=True):
            for name, value in batch.items():
                assert np.array_equal(value, of_whole[name][part])


def test_evaluation_holds_every_utterance_once(both):
    _, raw, dataset = both
    seen = []
    for rows in (slice(0, 3), slice(3, 5)):
        for batch in dataset.eval_batches(batch_size=5, rows=rows):
            for row in np.flatnonzero(batch["mask"]):
                index = batch["index"][row]
                seen.append(index)
                _same(raw, row, batch, index, dataset.symbols)
                assert dataset.eval_buckets(np.array([index]))[0].samples == batch["samples"].shape[1]
                assert dataset.evaluation.text(index) == raw[2][index]
    assert sorted(seen) == list(range(21))
    read = dataset.read_eval(np.array([4, 2]), ("samples", "num_samples", "symbols", "num_symbols"))
    for row, index in enumerate((4, 2)):
        _same(raw, row, read, index, dataset.symbols)


def test_what_no_bucket_holds_is_said(both):
    with pytest.raises(UserError, match="add a longer one"):
        utterances.bucket_of(np.array([200, 481]), SECONDS)
    with pytest.raises(UserError, match="must rise"):
        utterances.bucket_of(np.array([2]), (0.02, 0.01))


def test_synthetic_utterances_have_the_shapes_and_counts_of_the_real():
    options = {"seconds": (1, 2, 3, 40), "num_train": 1000}
    made = {"num_train": 5, "num_eval": 7, "num_symbols": 28, "longest": 2.5}
    dataset = utterances.open_synthetic("x", options, **made)
    assert (dataset.num_train, dataset.num_eval, dataset.fake) == (1000, 7, True)
    assert [bucket.samples for bucket in dataset.buckets] == [16000, 32000, 48000]
    rows = dataset.read_train(0, 4, 0)
    assert rows["symbols"].max() < 28 and rows["samples"].any()
    assert isinstance(dataset, base.Dataset)


def test_characters_come_back():
    alphabet = symbols.Characters()
    assert len(alphabet) == 28
    assert alphabet.encode(" a'") == [0, 1, 27]
    assert alphabet.decode(alphabet.encode("it's 4 a.m.")) == "it's  am"


def test_pieces_are_learned_and_come_back(tmp_path):
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefgh"), random.integers(3, 6))) for _ in range(60)]
    texts = [" ".join(random.choice(words, 5)) for _ in range(200)]
    symbols.learn(texts, 40, tmp_path / "model")
    pieces = symbols.Pieces(tmp_path / "model")
    assert len(pieces) == 40
    ids = pieces.encode(texts[0])
    assert pieces.decode([*ids, 40]) == texts[0] and len(ids) < len(texts[0]) and max(ids) < 40
    (tmp_path / "bad").write_bytes(b"no model")
    with pytest.raises(UserError, match="no model of SentencePiece"):
        symbols.Pieces(tmp_path / "bad")


def test_sorted_epochs_go_from_the_shortest_bucket_to_the_longest():
    """Each utterance once all the same, and in an order of the seed's inside a bucket."""
    dataset = SpeechDataset(
        *(_made_up(count, np.random.default_rng(3))[1] for count in (60, 5)),
        symbols=symbols.Characters(),
        seconds=SECONDS,
        sorted_epochs=1,
        fake=False,
        description="made up",
    )

    def epochs(seed):
        found = [dataset.read_train(60 * n, 60 * (n + 1), seed)["num_samples"] for n in range(2)]
        return [[row.tolist() for row in np.array(found)], utterances.bucket_of(np.array(found[0]), SECONDS)]

    (first, second), buckets = epochs(1)
    assert (np.diff(buckets) >= 0).all() and len(set(buckets.tolist())) == 3
    assert sorted(first) == sorted(second) == sorted(dataset.train.num_samples.tolist())
    assert epochs(2)[0][0] != first and sorted(second) != second
    with contextlib.closing(
        dataset.train_batches(seed=1, batch_size=2, start_step=0, rows=slice(0, 2))
    ) as read:
        widths = [next(read)["samples"].shape[1] for _ in range(28)]
    assert widths == sorted(widths)
