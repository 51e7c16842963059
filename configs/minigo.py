r"""MiniGo: Go by self-play.

closed: MLPerf Training's benchmark "minigo" (v0.7 to v2.1): 19x19, half of 100 games won against a fixed
checkpoint. It has no data set; it needs the two networks that MLPerf published (TensorFlow checkpoints
in gs://minigo-pub/ml_perf/0.7), where to begin and whom to beat:

    ./run_and_time.sh --workload=minigo --platform=tpu \
        --config.start_checkpoint=work_dir/model.ckpt-N.index --config.target_checkpoint=target/target.index

`--config.reference_point=9` applies the reference's numbers for 9x9.

mini: the same network, search and window on 5x5, against the network that the run began with; not MLPerf's
board or opponent.

    ./run_and_time.sh --workload=minigo --platform=cpu
    expected: 0.90 after two or three generations, in a minute on two cores (benchmarks/convergence)

Source: mlcommons/training, retired_benchmarks/minigo/tensorflow/minigo/ml_perf/flags/{19,9}/*.flags.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, loop, serving


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="minigo", benchmark="minigo", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        data=dict(name="self-play"),
        game=dict(size=19, komi=7.5, max_moves=722),
        model=dict(conv_width=64, trunk_layers=6, fc_width=64),
        value_init_penalty=0.2,
        self_play=dict(
            lanes=2048,
            games_per_generation=8192,
            readouts=800,
            fastplay_frequency=0.75,
            fastplay_readouts=80,
            dirichlet_alpha=0.03,
            noise_mix=0.3,
            soft_pick_moves=30,
            soft_pick_power=0.98,
            min_resign=-1.0,
            max_resign=-0.9,
            prune=True,
            window=5,
            # 8,192 games of 213 moves, a quarter of them searched in full: 436,224 positions.
            rows=213,
        ),
        # Files that `mlperf_jax.import_weights` reads, or folders that it wrote. Or "random" weights to
        # begin with, and "first", the network that the run began with, to beat.
        start_checkpoint="",
        target_checkpoint="",
        batch_size=4096,
        train_filter=0.3,
        value_cost_weight=0.5,
        optimizer=dict(
            l2_strength=1e-4,
            momentum=0.9,
            lr_rates=(0.016, 0.16, 0.016, 0.0016),
            lr_boundaries=(128, 10000, 20000),
        ),
        match=dict(games=100, readouts=100, soft_pick_moves=0, seed=1),
        # What inference is judged by; made by the model that is measured.
        positions=dict(count=4096, games=128, readouts=800, seed=2),
        target=0.5,
        max_epochs=100,
        **loop(eval_every_epochs=1),
        inference=serving("minigo", (1, 2, 4, 8, 16, 32, 64, 128)),
        reference_points={"9": _nine()},
    )


def _nine() -> Numbers:
    """The reference's numbers for 9x9: `--config.reference_point=9`."""
    return dict(
        game=dict(size=9, max_moves=162),
        model=dict(trunk_layers=9),
        self_play=dict(
            games_per_generation=4096,
            readouts=240,
            fastplay_frequency=0.0,
            dirichlet_alpha=0.135,
            soft_pick_moves=6,
            min_resign=-1.0,
            max_resign=-1.0,
            # 4,096 games of 60 moves.
            rows=120,
        ),
        optimizer=dict(lr_rates=(0.16, 0.016, 0.0016), lr_boundaries=(25000, 37500)),
        match=dict(readouts=240),
        max_epochs=50,
    )


def _mini() -> Numbers:
    return dict(
        data=dict(name="self-play"),
        game=dict(size=5, komi=7.5, max_moves=50),
        model=dict(conv_width=32, trunk_layers=3, fc_width=32),
        value_init_penalty=0.2,
        self_play=dict(
            lanes=128,
            games_per_generation=256,
            readouts=32,
            fastplay_frequency=0.0,
            fastplay_readouts=8,
            dirichlet_alpha=0.4,
            noise_mix=0.25,
            soft_pick_moves=8,
            soft_pick_power=0.98,
            min_resign=-1.0,
            max_resign=-1.0,
            prune=True,
            window=5,
            rows=64,
        ),
        start_checkpoint="random",
        target_checkpoint="first",
        batch_size=128,
        train_filter=1.0,
        value_cost_weight=0.5,
        optimizer=dict(l2_strength=1e-4, momentum=0.9, lr_rates=(0.05,), lr_boundaries=()),
        match=dict(games=100, readouts=16, soft_pick_moves=4, seed=1),
        positions=dict(count=1024, games=128, readouts=32, seed=2),
        target=0.9,
        max_epochs=30,
        **loop(eval_every_epochs=1),
        inference=serving("minigo", (1, 2, 4, 8, 16, 32, 64, 128), min_duration_s=10.0),
    )
