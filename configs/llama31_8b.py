"""Llama 3.1 8B, trained from random weights: the next token of packed rows of text.

closed: MLPerf Training's benchmark "llama31_8b" since v5.1: 8,030,261,248 parameters on C4 in rows of 8,192 tokens, log
perplexity 3.3 of 1,024 rows of its validation set.

    ./run_and_time.sh --workload=llama31_8b --platform=tpu --sharding=fsdp
    expected: 3.3 after 161,109 rows in batches of 16 (the mean of 20 runs of the reference)

Written down is the reference's point for batches of 16; `--config.reference_point=32` takes that of another (mlperf_logging
4.1.68, training_6.1.0/rcps_llama31_8b.json).

inference: token by token, with MLPerf's lengths and bounds, but of rows of C4, not of its articles of CNN/DailyMail: answers are held
against those of a plain loop over whole texts, and not against MLPerf's ROUGE. It is no result of MLPerf's.

mini: three layers of 128 with 4,096 subwords, a million parameters, on the documentation of Linux 6.1 in rows of 128; not MLPerf's data or
model. Counting pairs of subwords in the whole text gives a log perplexity of 4.659, of triples 3.982, of five 3.751
(`python -m benchmarks.kneser_ney`: Kneser-Ney; 2.144, 1.833 and 1.726 bits a byte); the target lies below that of pairs.

    ./run_and_time.sh --workload=llama31_8b --platform=cpu
    expected: 4.45 to 4.56 after 750 to 1,250 steps of 1,500, seeds 1 to 8 (benchmarks/convergence/llama31_8b_mini.md), in 3 to 6 minutes on one core

Served by the token: how held-out rows go on, by the engine of mlperf_jax/tokens; see mlperf_jax/workloads/generation.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, made_up, serving, telling


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="llama31_8b", benchmark="llama31_8b", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            vocab_size=128_256,
            width=4096,
            mlp_width=14_336,
            num_heads=32,
            num_key_heads=8,
            head_width=128,
            num_layers=32,
            tied=False,
            rope_theta=500_000.0,
            rope_stretch=8.0,
            epsilon=1e-5,
            initializer_range=0.02,
        ),
        data=dict(name="c4", length=8192, **made_up()),
        loss_tile=1024,  # positions of a row whose logits there are at once
        eval_batch_size=16,
        eval_every_samples=12_288,  # rounded up to whole batches
        target=3.3,
        max_epochs=1,
        gradient_accumulation_steps=1,  # into so many parts a batch is cut
        remat="save_narrow",  # what the backward pass computes again instead of keeping it
        **_point(16, 4e-4, 256),
        # Lengths as mlcommons/inference, language/llama3.1-8b, has them of articles of CNN/DailyMail, which are not read yet.
        inference=serving("llama3_1-8b", (1, 2, 4, 8))
        | telling(
            samples=13_368,
            prompt=1920,
            max_tokens=128,
            slots=128,
            page=128,
            chunks=(256, 1024),
            ends=(128_001, 128_008, 128_009),
        ),
        reference_points={
            str(point["batch_size"]): point
            for point in (
                _point(16, 4e-4, 256),
                _point(32, 8e-4, 4096),
                _point(64, 8e-4, 6144),
                _point(96, 1e-3, 16_348),
                _point(128, 2e-3, 32_768),
            )
        },
    )


def _point(batch_size: int, base_lr: float, warmup_samples: int) -> Numbers:
    """The entries of the config that a reference convergence point sets."""
    return dict(
        batch_size=batch_size,
        optimizer=_adamw(base_lr, epsilon=1e-5),
        schedule=dict(
            end_lr=base_lr / 10, warmup_steps=round(warmup_samples / batch_size), max_steps=1_200_000
        ),
    )


def _adamw(base_lr: float, *, epsilon: float) -> Numbers:
    return dict(
        name="adamw", base_lr=base_lr, beta1=0.9, beta2=0.95, epsilon=epsilon, weight_decay=0.1, clip_norm=1.0
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            vocab_size=4096,
            width=128,
            mlp_width=256,
            num_heads=4,
            num_key_heads=2,
            head_width=32,
            num_layers=3,
            tied=True,
            rope_theta=10_000.0,
            rope_stretch=1.0,
            epsilon=1e-5,
            initializer_range=0.02,
        ),
        data=dict(name="linux_doc", length=128, num_train=0, num_eval=0),
        loss_tile=128,
        batch_size=16,
        eval_batch_size=100,
        optimizer=_adamw(5e-3, epsilon=1e-8),
        schedule=dict(end_lr=5e-4, warmup_steps=100, max_steps=1500),
        eval_every_samples=4000,
        target=4.6,
        max_epochs=1,
        gradient_accumulation_steps=1,
        remat="none",
        inference=serving("llama3_1-8b", (1, 4, 16), min_duration_s=10.0)
        | telling(samples=200, prompt=64, max_tokens=32, slots=16, page=32, chunks=(32, 64)),
    )
