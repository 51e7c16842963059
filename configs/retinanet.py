"""RetinaNet-ResNeXt50, object detection.

closed: MLPerf Training's benchmark "retinanet" of the rounds v2.0 to v5.1 (called "ssd" until v4.1): the 264
commonest classes of OpenImages at 800 x 800, mAP 0.340, from torchvision's ResNeXt-50 32x4d, whose file lies as
DATA_DIR/weights/resnext50_32x4d-7cdf4587.pth.

    ./run_and_time.sh --workload=retinanet --platform=tpu
    expected: 0.340 at epoch 4 of batch 256 (the reference's mean of twenty runs: 4)

Written down is the reference's point for batch 256. Other batch sizes have their own hyperparameters:
`--config.reference_point=2048` applies the reference convergence point of that batch (mlperf_logging 4.1.68,
training_5.1.0/rcps_retinanet.json).

mini: the same network with three stages of one bottleneck, fewer channels and three levels, on composites of
photographs (at 80 x 80, 6 classes, 6,000 / 500 images), from random weights, with norms that are trained, weight
decay, a running average and a rate that falls once; not MLPerf's data or model. Quality is mAP at IoU .5.

    ./run_and_time.sh --workload=retinanet --platform=cpu
    expected: 0.25 after epoch 5 or 6 of 16, in 2 minutes on one core (seeds 1 to 8; benchmarks/convergence); the best constant
    boxes have 0.034
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, loop, made_up, serving

# Torchvision's, of values 0 to 255.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
# Without decay this is PyTorch's Adam, which the reference has.
_ADAM = dict(name="adamw", beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="retinanet", benchmark="retinanet", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            image_size=800,
            num_classes=264,
            width=64,
            stages=(3, 4, 6, 3),
            groups=32,
            inner=2,
            channels=256,
            beyond=2,
            tower=4,
            anchors=9,
            fixed=2,  # parts of the trunk whose kernels stay as they are: its stem and first stage
            fixed_norms=True,
            bn_span=0,
        ),
        anchor_sizes=(32, 64, 128, 256, 512),
        detection=dict(score=0.05, candidates=1000, iou=0.5, detections=300),
        figure="mAP",
        backbone_weights="resnext50_32x4d-7cdf4587.pth",  # a file, or one of DATA_DIR/weights; "" for random ones
        data=dict(
            name="openimages",
            image_size=800,
            max_boxes=1000,
            augmentation="flip",
            mean=_MEAN,
            std=_STD,
            **made_up(),
            num_threads=0,  # of decoding in each process; 0 as many as there are cores, at most 8
            num_workers=0,  # processes that decode; 0 none until the step waits for threads (input_pipelines.base)
        ),
        batch_size=256,
        eval_batch_size=256,
        optimizer=dict(base_lr=1e-4, **_ADAM),
        schedule=dict(warmup_epochs=1, warmup_factor=1e-3, decay_epochs=(), decay_factor=0.1),
        target=0.340,
        max_epochs=20,
        **loop(eval_every_epochs=1),
        inference=serving("retinanet", (1, 2, 4, 8, 16), published_quality=0.3755),
        reference_points={
            str(batch): dict(batch_size=batch, optimizer=dict(base_lr=rate))
            for batch, rate in (
                (256, 1e-4),
                (320, 1e-4),
                (512, 1e-4),
                (768, 1.3e-4),
                (1024, 1.1e-4),
                (1280, 1.3e-4),
                (2048, 1.35e-4),
                (2560, 1.45e-4),
                (4096, 1e-4),
            )
        },
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            image_size=80,
            num_classes=6,
            width=16,
            stages=(1, 1, 1),
            groups=4,
            inner=2,
            channels=48,
            beyond=1,
            tower=1,
            anchors=9,
            fixed=0,
            fixed_norms=False,
            bn_span=0,
        ),
        anchor_sizes=(17, 34, 68),
        detection=dict(score=0.01, candidates=100, iou=0.5, detections=50),
        figure="mAP_50",
        backbone_weights="",  # no weights of so narrow a backbone are published
        data=dict(
            name="composites",
            image_size=80,
            max_boxes=4,
            augmentation="flip",
            mean=_MEAN,
            std=_STD,
            num_threads=1,
            num_train=0,
            num_eval=0,
        ),
        batch_size=16,
        eval_batch_size=100,
        optimizer=dict(base_lr=2e-3, **_ADAM | dict(weight_decay=0.05, clip_norm=1.0)),
        schedule=dict(warmup_epochs=1.0, warmup_factor=1e-3, decay_epochs=(8,), decay_factor=0.1),
        ema_decay=0.99,
        target=0.25,
        max_epochs=16,
        **loop(eval_every_epochs=1),
        inference=serving("retinanet", (1, 2, 4, 8, 16, 32), min_duration_s=10.0),
    )
