"""MLPerf's GPT-OSS 20B, a mixture of experts trained from random weights: the next token of packed rows of text.

closed: MLPerf Training's benchmark "gpt_oss_20b" since v6.0: 20,488,418,112 parameters, of which a token passes 3.77 billion, on
the data of llama31_8b, log perplexity 3.34. It is not OpenAI's model of that name: it has Llama 3.1's tokens and norms of queries
and keys, and neither biases nor attention sinks nor bounds in its gates.

    ./run_and_time.sh --workload=gpt_oss_20b --platform=tpu --sharding=expert
    expected: 3.34 after 194,765 rows in batches of 16 (the mean of 20 runs of the reference)

Sources: mlcommons/training, small_llm_moe_pretraining/primus, conf/gpt_oss_20B-pretrain.yaml and config_MI355X_1x8x1.sh; what
these leave open is AMD-AGI/Primus's, primus/configs/models/megatron/gpt_oss_20B.yaml and deepseek_v2_base.yaml. Written
down is the reference's point for batches of 16; `--config.reference_point=32` takes that of another (mlperf_logging 4.1.68,
training_6.1.0/rcps_gpt_oss_20b.json).

mini: llama31_8b's mini, data, steps and all, with eight experts of half its network's width in its place, of which a token passes
two, so that both multiply as much; a window in the first of three layers, and norms of queries and keys. 1.9 million
parameters; not MLPerf's data or model. Counting pairs of subwords has a log perplexity of 4.659 (configs/llama31_8b.py).

    ./run_and_time.sh --workload=gpt_oss_20b --platform=cpu
    expected: 4.39 to 4.60 after 750 or 1,000 steps of 1,500, seeds 1 to 8 (benchmarks/convergence/gpt_oss_20b_mini.md), in 6 to 8 minutes on one
    core, 3 to 4 on two

At equal tokens it tells more than the dense mini: after 4,000, 8,000 and 12,000 rows 5.386, 4.880 and 4.595 for 5.453, 4.950 and 4.668,
means of the same eight seeds (both convergence records).

Served by the token, as llama31_8b is and with its numbers: MLPerf Inference has no task for this model, and its gpt-oss-120b is
OpenAI's.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, made_up, serving, telling


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="gpt_oss_20b", benchmark="gpt_oss_20b", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            vocab_size=128_256,  # tokenizer_model: Llama-3.1-8B
            width=2880,
            mlp_width=2880,  # moe_ffn_hidden_size
            num_heads=64,
            num_key_heads=8,
            head_width=64,  # Primus: kv_channels
            num_layers=24,
            tied=False,
            rope_theta=150_000.0,
            rope_stretch=1.0,
            window=129,  # window_size [128, 0]: 128 tokens before a query, and itself
            window_every=2,  # window_attn_skip_freq: from the first layer on
            query_key_norm=True,  # Primus: qk_layernorm, of deepseek_v2_base
            num_experts=32,
            num_chosen=4,
            # norm_epsilon, which Megatron puts in the place of layernorm_epsilon (its arguments.py).
            epsilon=1e-6,
            initializer_range=0.008,
        ),
        data=dict(name="c4", length=8192, **made_up()),
        loss_tile=1024,  # positions of a row whose logits there are at once
        eval_batch_size=16,
        eval_every_samples=12_288,  # rounded up to whole batches
        target=3.34,
        max_epochs=1,
        gradient_accumulation_steps=1,  # into so many parts a batch is cut
        remat="save_narrow",  # what the backward pass computes again instead of keeping it
        **_point(16, 4e-4, 2048),
        inference=serving("llama3_1-8b", (1, 2, 4, 8))
        | telling(
            samples=13_368,
            prompt=1920,
            max_tokens=128,
            slots=128,
            page=64,
            chunks=(256, 1024),
            ends=(128_001, 128_008, 128_009),
        ),
        reference_points={
            str(point["batch_size"]): point
            for point in (_point(16, 4e-4, 2048), _point(32, 8e-4, 4096), _point(64, 1e-3, 12_288))
        },
    )


def _point(batch_size: int, base_lr: float, warmup_samples: int) -> Numbers:
    """The entries of the config that a reference convergence point sets."""
    return dict(
        batch_size=batch_size,
        optimizer=_adamw(base_lr, epsilon=1e-5),
        # The rules want a tenth, though the reference's own points all end at 4e-5.
        schedule=dict(end_lr=base_lr / 10, warmup_steps=warmup_samples // batch_size, max_steps=1_200_000),
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
            mlp_width=128,
            num_heads=4,
            num_key_heads=2,
            head_width=32,
            num_layers=3,
            tied=True,
            rope_theta=10_000.0,
            rope_stretch=1.0,
            window=32,
            window_every=3,
            query_key_norm=True,
            num_experts=8,
            num_chosen=2,
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
