"""Speech recognition at a size for tests: words are tones, a recording is some of them; the door loads it by name."""

from __future__ import annotations

import functools

import numpy as np

from configs import deepspeech2, rnnt
from input_pipelines.sound.symbols import SAMPLE_RATE, Characters
from input_pipelines.sound.utterances import FlatSounds, SpeechDataset, Utterances
from input_pipelines.text.packing import Ragged
from mlperf_jax.workloads.rnnt_recognition import RNNTRecognition
from mlperf_jax.workloads.speech_recognition import DeepSpeech2Recognition

SECONDS = (0.25, 0.5)
_WORDS = ("a", "bee", "cc", "dad")


def _utterances(count, seed):
    """One to four words, each 0.1 seconds of a tone of its own."""
    random = np.random.default_rng(seed)
    texts, sounds = [], []
    time = np.arange(SAMPLE_RATE // 10) / SAMPLE_RATE
    for _ in range(count):
        said = random.integers(len(_WORDS), size=random.integers(1, 5))
        texts.append(" ".join(_WORDS[word] for word in said))
        tones = [6000 * np.sin(2 * np.pi * (700 + 1500 * word) * time) for word in said]
        sound = np.concatenate([*tones, np.zeros(random.integers(1600))])
        sounds.append((sound + random.normal(0, 100, len(sound))).astype(np.int16))
    starts = np.cumsum([0, *map(len, sounds)])
    symbols = Ragged.of([Characters().encode(text) for text in texts], np.dtype(np.int32))
    return Utterances(FlatSounds(np.concatenate(sounds), starts), symbols, texts)


@functools.cache
def dataset(seconds=SECONDS):
    return SpeechDataset(
        _utterances(96, 1),
        _utterances(37, 2),
        symbols=Characters(),
        seconds=seconds,
        fake=True,
        description="words that are tones",
    )


class SmallDeepSpeech2(DeepSpeech2Recognition):
    """One GRU of 32."""

    @staticmethod
    def get_config(preset):
        config = deepspeech2.get_config("mini")
        config.unlock()
        config.model.update(
            channels=(4, 8), windows=((3, 21), (3, 11)), strides=((2, 4), (1, 2)), width=32, num_layers=1
        )
        config.features.update(window=320, hop=160, scale=1.0, tempo=(0.9, 1.1), pitch=(0.98, 1.02))
        config.data.update(name="words that are tones", seconds=SECONDS)
        config.optimizer.base_lr = 1e-2
        # No target that can be reached.
        config.update(batch_size=16, eval_batch_size=8, ema_decay=0.9, target=-1.0, max_epochs=2)
        config.schedule.warmup_steps = 4
        config.inference.update(min_duration_s=0.2, batch_sizes=(1, 8))
        return config

    @functools.cached_property
    def dataset(self):
        return dataset(tuple(self.config.data.seconds))


class SmallRNNT(RNNTRecognition):
    """An LSTM of 24 on either side of stacking."""

    @staticmethod
    def get_config(preset):
        config = rnnt.get_config("mini")
        config.unlock()
        config.model.update(
            encoder_width=24,
            layers_before=1,
            layers_after=1,
            prediction_width=16,
            prediction_layers=1,
            joint_width=24,
            joint_dropout=0.1,
            joint_frames=4,
            init_scale=1.0,
        )
        config.features.filters = 20
        config.masks.update(freq_masks=1, max_freq=2, time_masks=1, max_time=0.05)
        config.data.update(name="words that are tones", seconds=SECONDS[1:])
        config.optimizer.base_lr = 2e-2
        config.schedule.update(warmup_epochs=0.5, hold_epochs=100)
        config.decode.update(most=20, most_in_frame=5)
        config.update(
            batch_size=16,
            eval_batch_size=8,
            splice=3,
            speeds=(0.9, 1.1),
            ema_decay=0.9,
            target=-1.0,  # cannot be reached
            max_epochs=2,
        )
        config.inference.update(min_duration_s=0.2, batch_sizes=(1, 8))
        return config

    @functools.cached_property
    def dataset(self):
        return dataset(tuple(self.config.data.seconds))
