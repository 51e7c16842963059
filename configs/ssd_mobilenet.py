"""SSD-MobileNet v1 (300 x 300), object detection.

closed: of MLPerf Inference's rounds v0.5 to v2.0; Training never had it, so these runs are of the open division. The
recipe is the published model's own, TensorFlow's Object Detection API's (tensorflow/models,
research/object_detection/samples/configs/ssd_mobilenet_v1_coco.config): RMSProp at a rate of .004 that falls by 5 %
after 800,720 steps of 24 images, from an ImageNet classifier, TensorFlow's mobilenet_v1_1.0_224, whose files lie as
DATA_DIR/weights/mobilenet_v1_1.0_224.ckpt.index and .data-00000-of-00001. It says of no number of steps that it is enough.
The target is the mean average precision by which MLPerf Inference judged.

    ./run_and_time.sh --workload=ssd_mobilenet --platform=gpu
    expected: not run by us; 0.22 within 164 epochs

Google's weights, which MLPerf Inference measured (mAP .22, 99 % of it to be reached):

    python -m mlperf_jax.import_weights --workload=ssd_mobilenet --from=model.ckpt.index --to=weights
    python -m mlperf_jax.main --workload=ssd_mobilenet --preset=closed --scenario=Offline --weights=weights

mini: six of the same blocks and an extra stage, on composites of photographs (at 96 x 96, 6 classes, 6,000 / 500 images), from random weights; not MLPerf's data or model. Quality is mAP at IoU .5, on the images that judge
ssd_resnet34's.

    ./run_and_time.sh --workload=ssd_mobilenet --platform=cpu
    expected: 0.20 after epoch 6 to 11 of 12, in 2 to 3 1/2 minutes on one core (seeds 1 to 8; benchmarks/convergence)
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, loop, made_up, serving

_FROM_MINUS_ONE_TO_ONE = dict(mean=(127.5,) * 3, std=(127.5,) * 3)

_LOADGEN_MODEL = "ssd-mobilenet"


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="ssd_mobilenet", benchmark="ssd-mobilenet", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            image_size=300,
            num_classes=91,
            stem=32,
            blocks=(
                (64, 1),
                (128, 2),
                (128, 1),
                (256, 2),
                (256, 1),
                (512, 2),
                (512, 1),
                (512, 1),
                (512, 1),
                (512, 1),
                (512, 1),
                (1024, 2),
                (1024, 1),
            ),
            epsilon=1e-3,
            taken_after=(11, 13),
            extra_inner=(256, 128, 128, 64),
            extra_outer=(512, 256, 256, 128),
            anchors=(3, 6, 6, 6, 6, 6),
            bn_span=24,
            bn_momentum=0.9997,
        ),
        anchors=dict(min_scale=0.2, max_scale=0.95, smallest=0.1, aspects=(1.0, 2.0, 0.5, 3.0, 0.3333)),
        mining_iou=0.99,  # of two predicted boxes that overlap more, only the worse is mined; 1 mines all
        detection=dict(score=1e-8, iou=0.6, detections=100),
        figure="mAP",
        backbone_weights="mobilenet_v1_1.0_224.ckpt.index",  # a file, or one of DATA_DIR/weights; "" for random ones
        data=dict(
            name="coco",
            image_size=300,
            max_boxes=100,  # opening a set refuses images with more; what matching takes is in proportion
            augmentation="sampled_crop",
            crop_attempts=100,
            **_FROM_MINUS_ONE_TO_ONE,
            **made_up(),
            num_threads=0,  # of decoding in each process; 0 as many as there are cores, at most 8
            num_workers=0,  # processes that decode; 0 none until the step waits for threads (input_pipelines.base)
        ),
        batch_size=24,
        eval_batch_size=1000,
        optimizer=dict(
            name="rmsprop", base_lr=0.004, decay=0.9, momentum=0.9, epsilon=1.0, weight_decay=4e-5
        ),
        schedule=dict(warmup_steps=0, boundary_steps=(800_720,), decay_factor=0.95),
        target=0.22,
        max_epochs=164,
        **loop(eval_every_epochs=4),
        inference=serving(
            _LOADGEN_MODEL, (1, 2, 4, 8, 16, 32, 64), published_quality=0.22, max_latency_s=0.010
        ),
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            image_size=96,
            num_classes=7,
            stem=16,
            blocks=((32, 2), (64, 2), (128, 1), (128, 1), (256, 2), (256, 1)),
            epsilon=1e-3,
            taken_after=(4, 6),
            extra_inner=(64,),
            extra_outer=(128,),
            anchors=(3, 6, 6),
            bn_span=0,
            bn_momentum=0.98,
        ),
        anchors=dict(min_scale=0.25, max_scale=0.65, smallest=0.25, aspects=(1.0, 2.0, 0.5, 3.0, 0.3333)),
        mining_iou=1.0,
        detection=dict(score=0.01, iou=0.6, detections=50),
        figure="mAP_50",
        backbone_weights="",  # no weights of so narrow a backbone are published
        data=dict(
            name="composites",
            image_size=96,
            max_boxes=4,
            augmentation="sampled_crop",
            crop_attempts=1,
            **_FROM_MINUS_ONE_TO_ONE,
            num_threads=1,
            num_train=0,
            num_eval=0,
        ),
        batch_size=32,
        eval_batch_size=100,
        optimizer=dict(name="rmsprop", base_lr=0.1, decay=0.9, momentum=0.9, epsilon=1.0, weight_decay=4e-5),
        schedule=dict(warmup_steps=200, boundary_steps=(1600, 2000), decay_factor=0.1),
        ema_decay=0.99,
        target=0.20,
        max_epochs=12,
        **loop(eval_every_epochs=1),
        # Server's bound is that of ssd_resnet34's mini, so that they compare.
        inference=serving(_LOADGEN_MODEL, (1, 2, 4, 8, 16, 32), min_duration_s=10.0, max_latency_s=0.1),
    )
