"""SSD-ResNet34, object detection.

closed: MLPerf Training's benchmark "ssd" of the rounds v0.6 to v1.1 (COCO 2017 at 300 x 300, mAP 0.230),
from torchvision's ResNet-34, whose file lies as DATA_DIR/weights/resnet34-333f7ec4.pth.

    ./run_and_time.sh --workload=ssd_resnet34 --platform=tpu
    expected: 0.230 at epoch 50 of batch 1024 (the reference's mean of ten runs: 50)

Written down is the reference's own command for batch 1024. Other batch sizes have their own
hyperparameters: `--config.reference_point=4096` applies the reference convergence point of that batch
(mlperf_logging 4.1.68, training_1.1.0/rcps_ssd.json). Learning rates are those that the reference's
optimizer gets, its base rate times batch / 32. The file has ten times these for three of its points; its
edition for round 1.0 has the base rates, and the reference's command agrees with that one.

MLPerf Inference's model has the same parameters at 1200 x 1200 pixels:

    python -m mlperf_jax.import_weights --workload=ssd_resnet34 --config.variant=1200 \
        --from=resnet34-ssd1200.pth --to=weights
    python -m mlperf_jax.main --workload=ssd_resnet34 --preset=closed --scenario=Offline --weights=weights

mini: the same network with one block a stage and fewer channels, on composites of photographs (at 96 x 96,
6 classes, 6,000 / 500 images), from random weights; not MLPerf's data or model. Quality is mAP at IoU .5.

    ./run_and_time.sh --workload=ssd_resnet34 --platform=cpu
    expected: 0.25 after epoch 10 or 11 of 15, in 3 minutes on two cores (benchmarks/convergence); the best
    constant boxes have 0.034
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, loop, made_up, serving

# Torchvision's, of values 0 to 255.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)

# LoadGen's defaults (mlperf.conf of v6.1) know the model no more, but its successor, whose numbers were
# its own: 64 samples in memory, 100 ms for Server.
_LOADGEN_MODEL = "retinanet"


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="ssd_resnet34", benchmark="ssd", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            image_size=300,
            num_classes=81,
            width=64,
            stages=(3, 4, 6),
            strides=(1, 2, 1),
            extra_inner=(256, 256, 128, 128, 128),
            extra_outer=(512, 512, 256, 256, 256),
            extra_strides=(2, 2, 2, 1, 1),
            extra_padding=(1, 1, 1, 0, 0),
            anchors=(4, 6, 6, 6, 4, 4),
            head_stride=1,
            bn_span=128,
        ),
        anchors=dict(
            steps=(8.0, 16.0, 32.0, 64.0, 100.0, 300.0),
            scales=(21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0),
        ),
        detection=dict(score=0.05, candidates=200, iou=0.5, detections=200),
        figure="mAP",
        backbone_weights="resnet34-333f7ec4.pth",  # a file, or one of DATA_DIR/weights; "" for random ones
        data=dict(
            name="coco",
            image_size=300,
            max_boxes=100,  # opening a set refuses images with more; what matching takes is in proportion
            crop_attempts=50,  # to find a crop of the overlap that was drawn: 1 or 50 (`max_samples`)
            mean=_MEAN,
            std=_STD,
            **made_up(),
            num_threads=0,  # of decoding in each process; 0 as many as there are cores, at most 8
            num_workers=0,  # processes that decode; 0 none until the step waits for threads (input_pipelines.base)
        ),
        batch_size=1024,
        eval_batch_size=1024,
        optimizer=dict(name="torch_sgd", base_lr=0.08, momentum=0.9, weight_decay=5e-4),
        schedule=dict(warmup_steps=300, warmup_factor=0, decay_epochs=(40, 50), decay_factor=0.1),
        target=0.230,
        max_epochs=65,
        **loop(eval_every_epochs=5),
        inference=serving(_LOADGEN_MODEL, (1, 2, 4, 8, 16), published_quality=0.20),
        reference_points={
            "1024": _point(1024, 0.08, 5e-4, 300, (40, 50), span=128, epochs=65),
            "1536": _point(1536, 0.12, 1.3e-4, 200, (44, 55), span=192, epochs=70),
            "2048": _point(2048, 0.29248, 4e-5, 1489, (60, 75), span=16, epochs=85),
            "4096": _point(4096, 0.32, 4e-5, 1145, (80, 100), span=64, epochs=110),
        },
        variant="",
        variants={
            # MLPerf Inference's: a stride more, predictors at every third cell, anchors in proportion.
            "1200": dict(
                model=dict(image_size=1200, extra_strides=(2, 2, 2, 2, 1), head_stride=3),
                anchors=dict(
                    steps=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
                    scales=(84.0, 180.0, 396.0, 612.0, 828.0, 1044.0, 1260.0),
                ),
                data=dict(image_size=1200),
            ),
        },
    )


def _point(
    batch_size: int,
    base_lr: float,
    weight_decay: float,
    warmup_steps: int,
    decay_epochs: tuple[int, int],
    *,
    span: int,
    epochs: int,
) -> Numbers:
    """The entries of the config that a reference convergence point sets."""
    return dict(
        batch_size=batch_size,
        model=dict(bn_span=span),
        optimizer=dict(base_lr=base_lr, weight_decay=weight_decay),
        schedule=dict(warmup_steps=warmup_steps, decay_epochs=decay_epochs),
        max_epochs=epochs,
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            image_size=96,
            num_classes=7,
            width=16,
            stages=(1, 1, 1),
            strides=(1, 2, 1),
            extra_inner=(32, 32, 32),
            extra_outer=(64, 64, 64),
            extra_strides=(2, 2, 1),
            extra_padding=(1, 1, 0),
            anchors=(4, 6, 6, 4),
            head_stride=1,
            bn_span=0,
        ),
        anchors=dict(steps=(8.0, 16.0, 32.0, 96.0), scales=(20.0, 36.0, 60.0, 84.0, 108.0)),
        detection=dict(score=0.05, candidates=50, iou=0.5, detections=50),
        figure="mAP_50",
        backbone_weights="",  # no weights of so narrow a backbone are published
        data=dict(
            name="composites",
            image_size=96,
            max_boxes=4,
            crop_attempts=1,
            mean=_MEAN,
            std=_STD,
            num_threads=1,
            num_train=0,
            num_eval=0,
        ),
        batch_size=32,
        eval_batch_size=100,
        optimizer=dict(name="torch_sgd", base_lr=0.05, momentum=0.9, weight_decay=5e-4),
        schedule=dict(warmup_steps=200, warmup_factor=0, decay_epochs=(10, 12), decay_factor=0.1),
        target=0.25,
        max_epochs=15,
        **loop(eval_every_epochs=1),
        inference=serving(_LOADGEN_MODEL, (1, 2, 4, 8, 16, 32), min_duration_s=10.0),
    )
