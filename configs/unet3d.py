"""3D U-Net, segmentation of volumes.

closed: MLPerf Training's benchmark "unet3d" of the rounds v1.0 to v4.0 (KiTS19, patches of 128 x 128 x 128, mean Dice
of kidney and tumour 0.908). An epoch is 168 patches, one of each volume; the first evaluation is after 1,000, then one
every 20.

    ./run_and_time.sh --workload=unet3d --platform=tpu
    expected: 0.908 after 2,127 epochs of batch 56 (the reference's mean of 197 runs: 357,400 samples)

Written down is the reference convergence point of batch 56; `--config.reference_point=28`, `64` or `84` applies another
(mlperf_logging 4.1.68, training_4.0.0/rcps_unet3d.json, where the warm-up counts samples). A rank's share of a batch
can be a part of a volume too (`--sharding=spatial`).

MLPerf Inference's weights and its 43 volumes (mean Dice .8617, of which 99 % and 99.9 % are asked; 3d-unet is measured
in SingleStream and Offline):

    python -m mlperf_jax.import_weights --workload=unet3d --from=3dunet_kits19_pytorch_checkpoint.pth --to=weights
    python -m mlperf_jax.main --workload=unet3d --preset=closed --scenario=all --weights=weights
    python -m mlperf_jax.main --workload=unet3d --preset=closed --scenario=all --weights=weights \
        --config.inference.quality_share=0.999

mini: four levels of the same network on Colin27 at 2 mm (seven groups of regions of one brain: left half to train on,
right half for evaluation, both read from the side inwards); not MLPerf's data or model. Channels are as many as classes
at least: of half as many no seven groups can be told.

    ./run_and_time.sh --workload=unet3d --platform=cpu
    expected: 0.80 after epoch 7 to 12 of 24, in 2 to 3 minutes on one core (seeds 1 to 8; benchmarks/convergence). Without a network
    (benchmarks/trivial_segmentation_colin27.json) thresholds of intensity have 0.074, and the left half's labels, mirrored,
    0.841
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, loop, made_up, serving

_LOADGEN_MODEL = "3d-unet"
_SCENARIOS = ("SingleStream", "Offline")  # MLPerf measures no others of it


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="unet3d", benchmark="unet3d", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(channels=(32, 64, 128, 256, 320, 320), num_classes=3, channels_in=1),
        data=dict(
            name="kits19",
            patch=(128, 128, 128),  # voxels, of training and of windows
            stride=(64, 64, 64),  # from one window to the next
            buckets=4,  # shapes in which whole volumes lie, each compiled once
            patches_per_volume=1,  # in an epoch
            oversampling=0.4,  # share of patches around an object
            flips=(1 / 3, 1 / 3, 1 / 3),  # how often each axis is turned around
            brightness=0.1,  # how often
            noise=0.1,
            **made_up(),
            num_threads=0,  # of reading in each process; 0 as many as there are cores, at most 8
        ),
        batch_size=56,
        eval_batch_size=16,
        optimizer=dict(name="torch_sgd", base_lr=2.0, momentum=0.9, weight_decay=0.0, nesterov=True),
        schedule=dict(warmup_epochs=1000, init_lr=1e-4, decay_epochs=(), decay_factor=1.0),
        target=0.908,
        max_epochs=10_000,
        **loop(eval_offset_epochs=1000, eval_every_epochs=20),
        inference=serving(_LOADGEN_MODEL, (1,), published_quality=0.8617, sut_timeout_s=600.0)
        | dict(scenarios=_SCENARIOS),
        reference_points={
            "28": _point(28, 2.0, 1000),
            "56": _point(56, 2.0, 1000),
            "64": _point(64, 2.0, 1000),
            "84": _point(84, 1.5, 1500),
        },
    )


def _point(batch_size: int, base_lr: float, warmup_epochs: int) -> Numbers:
    """The entries of the config that a reference convergence point sets."""
    return dict(
        batch_size=batch_size,
        optimizer=dict(base_lr=base_lr),
        schedule=dict(warmup_epochs=warmup_epochs),
    )


def _mini() -> Numbers:
    return dict(
        model=dict(channels=(8, 16, 32, 64), num_classes=8, channels_in=1),
        data=dict(
            name="colin27",
            patch=(32, 64, 48),
            stride=(16, 16, 16),
            buckets=1,
            patches_per_volume=32,
            oversampling=0.6,
            flips=(0.0, 0.0, 0.0),
            brightness=0.0,  # by which images would be twice as bright, in few patches
            noise=0.1,
            num_threads=1,
            num_train=0,
            num_eval=0,
        ),
        batch_size=1,
        eval_batch_size=1,
        optimizer=dict(name="adam", base_lr=1e-2, beta1=0.9, beta2=0.99, epsilon=1e-8),
        schedule=dict(warmup_epochs=2, init_lr=1e-4, decay_epochs=(18, 22), decay_factor=0.3),
        target=0.80,
        max_epochs=24,
        **loop(eval_offset_epochs=4, eval_every_epochs=1),
        inference=serving(_LOADGEN_MODEL, (1,), min_duration_s=10.0) | dict(scenarios=_SCENARIOS),
    )
