"""NCF, recommendation from what users chose.

closed: MLPerf Training's benchmark "ncf" of v0.5 (MovieLens-20M, HR@10 0.635 among 999 negatives). Its result is of
100 runs, of which the first 50 that converge count; `report` scores them so, over the reference's 46.7 minutes:

    ./run_and_time.sh --workload=ncf --platform=gpu --runs=100
    hyperparameters of the reference: batch 2048, Adam 5e-4 (recommendation/pytorch/run_and_time.sh at fe17e83)

Not trained by us to that target. `python -m benchmarks.ncf_epoch` measures what an epoch costs, host and step apart, on
a made-up set of the same size (`prepare --fake=20000263`).

mini: a smaller NeuMF on MovieLens-100K, 99 negatives; not MLPerf's data or model. Ranking by popularity has an HR@10 of
0.4125 (`python -m benchmarks.popularity`).

    ./run_and_time.sh --workload=ncf --platform=cpu
    expected: 0.65 after 4 to 6 epochs of 30, in ten seconds on one core (benchmarks/convergence)
"""

from __future__ import annotations

import functools

from ml_collections import ConfigDict

from configs.common import Numbers, config, made_up, serving

_serving = functools.partial(serving, "ncf", (1, 2, 4, 8, 16), max_latency_s=0.03)
_ADAM = dict(name="lazy_adam", beta1=0.9, beta2=0.999, epsilon=1e-8)


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="ncf", benchmark="ncf", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            factors=64,
            layers=(256, 256, 128, 64),
            table_groups=1,  # for --sharding=table_wise: a multiple of the devices
        ),
        data=dict(
            name="movielens_20m",
            **made_up(),
            negatives=4,  # drawn for each chosen item, anew in each epoch
        ),
        batch_size=2048,
        eval_batch_size=256,
        optimizer=dict(**_ADAM, base_lr=5e-4),
        target=0.635,
        eval_offset_epochs=0,
        eval_every_epochs=1,
        max_epochs=20,
        inference=_serving(),
    )


def _mini() -> Numbers:
    return dict(
        model=dict(factors=16, layers=(64, 32, 16), table_groups=1),
        data=dict(name="movielens_100k", **made_up(), negatives=4),
        batch_size=1024,
        eval_batch_size=256,
        optimizer=dict(**_ADAM, base_lr=2e-3),
        target=0.65,
        eval_offset_epochs=0,
        eval_every_epochs=1,
        max_epochs=30,
        inference=_serving(min_duration_s=10.0),
    )
