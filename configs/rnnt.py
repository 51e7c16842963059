"""RNN-T, speech recognition by a transducer over pieces of words.

closed: MLPerf Training's benchmark of v1.0 to v3.1 (LibriSpeech, word error rate 0.058 on dev-clean, of the running
average of the weights), from random weights.

    ./run_and_time.sh --workload=rnnt --platform=gpu

Written down are the numbers of the reference convergence point of batch 1,024; `--config.reference_point=2048` takes those
of another (mlcommons/logging, mlperf_logging/rcp_checker/training_3.1.0/rcps_rnnt.json), whose mean epochs to the target
are 41.8 (512), 44.5 (1,024), 48.9 (1,536), 56.5 (2,048), 65.1 (3,072) and 95.6 (6,144).

inference: MLPerf Inference measured another model, of characters, on the 2,513 utterances of dev-clean of up to 15 seconds;
its checkpoint brings its numbers along (`mlperf_jax.weights.rnnt`):

    python -m mlperf_jax.import_weights --workload=rnnt --from=rnnt.pt --to=weights

Otherwise than in the reference, an utterance is not cut where it is silent at its ends, and its spectrogram goes on mirrored
at its own end, not at that of the longest of its batch.

mini: a small one on sentences of WordNet's examples that eSpeak NG speaks, in voices and with texts that training has not
heard; not MLPerf's data or model. Saying "a the of" to everything has a word error rate of 0.89.

    ./run_and_time.sh --workload=rnnt --platform=cpu
    expected: 0.60 or less after epoch 2 or 3 of 4, seeds 1 to 8 (benchmarks/convergence/rnnt_mini.md), in 4 to 6.5 minutes on one core
"""

from __future__ import annotations

import functools

from ml_collections import ConfigDict

from configs.common import Numbers, config, loop, made_up, serving

_serving = functools.partial(serving, "rnnt")


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="rnnt", benchmark="rnnt", closed=_closed, mini=_mini)


_FEATURES = dict(
    window=320,  # samples at 16 kHz
    hop=160,
    fft_size=512,
    filters=80,
    preemphasis=0.97,
    dither=1e-5,
)
_LAMB = dict(name="lamb", beta1=0.9, epsilon=1e-9, weight_decay=1e-3, clip_norm=1.0)


def _closed() -> Numbers:
    points = {
        "512": _point(512, 0.0062, 1, 11, 0.915, beta2=0.9985, ema=0.994, scale=0.45),
        "1024": _point(1024, 0.007447, 3, 17, 0.9037, ema=0.992),
        "1536": _point(1536, 0.0072, 5, 26, 0.92, ema=0.995),
        "2048": _point(2048, 0.007, 6, 33, 0.939, ema=0.995),
        "3072": _point(3072, 0.009, 9, 40, 0.94, beta2=0.995, ema=0.985, scale=0.35),
        "6144": _point(6144, 0.014, 16, 40, 0.97, beta1=0.82, beta2=0.98, ema=0.96),
    }
    numbers = points["1024"]
    return numbers | dict(
        model=dict(
            classes=1024,
            encoder_width=1024,
            layers_before=2,
            stack=2,
            layers_after=3,
            prediction_width=512,
            prediction_layers=2,
            joint_width=512,
            encoder_dropout=0.1,
            prediction_dropout=0.3,
            joint_dropout=0.3,
            forget_bias=1.0,
            joint_frames=16,
            lstm="auto",
            **numbers["model"],
        ),
        features=_FEATURES,
        splice=3,
        speeds=(0.85, 1.15),
        masks=dict(freq_masks=2, max_freq=20, time_masks=10, max_time=0.03),
        data=dict(
            name="librispeech",
            **made_up(),
            symbols="pieces",
            seconds=(6.0, 10.0, 12.0, 13.5, 15.0, 16.7, 20.0, 25.0, 36.0),  # of buckets
            max_seconds=16.7,  # of what is trained on
            max_eval_seconds=0.0,  # of what is evaluated; 0 for all
            num_threads=0,  # that decode; 0 as many as there are cores, at most 8
        ),
        eval_batch_size=64,
        decode=dict(most=300, most_in_frame=30),
        target=0.058,
        max_epochs=100,
        **loop(eval_every_epochs=1),
        inference=_serving(batch_sizes=(1, 2, 4, 8, 16, 32, 64)),
        reference_points=points,
    )


def _point(
    batch_size: int,
    base_lr: float,
    warmup: int,
    hold: int,
    gamma: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    ema: float,
    scale: float = 0.5,
) -> Numbers:
    """The entries of the config that a reference convergence point sets."""
    return dict(
        batch_size=batch_size,
        optimizer=dict(_LAMB, base_lr=base_lr, beta1=beta1, beta2=beta2),
        schedule=dict(warmup_epochs=warmup, hold_epochs=hold, gamma=gamma, min_lr=1e-5),
        ema_decay=ema,
        model=dict(init_scale=scale),
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            classes=29,
            encoder_width=224,
            layers_before=1,
            stack=2,
            layers_after=1,
            prediction_width=96,
            prediction_layers=1,
            joint_width=128,
            encoder_dropout=0.0,
            prediction_dropout=0.0,
            joint_dropout=0.0,
            forget_bias=1.0,
            joint_frames=64,
            lstm="auto",
            init_scale=1.0,
        ),
        features=dict(_FEATURES, filters=40),
        splice=3,
        speeds=(0.87, 1.15),
        masks=dict(freq_masks=0, max_freq=0, time_masks=0, max_time=0.0),
        data=dict(name="spoken_sentences", **made_up(), seconds=(1.1, 1.6, 2.2, 3.5)),
        batch_size=16,
        eval_batch_size=64,
        optimizer=dict(
            name="adamw", base_lr=3e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, clip_norm=5.0
        ),
        schedule=dict(warmup_epochs=0.2, hold_epochs=1.2, gamma=0.35, min_lr=1e-5),
        ema_decay=0.995,
        decode=dict(most=80, most_in_frame=10),
        target=0.6,
        max_epochs=4,
        **loop(eval_every_epochs=1),
        inference=_serving(batch_sizes=(1, 8, 32), min_duration_s=10.0),
    )
