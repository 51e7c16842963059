"""DeepSpeech2, speech recognition by CTC over characters.

closed: MLPerf Training's draft of 2018 that was never scored (LibriSpeech, word error rate 0.23), from random weights:
two convolutions, three GRUs of 2,560 that read forwards, SGD with Nesterov's momentum, a rate that is divided by 1.1 after
every epoch, gradients clipped at 400. The reference took 6,873.6 minutes on one Pascal P100.

    ./run_and_time.sh --workload=deepspeech2 --platform=gpu

Numbers are those of retired_benchmarks/never-adopted/speech_recognition/pytorch/params.py and train.py (mlcommons/training).
Otherwise than there, recordings are in order of their length by buckets alone, in which they are shuffled; tempos are changed by taking windows closer or further apart, where
sox changes the sound; and there is no random gain, which the normalisation of log magnitudes takes out again. It was not
trained by us to that target.

mini: a small one on sentences of WordNet's examples that eSpeak NG speaks, in voices and with texts that training has not
heard; not MLPerf's data or model. Saying "a the of" to everything has a word error rate of 0.89.

    ./run_and_time.sh --workload=deepspeech2 --platform=cpu
    expected: 0.60 or less after epoch 3 to 5 of 6, seeds 1 to 8 (benchmarks/convergence/deepspeech2_mini.md), in 5 to 8 minutes on one core
"""

from __future__ import annotations

import functools

from ml_collections import ConfigDict

from configs.common import Numbers, config, loop, made_up, serving

# MLPerf Inference has another speech recogniser, whose defaults in LoadGen apply.
_serving = functools.partial(serving, "rnnt")


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="deepspeech2", benchmark="deepspeech2", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            channels=(32, 32),
            windows=((11, 41), (11, 21)),  # frames and bins
            strides=((2, 2), (1, 2)),
            width=2560,
            num_layers=3,
            vocab_size=29,
        ),
        features=dict(
            window=320,  # samples at 16 kHz, 20 ms
            hop=160,
            scale=65536.0,  # to the 32 bits in which libsox gave samples
            tempo=(0.85, 1.15),  # in training, drawn for each recording; (1, 1) as it is
            pitch=(1.0, 1.0),  # likewise
        ),
        data=dict(
            name="librispeech",
            **made_up(),
            symbols="characters",
            seconds=(6.0, 10.0, 12.0, 13.5, 15.0, 16.7, 20.0, 25.0, 36.0),  # of buckets
            sorted_epochs=10,  # that go from the shortest bucket to the longest: all
            max_seconds=36.0,  # of what is trained on: all
            num_threads=0,  # that decode; 0 as many as there are cores, at most 8
        ),
        batch_size=8,
        eval_batch_size=8,
        optimizer=dict(
            name="torch_sgd", base_lr=1e-4, momentum=0.9, nesterov=True, weight_decay=0.0, clip_norm=400.0
        ),
        schedule=dict(anneal=1.1, warmup_steps=0),
        decode=dict(beams=0),  # of prefix beam search; 0 for greedy
        target=0.23,
        max_epochs=10,
        **loop(eval_every_epochs=1),
        inference=_serving(batch_sizes=(1, 2, 4, 8, 16)),
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            channels=(8, 24),
            windows=((5, 21), (5, 11)),
            strides=((2, 4), (1, 2)),
            width=192,
            num_layers=2,
            vocab_size=29,
            # Else the first and the last characters would be said in the frames between.
            padding=(6, 10),
        ),
        # Windows of 12.5 ms do not tell a voice's pitch.
        features=dict(window=200, hop=200, scale=1.0, tempo=(1.0, 1.0), pitch=(0.85, 1.15)),
        data=dict(name="spoken_sentences", **made_up(), seconds=(1.2, 1.6, 2.2, 3.5), sorted_epochs=1),
        batch_size=16,
        eval_batch_size=64,
        optimizer=dict(
            name="adamw",
            base_lr=3e-3,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-8,
            weight_decay=0.01,
            clip_norm=100.0,
        ),
        schedule=dict(anneal=1.45, warmup_steps=100),
        ema_decay=0.995,
        decode=dict(beams=0),
        target=0.6,
        max_epochs=6,
        **loop(eval_every_epochs=1),
        inference=_serving(batch_sizes=(1, 8, 32), min_duration_s=10.0),
    )
