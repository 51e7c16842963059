"""BERT, pre-trained: masked words and next sentences. What it answers with is tuned and served as `bert_qa`.

closed: MLPerf Training's benchmark "bert" of the rounds v0.7 to v5.0: BERT-large on Wikipedia of 2020-01-01 in rows of 512
subwords, masked-LM accuracy 0.720 (v0.7: 0.712), from MLPerf's checkpoint of phase 1, whose files lie as
DATA_DIR/weights/model.ckpt-28252.index and .data-00000-of-00001; its own accuracy, 0.34085, is checked.

    ./run_and_time.sh --workload=bert --platform=tpu
    expected: 0.720 after 2.4 million samples of batch 448 (the reference's mean of 23 runs)

Written down is the reference's point for batch 448; `--config.reference_point=4096` takes that of another batch
(mlperf_logging 4.1.68, training_5.1.0/rcps_bert.json). Sequences are packed, of two or three into a row.

mini: two layers of 128 from random weights, in which two heads look beside their place from the first step on, with
4,096 subwords, on 20 Newsgroups and gensim's Wikipedia articles in rows of 128; not MLPerf's data or model. The most
frequent subword has an accuracy of 0.0329, of which the target is more than five times; a count of both neighbours
0.2865, and with the words that are shown 0.3261 (`python -m benchmarks.neighbours`).

    ./run_and_time.sh --workload=bert --platform=cpu
    expected: 0.18 after 12,000 samples, in 3 minutes on one core (benchmarks/convergence; NOTES.md says why it begins as it does)
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, made_up, serving


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="bert", benchmark="bert", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            vocab_size=30522,
            width=1024,
            mlp_width=4096,
            num_heads=16,
            num_layers=24,
            num_positions=512,
            dropout=0.1,
            attention_dropout=0.1,
            gelu="tanh",
            initializer_range=0.02,
            first_values="drawn",
        ),
        data=dict(
            name="wikipedia",
            packing=0.53,  # rows for a sequence of the batch; 0: each has a row of its own
            **made_up(),
            num_threads=0,  # that read in each process; 0 as many as there are cores, at most 8
        ),
        start_weights="model.ckpt-28252.index",  # a file, or one of DATA_DIR/weights; "" for random ones
        start_accuracy=0.34085,  # of those weights; 0: is not checked
        next_sentence_weight=1.0,  # of their loss beside the words'
        eval_batch_size=448,
        target=0.720,
        max_epochs=1,
        **_point(448, 4.25e-4, 6700),
        **_LOOP,
        inference=serving("bert", (1, 2, 4, 8, 16, 32), max_latency_s=0.13),
        reference_points={
            str(point["batch_size"]): point
            for point in (
                _point(256, 3.5e-4, 13700),
                _point(448, 4.25e-4, 6700),
                _point(1536, 2e-3, 2254, betas=(0.66, 0.996)),
                _point(3072, 2e-3, 1141, warmup=(100, 0), betas=(0.66, 0.998)),
                _point(4096, 2.4e-3, 855, betas=(0.66, 0.998)),
                _point(4608, 3.5e-3, 700, betas=(0.62, 0.9)),
                _point(6144, 2.9293e-3, 700, warmup=(0, -700), betas=(0.7206, 0.78921), decay=1e-3),
                _point(6912, 2.9293e-3, 700, warmup=(0, -700), betas=(0.7206, 0.78921), decay=1e-3),
                _point(8192, 2.88293e-3, 600, warmup=(287, -76), betas=(0.88, 0.88), decay=_DECAY),
                _point(8704, 2.971656225e-3, 600, warmup=(287, -76), betas=(0.88, 0.88), decay=_DECAY),
                _point(12288, 3.1e-3, 500, warmup=(300, -100), betas=(0.8, 0.925), decay=_DECAY),
                _point(13056, 3.19540686e-3, 500, warmup=(300, -100), betas=(0.8, 0.925), decay=_DECAY),
                _point(16384, 3.3e-3, 600, warmup=(290, -100), betas=(0.75, 0.9), decay=_DECAY),
            )
        },
    )


_DECAY = 0.0166629
_LOOP = dict(
    gradient_accumulation_steps=1,  # into so many parts a batch is cut
    remat="none",  # what the backward pass computes again instead of keeping it
)


def _point(
    batch_size: int,
    base_lr: float,
    training_steps: int,
    *,
    warmup: tuple[int, int] = (0, 0),
    betas: tuple[float, float] = (0.9, 0.999),
    decay: float = 0.01,
) -> Numbers:
    """The entries of the config that a reference convergence point sets; `warmup`: steps, and where it starts."""
    return dict(
        batch_size=batch_size,
        optimizer=dict(
            name="lamb",
            base_lr=base_lr,
            beta1=betas[0],
            beta2=betas[1],
            epsilon=1e-6,
            weight_decay=decay,
            clip_norm=1.0,
        ),
        # Evaluated every so many samples; 0: by the rules, which look at the batch size.
        eval_every_samples=0,
        schedule=dict(training_steps=training_steps, warmup_steps=warmup[0], start_warmup_step=warmup[1]),
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            vocab_size=4096,
            width=128,
            mlp_width=512,
            num_heads=2,
            num_layers=2,
            num_positions=128,
            dropout=0.0,
            attention_dropout=0.0,
            gelu="tanh",
            # Narrow layers learn to attend sooner from these.
            initializer_range=0.05,
            first_values="beside",
        ),
        data=dict(name="newsgroups", packing=0.0, num_train=0, num_eval=0),
        start_weights="",
        start_accuracy=0.0,
        # At 1.0 next sentences, of which this network learns nothing, are most of the gradient.
        next_sentence_weight=0.1,
        batch_size=16,
        eval_batch_size=100,
        optimizer=dict(
            name="adamw", base_lr=5e-3, beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.01, clip_norm=1.0
        ),
        eval_every_samples=4000,
        schedule=dict(training_steps=1250, warmup_steps=100, start_warmup_step=0),
        target=0.18,
        max_epochs=2,
        **_LOOP,
        inference=serving("bert", (1, 2, 4, 8, 16, 32), max_latency_s=0.13, min_duration_s=10.0),
    )
