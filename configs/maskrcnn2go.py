"""Mask R-CNN2Go: people's boxes, masks and 17 keypoints on a mobile trunk.

closed: MLPerf never had it, so these runs are of the open division. Of Mask R-CNN2Go itself no figure on a public set was
published (models/maskrcnn2go.py says what was, and what was chosen). Target and recipe are those of its authors' later
open code: facebookresearch/d2go, MODEL_ZOO.md, Keypoint-RCNN-FBNetV3A-dsmask: keypoint AP 35.56 on COCO's val2017, after
configs/keypoint_rcnn_fbnetv3a_dsmask_C4.yaml: 224 pixels on the shorter side, at most 448, 450,000 steps of 32 images, half
a cosine from .16 under a warm-up, running average of .9998; momentum, weight decay and warm-up, which it leaves as they are,
are Detectron2's. Anchors are of one size a level (there of five on one level). The trunk begins with torchvision's MobileNet v2,
as DATA_DIR/weights/mobilenet_v2-b0353104.pth.

    ./run_and_time.sh --workload=maskrcnn2go --platform=gpu
    expected: not run by us; 0.3556 within 255 epochs

mini: six of the same blocks, narrower, on figures drawn over photographs (at 96 x 96, 6,000 / 500 images), from
random weights; not MLPerf's data or model. Quality is keypoint AP at OKS .5; the mean pose, put into the true boxes, has .127
(benchmarks/mean_pose_figures.json). How far joints turn is part of the data (`input_pipelines.image.figures.JOINTS`).

    ./run_and_time.sh --workload=maskrcnn2go --platform=cpu
    expected: 0.60 after epoch 2 of 8, in 2 minutes on one core (benchmarks/convergence)
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, loop, made_up, serving

# Torchvision's, of values 0 to 255.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)

# MLPerf Inference never had it; LoadGen's defaults are those of its detectors: 64 samples in memory, 100 ms for Server.
_LOADGEN_MODEL = "retinanet"


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="maskrcnn2go", benchmark="maskrcnn2go", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            num_classes=2,
            num_keypoints=17,
            stem=32,
            stages=(
                (1, 16, 1, 1),
                (6, 24, 2, 2),
                (6, 32, 3, 2),
                (6, 64, 4, 2),
                (6, 96, 3, 1),
                (6, 160, 3, 2),
                (6, 320, 1, 1),
            ),
            channels=64,
            anchors=3,
            box_window=7,
            dense=128,
            mask_window=14,
            convs=4,
            norm_epsilon=1e-5,
            norm_momentum=0.9,
            bn_span=0,
        ),
        anchor_sizes=(16, 32, 64, 128, 224),
        proposals=dict(
            iou=0.7,
            train=dict(candidates=1000, count=1000),
            eval=dict(candidates=1000, count=100),
        ),
        regions=dict(count=512, share=0.25),
        detection=dict(score=0.05, candidates=100, iou=0.5, detections=20),
        figure="OKS_AP",
        backbone_weights="mobilenet_v2-b0353104.pth",  # a file, or one of DATA_DIR/weights; "" for random ones
        data=dict(
            name="coco_keypoints",
            shorter=224,
            longest=448,
            longer=(320, 448),
            max_boxes=100,
            mean=_MEAN,
            std=_STD,
            **made_up(),
            num_threads=0,  # of decoding in each process; 0 as many as there are cores, at most 8
            num_workers=0,  # processes that decode; 0 none until the step waits for threads (input_pipelines.base)
        ),
        batch_size=32,
        eval_batch_size=128,
        optimizer=dict(name="torch_sgd", base_lr=0.16, momentum=0.9, weight_decay=1e-4),
        schedule=dict(warmup_steps=1000, warmup_factor=1e-3, steps=450_000),
        ema_decay=0.9998,
        target=0.3556,
        max_epochs=255,
        **loop(eval_every_epochs=5),
        inference=serving(_LOADGEN_MODEL, (1, 2, 4, 8, 16, 32)),
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            num_classes=2,
            num_keypoints=17,
            stem=16,
            stages=((1, 16, 1, 1), (2, 24, 1, 2), (3, 32, 2, 2), (3, 48, 2, 2)),
            channels=24,
            anchors=3,
            box_window=7,
            dense=64,
            mask_window=10,
            convs=2,
            norm_epsilon=1e-5,
            norm_momentum=0.9,
            bn_span=0,
        ),
        anchor_sizes=(24, 40, 56, 80),
        proposals=dict(
            iou=0.7,
            train=dict(candidates=60, count=30),
            eval=dict(candidates=60, count=30),
        ),
        regions=dict(count=16, share=0.25),
        detection=dict(score=0.05, candidates=30, iou=0.5, detections=5),
        figure="OKS_AP_50",
        backbone_weights="",  # no weights of so narrow a trunk are published
        data=dict(
            name="figures",
            shorter=96,
            longest=96,
            longer=(96,),
            max_boxes=2,
            mean=_MEAN,
            std=_STD,
            num_threads=1,
            num_train=0,
            num_eval=0,
        ),
        batch_size=16,
        eval_batch_size=100,
        optimizer=dict(name="adamw", base_lr=3e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.05),
        schedule=dict(warmup_steps=100, warmup_factor=1e-3, steps=3000),
        ema_decay=0.98,
        target=0.60,
        max_epochs=8,
        **loop(eval_every_epochs=1),
        inference=serving(_LOADGEN_MODEL, (1, 2, 4, 8, 16, 32), min_duration_s=10.0),
    )
