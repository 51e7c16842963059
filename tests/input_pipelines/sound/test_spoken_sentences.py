"""Spoken sentences: real texts of frequent words, and nothing of the evaluation heard before."""

import numpy as np
import pytest

from input_pipelines import prepared
from input_pipelines.sound import spoken_sentences
from input_pipelines.sound.spoken_sentences import _ACCENTS, _VARIANTS, held_out, manners, sentences
from mlperf_jax.errors import UserError

LINES = """  1 a licence "not an example of all"
00001740 03 n 01 entity 0 000 | that which is; "the red dog ran"; "a dog"
00001741 03 n 01 thing 0 000 | another; "The red dog ran!"; "the dog, red, ran in 1999"; "dog's red"; "it's the red dog"
"""


def test_sentences_are_the_examples_of_three_to_eight_words_each_once():
    assert sentences([LINES]) == ["it's the red dog", "the red dog ran"]


def test_words_are_the_most_frequent(monkeypatch):
    monkeypatch.setattr(spoken_sentences, "_MOST_WORDS", 4)
    assert sentences([LINES]) == ["the red dog ran"]


def test_nothing_of_the_evaluation_is_in_training():
    for of in (_ACCENTS, _VARIANTS):
        assert not set(of["train"]) & set(of["eval"]) and len(set(of["train"])) == len(of["train"])
    for split in ("train", "eval"):
        drawn = manners(split, 2000)
        assert {manner.voice for manner in drawn} == set(_ACCENTS[split])
        assert {manner.variant for manner in drawn} == set(_VARIANTS[split])
        assert drawn == manners(split, 2000)


def _said_so(text, manner):
    random = np.random.default_rng([manner.pitch, manner.rate, *text.encode()])
    return random.integers(-1000, 1000, 800 * len(text)).astype(np.int16)


def test_the_set_is_written_once_and_read_whole(tmp_path):
    texts = [
        f"{a} {b} {c}" for a in ("the", "my") for b in ("old", "red", "big") for c in ("dog", "cat", "sun")
    ]
    folder = tmp_path / "spoken_sentences"
    prepared.prepare_folder(folder, lambda f: {"fake": False} | spoken_sentences.spoken(f, texts, _said_so))
    dataset = spoken_sentences.open_dataset(tmp_path, {})
    training = [text for text in texts if not held_out(text)] * 4
    assert dataset.num_train == len(training) and dataset.num_eval == len(texts) - len(training) // 4
    said = {
        _said_so(t, m).tobytes(): t for t, m in zip(training, manners("train", len(training)), strict=True)
    }
    rows = dataset.read_train(0, dataset.num_train, 0)
    for samples, length, symbols, count in zip(*rows.values(), strict=True):
        assert dataset.symbols.decode(symbols[:count]) == said[samples[:length].tobytes()]
    voices = (folder / "train_voices.txt").read_text().splitlines()
    assert voices == [f"{m.voice}+{m.variant}" for m in manners("train", len(training))]
    assert f"{len(set(voices))} voices" in dataset.description
    with open(folder / "train_starts.npy", "r+b") as file:
        file.seek(-8, 2)
        file.write(b"\0" * 8)
    with pytest.raises(UserError, match="counts do not fit"):
        spoken_sentences.open_dataset(tmp_path, {})


def test_sound_at_another_rate_keeps_its_pitch_and_loses_silence():
    time = np.arange(22_050) / 22_050
    tone = np.where((time > 0.25) & (time < 0.75), 9000 * np.sin(2 * np.pi * 441 * time), 0)
    sound = spoken_sentences.at_16_khz(tone.astype(np.int16), 22_050)
    assert len(sound) == pytest.approx(16_000 * (0.5 + 2 * 800 / 22_050), abs=80)
    power = np.abs(np.fft.rfft(sound))
    assert power.argmax() * 16_000 / len(sound) == pytest.approx(441, abs=3)
    assert len(spoken_sentences.at_16_khz(np.zeros(100, np.int16), 22_050)) == 0


def test_there_is_no_made_up_set(tmp_path):
    with pytest.raises(UserError, match="no --fake set"):
        spoken_sentences.prepare(tmp_path, fake=3)
