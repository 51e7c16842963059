"""Mask R-CNN on a ResNet-50 with a feature pyramid, object detection and instance segmentation.

closed: MLPerf Training's benchmark "maskrcnn" of the rounds v0.5 to v3.1 (COCO 2017 at 800 / 1333 pixels, box mAP
0.377 and mask mAP 0.339 by the same state), from MSRA's ResNet-50, whose file lies as DATA_DIR/weights/R-50.pkl.

    ./run_and_time.sh --workload=maskrcnn --platform=tpu
    expected: both at epoch 14 of batch 128 (the reference's mean of ten runs: 14)

Written down is the reference convergence point of batch 128. Other batch sizes have their own hyperparameters:
`--config.reference_point=256` applies that of 256 (mlperf_logging 4.1.68, training_3.1.0/rcps_maskrcnn.json; of
batch 48 it has 800 steps of warm-up, with which the first rates are below 0, where the submissions of that batch have
625). `num_image_candidates` is there what a process keeps for all of its images, a thousand for each; here each image
has its own thousand. Images lie in four padded shapes, of which COCO's leave 8.5 % empty; eight leave 4.2 %:
`--config.data.longer=(896,1088,1216,1344)`, at the price of twice the programs to compile.

mini: the same network with one bottleneck a stage and fewer channels, on composites of photographs with their exact
masks (at 64 x 64, 6 classes, 6,000 / 500 images), from random weights, with norms that are trained, weight decay, a
running average and a rate that falls once; not MLPerf's data or model. Quality is mAP at IoU .5 of both.

    ./run_and_time.sh --workload=maskrcnn --platform=cpu
    expected: both after epoch 4 to 7 of 14, in 2 to 5 minutes on one core (benchmarks/convergence); the best constant boxes have 0.034
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, loop, made_up, serving

# Torchvision's, of values 0 to 255.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
# MSRA's.
_MSRA_MEAN = (122.7717, 115.9465, 102.9801)

# MLPerf Inference never had it; LoadGen's defaults are those of its detectors: 64 samples in memory, 100 ms for Server.
_LOADGEN_MODEL = "retinanet"


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="maskrcnn", benchmark="maskrcnn", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            num_classes=81,
            width=64,
            stages=(3, 4, 6, 3),
            strided="1x1",
            channels=256,
            anchors=3,
            box_window=7,
            dense=1024,
            mask_window=14,
            mask_channels=(256, 256, 256, 256),
            fixed=2,  # parts of the trunk whose kernels stay as they are: its stem and first stage
            fixed_norms=True,
            norm_epsilon=0.0,
            bn_span=0,
        ),
        anchor_sizes=(32, 64, 128, 256, 512),
        proposals=dict(
            iou=0.7,
            train=dict(candidates=2000, count=1000),
            eval=dict(candidates=1000, count=1000),
        ),
        regions=dict(count=512, share=0.25),
        detection=dict(score=0.05, candidates=1000, iou=0.5, detections=100),
        figure="mAP",
        backbone_weights="R-50.pkl",  # a file, or one of DATA_DIR/weights; "" for random ones
        data=dict(
            name="coco_masks",
            shorter=800,
            longest=1333,
            longer=(1088, 1344),
            max_boxes=100,
            mean=_MSRA_MEAN,
            std=(1.0, 1.0, 1.0),
            **made_up(),
            num_threads=0,  # of decoding in each process; 0 as many as there are cores, at most 8
            num_workers=0,  # processes that decode; 0 none until the step waits for threads (input_pipelines.base)
        ),
        batch_size=128,
        eval_batch_size=128,
        optimizer=dict(
            name="torch_sgd",
            base_lr=0.16,
            momentum=0.9,
            weight_decay=1e-4,
            bias_rate=2.0,  # of biases, in times of the others' rate
            bias_decay=0.0,  # of biases, in times of the others' decay
        ),
        schedule=dict(warmup_steps=625, warmup_factor=0.000256, decay_steps=(9000, 12000), decay_factor=0.1),
        target=dict(BBOX=0.377, SEGM=0.339),
        max_epochs=20,
        **loop(eval_every_epochs=1),
        inference=serving(_LOADGEN_MODEL, (1, 2, 4, 8), sut_timeout_s=120.0),
        reference_points={
            "8": _point(8, 0.01, 500, 2e-5, (144_000, 192_000)),
            "48": _point(48, 0.06, 625, 9.6e-5, (24_000, 32_000)),
            "64": _point(64, 0.08, 800, 1e-4, (18_000, 24_000), epochs=25),
            "96": _point(96, 0.12, 625, 1.92e-4, (12_000, 16_000)),
            "128": _point(128, 0.16, 625, 2.56e-4, (9_000, 12_000)),
            "256": _point(256, 0.24, 1800, 1.33e-4, (5_625, 7_500), epochs=22),
            "272": _point(272, 0.24, 1800, 1.33e-4, (5_294, 7_058), epochs=22),
        },
    )


def _point(
    batch_size: int,
    base_lr: float,
    warmup_steps: int,
    warmup_factor: float,
    decay_steps: tuple[int, int],
    *,
    epochs: int = 20,
) -> Numbers:
    """The entries of the config that a reference convergence point sets."""
    return dict(
        batch_size=batch_size,
        optimizer=dict(base_lr=base_lr),
        schedule=dict(warmup_steps=warmup_steps, warmup_factor=warmup_factor, decay_steps=decay_steps),
        max_epochs=epochs,
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            num_classes=7,
            width=16,
            stages=(1, 1, 1),
            strided="3x3",
            channels=32,
            anchors=3,
            box_window=7,
            dense=128,
            mask_window=7,
            mask_channels=(32, 32),
            fixed=0,
            fixed_norms=False,
            norm_epsilon=1e-5,
            bn_span=0,
        ),
        anchor_sizes=(12, 20, 32, 44),
        proposals=dict(iou=0.7, train=dict(candidates=100, count=50), eval=dict(candidates=100, count=50)),
        regions=dict(count=32, share=0.25),
        detection=dict(score=0.05, candidates=100, iou=0.5, detections=20),
        figure="mAP_50",
        backbone_weights="",  # no weights of so narrow a backbone are published
        data=dict(
            name="composites_masks",
            shorter=64,
            longest=64,
            longer=(64,),
            max_boxes=4,
            mean=_MEAN,
            std=_STD,
            num_threads=1,
            num_train=0,
            num_eval=0,
        ),
        batch_size=16,
        eval_batch_size=100,
        optimizer=dict(
            name="adamw", base_lr=2e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.05, clip_norm=1.0
        ),
        schedule=dict(warmup_steps=375, warmup_factor=5e-6, decay_steps=(3000,), decay_factor=0.1),
        ema_decay=0.99,
        target=dict(BBOX=0.25, SEGM=0.20),
        max_epochs=14,
        **loop(eval_every_epochs=1),
        inference=serving(_LOADGEN_MODEL, (1, 2, 4, 8, 16, 32), min_duration_s=10.0),
    )
