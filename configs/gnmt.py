"""GNMT v2, translation from English to German by LSTMs.

closed: MLPerf Training's benchmark "gnmt" (v0.5 to v0.7: WMT16 en-de, uncased BLEU 24.0 on newstest2014), from random
weights.

    ./run_and_time.sh --workload=gnmt --platform=tpu
    expected: 0.24 after epoch 4 or 5 of batch 3072 (`--config.reference_point=3072`)

Written down is the reference's own command, for 128 sentences a batch (mlcommons/training,
rnn_translator/pytorch/train.py). A batch is of packed rows of 150 tokens, which hold about five sentences each
(`prepare` says how many), so 32 rows stand for it: five length buckets of one sentence a row would be padding by a
quarter. There are no reference convergence points of this benchmark; `reference_points` holds what accepted submissions
of v0.7 logged (training_results_v0.7, NVIDIA), by their sentences a batch. They reached 0.24 after epochs 4 (2,048),
4 or 5 (3,072), 6 (8,192) and 10 (16,384).

mini: three layers a side on LibreOffice's help (34,582 pairs to train on); not MLPerf's data or model.

    ./run_and_time.sh --workload=gnmt --platform=cpu
    expected: BLEU 0.15 after epoch 2 of 4, in 4 1/2 minutes on one core (benchmarks/convergence); copying the source has 0.064
"""

from __future__ import annotations

import functools

from ml_collections import ConfigDict

from configs.common import Numbers, config, loop, made_up, serving

_serving = functools.partial(
    serving,
    "gnmt",  # its numbers in LoadGen's own defaults (mlperf.conf), which v6.1 dropped
    max_latency_s=0.25,  # Server's bound, for so many of the queries (mlcommons/inference, v0.5 and v0.7)
    latency_share=0.97,
    sut_timeout_s=120.0,
)


def _rows(sentences: int) -> int:
    """Packed rows of about so many sentences, five each, as a multiple of 16."""
    return 16 * round(sentences / 5 / 16)


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="gnmt", benchmark="gnmt", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(vocab_size=32317, width=1024, num_layers=4, dropout=0.2, start=2, lstm="auto"),
        # Sentences longer than `max_sentence`, start and end among it, are not trained on.
        data=dict(name="wmt16", max_length=150, max_sentence=75, **made_up()),
        batch_size=_rows(128),
        eval_batch_size=64,
        label_smoothing=0.1,
        optimizer=dict(_ADAM, base_lr=1e-3),
        schedule=dict(_DECAY, warmup_steps=200, remain_steps=0.666, decay_interval=0),
        decode=dict(beams=5, alpha=0.6, beta=0.1, end=3, extra_length=50, source_lengths=(20, 32, 48, 80)),
        target=0.24,
        max_epochs=8,
        **loop(eval_every_epochs=1),
        inference=_serving((1, 2, 4, 8, 16, 32, 64), published_quality=0.239),
        reference_points={
            "2048": _point(2048, 2e-3, remain_steps=6453, decay_interval=809),
            "3072": _point(3072, 2.875e-3, remain_steps=4054, decay_interval=506),
            "8192": _point(8192, 4e-3, remain_steps=2259, decay_interval=283),
            "16384": _point(16384, 5e-3, remain_steps=1605, decay_interval=201),
        },
    )


_ADAM = dict(name="adamw", beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, clip_norm=5.0)
"""PyTorch's Adam, behind a clip of the global norm."""

_DECAY = dict(decay_steps=4, decay_factor=0.5)


def _point(sentences: int, base_lr: float, *, remain_steps: int, decay_interval: int) -> Numbers:
    """The entries of the config that a published submission's hyperparameters set."""
    return dict(
        batch_size=_rows(sentences),
        optimizer=dict(_ADAM, base_lr=base_lr),
        schedule=dict(_DECAY, warmup_steps=200, remain_steps=remain_steps, decay_interval=decay_interval),
        max_epochs=10,
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            vocab_size=4096,
            width=128,
            num_layers=3,
            dropout=0.0,
            start=0,
            # Narrow layers learn to attend sooner from these.
            attention_gain=2.0,
            embedding_spread=1.0,
            forget_bias=1.0,
        ),
        data=dict(name="libreoffice_help", max_length=64, max_sentence=64, num_train=0, num_eval=0),
        batch_size=4,
        eval_batch_size=64,
        label_smoothing=0.1,
        optimizer=dict(_ADAM, base_lr=4e-3),
        schedule=dict(_DECAY, warmup_steps=100, remain_steps=0.5, decay_interval=0),
        decode=dict(beams=5, alpha=0.6, beta=0.1, end=1, extra_length=20, source_lengths=(16, 32)),
        target=0.15,
        max_epochs=4,
        **loop(eval_every_epochs=1),
        inference=_serving((1, 2, 4, 8, 16, 32), min_duration_s=10.0),
    )
