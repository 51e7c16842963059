"""BERT with a head that says where an answer begins and ends: what is served of `bert`.

closed: MLPerf Inference's model and data, BERT-large at 384 subwords on SQuAD v1.1 (F1 0.90874), for which published
weights are imported; MLPerf Training has no such benchmark. Tuned it would be, in the open division, by the recipe of
google-research/bert's README: two epochs of batches of 24 at 3e-5, F1 0.90871.

    python -m mlperf_jax.import_weights --workload=bert_qa --from=model.pytorch --to=weights/bert_qa
    python -m mlperf_jax.main --workload=bert_qa --platform=tpu --scenario=all --weights=weights/bert_qa
    python -m mlperf_jax.main --workload=bert_qa --platform=tpu --scenario=Offline --weights=weights/bert_qa \\
        --config.inference.quality_share=0.999

mini: the trunk that `--workload=bert` left in the same results, on glosses of WordNet as questions on gensim's Wikipedia
articles; not MLPerf's data or model. The best constant span has an F1 of 0.0638 (`python -m
benchmarks.constant_spans`), of which the target is more than four times.

    python -m mlperf_jax.main --workload=bert --platform=cpu
    python -m mlperf_jax.main --workload=bert_qa --platform=cpu
    expected: 0.30 to 0.42 after the first epoch, in 2 1/2 minutes on one core (benchmarks/convergence)
"""

from __future__ import annotations

import functools

from ml_collections import ConfigDict

from configs import bert
from configs.common import Numbers, config, loop, made_up, serving

# Server's bound is MLPerf's; the other of its two qualities is `--config.inference.quality_share=0.999`.
_serving = functools.partial(serving, "bert", max_latency_s=0.13, published_quality=0.90874)
_ADAM = dict(name="adamw", beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.01, clip_norm=1.0)


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="bert_qa", benchmark="bert_qa", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=bert.get_config("closed").model.to_dict(),
        data=dict(name="squad", **made_up()),
        start_weights="bert_model.ckpt.index",  # a file, or one of DATA_DIR/weights; "trained": what `bert` left
        batch_size=24,
        eval_batch_size=64,
        optimizer=dict(**_ADAM, base_lr=3e-5),
        schedule=dict(warmup_share=0.1),  # of all steps
        target=0.90874,
        max_epochs=2,
        **loop(eval_every_epochs=1),
        inference=_serving((1, 2, 4, 8, 16, 32)),
    )


def _mini() -> Numbers:
    return dict(
        model=bert.get_config("mini").model.to_dict(),
        data=dict(name="wordnet_questions", num_train=0, num_eval=0),
        start_weights="trained",
        batch_size=16,
        eval_batch_size=100,
        optimizer=dict(**_ADAM, base_lr=2e-3),
        schedule=dict(warmup_share=0.1),
        target=0.30,
        max_epochs=2,
        **loop(eval_every_epochs=1),
        inference=_serving((1, 2, 4, 8, 16, 32), min_duration_s=10.0) | dict(published_quality=0.0),
    )
