"""LibriSpeech is read from its FLAC files as it is, and what is missing is named."""

import contextlib
import shutil

import numpy as np
import pytest
import soundfile

from input_pipelines.sound import librispeech
from mlperf_jax.errors import UserError

SMALL = {"train": {"train-clean-100": 40}, "eval": {"dev-clean": 5}}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A made-up set, and its files once more as if they were the real ones."""
    path = tmp_path_factory.mktemp("data")
    librispeech.prepare(path, fake=40)
    for name in ("train-clean-100", "dev-clean"):
        shutil.copytree(path / "librispeech_fake_40" / name, path / "LibriSpeech" / name)
    return path


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(librispeech, "FOLDERS", SMALL)


def _check(dataset, root):
    """Every utterance is what its own FLAC file and its chapter's list say."""
    said = {}
    for path, text in librispeech.transcripts(root, "train-clean-100"):
        said[soundfile.read(root / path, dtype="int16")[0].tobytes()] = text
    with contextlib.closing(
        dataset.train_batches(seed=3, batch_size=4, start_step=0, rows=slice(0, 4))
    ) as read:
        for _ in range(6):
            batch = next(read)
            for samples, length, symbols, count in zip(*batch.values(), strict=True):
                text = said[samples[:length].tobytes()]
                assert dataset.symbols.decode(symbols[:count].tolist()) == text


@pytest.mark.parametrize("kind", ["pieces", "characters"])
def test_utterances_are_those_of_the_files(data_dir, small, kind):
    assert "40 train and 5 eval utterances" in librispeech.prepare(data_dir)
    options = {"symbols": kind}
    dataset = librispeech.open_dataset(data_dir, options)
    assert not dataset.fake
    _check(dataset, data_dir / "LibriSpeech")
    made_up = librispeech.open_dataset(data_dir, options | {"fake": 40})
    assert made_up.fake and made_up.num_train == 40
    (path, text), *_ = librispeech.transcripts(data_dir / "LibriSpeech", "dev-clean")
    samples = soundfile.read(data_dir / "LibriSpeech" / path, dtype="int16")[0]
    read = dataset.read_eval(np.array([0]), ("samples", "num_samples"))
    assert np.array_equal(read["samples"][0, : read["num_samples"][0]], samples)
    assert dataset.evaluation.text(0) == text


def test_long_utterances_are_left_out(data_dir):
    options = {"fake": 40, "max_seconds": 4.0, "max_eval_seconds": 5.0}
    dataset = librispeech.open_dataset(data_dir, options)
    assert 0 < dataset.num_train < 40
    assert dataset.train.num_samples.max() <= 4 * 16_000
    assert dataset.evaluation.num_samples.max() <= 5 * 16_000
    with pytest.raises(UserError, match="as short as 0.1 seconds"):
        librispeech.open_dataset(data_dir, {"fake": 40, "max_seconds": 0.1})


def test_what_is_missing_is_named(data_dir, tmp_path, small, monkeypatch):
    with pytest.raises(UserError, match="not prepared"):
        librispeech.open_dataset(tmp_path, {})
    with pytest.raises(UserError, match="train-clean-100 is missing"):
        librispeech.prepare(tmp_path)
    root = tmp_path / "LibriSpeech"
    shutil.copytree(data_dir / "LibriSpeech", root)
    gone = root / "train-clean-100" / "1" / "2" / "1-2-0003.flac"
    gone.unlink()
    with pytest.raises(UserError, match="1-2-0003.flac is missing or damaged"):
        librispeech.prepare(tmp_path)
    gone.write_bytes(b"fLaC and no more")
    with pytest.raises(UserError, match="1-2-0003.flac is missing or damaged"):
        librispeech.prepare(tmp_path)
    monkeypatch.setattr(librispeech, "FOLDERS", {**SMALL, "eval": {"dev-clean": 6}})
    with pytest.raises(UserError, match="dev-clean has transcripts of 5 utterances where 6 belong"):
        librispeech.prepare(tmp_path)


def test_a_file_that_changed_after_the_index_is_refused(data_dir, tmp_path, small):
    shutil.copytree(data_dir / "LibriSpeech", tmp_path / "LibriSpeech")
    librispeech.prepare(tmp_path)
    dataset = librispeech.open_dataset(tmp_path, {})
    path = tmp_path / "LibriSpeech" / "dev-clean" / "1" / "2" / "1-2-0000.flac"
    soundfile.write(path, np.zeros(1000, np.int16), 16_000)
    with pytest.raises(UserError, match="has 1,000 samples where it had"):
        dataset.read_eval(np.array([0]), ("samples",))


def test_the_real_set_has_the_counts_of_the_benchmark():
    assert (librispeech.NUM_TRAIN, librispeech.NUM_EVAL) == (281_241, 2_703)


def test_buckets_pad_less_than_a_tenth_of_lengths_like_those_of_librispeech():
    from input_pipelines.sound.utterances import bucket_of

    random = np.random.default_rng(0)
    seconds = np.concatenate([random.uniform(2, 11, 20_000), random.uniform(11, 16.7, 80_000)])
    assert seconds.mean() == pytest.approx(12.3, abs=0.1)
    widths = np.array(librispeech.SECONDS)[bucket_of(seconds * 16_000, librispeech.SECONDS)]
    assert 1 - seconds.sum() / widths.sum() < 0.1
