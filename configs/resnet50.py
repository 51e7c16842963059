"""ResNet-50 v1.5, image classification.

closed: MLPerf Training's benchmark "resnet" (ImageNet-1k, top-1 0.759), from random weights.

    ./run_and_time.sh --workload=resnet50 --platform=tpu
    expected: 0.759 at about epoch 40 of batch 4096 (the reference's mean of ten runs: 39.875)

Written down is the reference's own command for batch 4096. Other batch sizes have their own
hyperparameters: `--config.reference_point=32768` applies the reference convergence point of that
batch, any key of `reference_points` below (mlperf_logging 4.1.68, training_4.0.0/rcps_resnet.json).

MLPerf Inference's weights (resnet50-19c8e357.pth, resnet50_v1.pb or resnet50_v1.onnx; docs/data.md):

    python -m mlperf_jax.import_weights --workload=resnet50 --from=resnet50_v1.onnx --to=weights
    python -m mlperf_jax.main --workload=resnet50 --preset=closed --scenario=Offline --weights=weights

mini: the same bottlenecks on Fashion-MNIST (28x28, 10 classes, 60,000 / 10,000 images); not MLPerf's
data or model.

    ./run_and_time.sh --workload=resnet50 --platform=cpu
    expected: 0.90 after epoch 4 or 5 of 6, in a minute on two cores (benchmarks/convergence)
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, fashion_mnist, imagenet, loop, serving


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="resnet50", benchmark="resnet", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            stages=(3, 4, 6, 3),
            width=64,
            num_classes=1000,
            image_size=224,
            channels_in=3,
            stem="imagenet",
            bn_span=64,
            zero_init_last_gamma=False,
            space_to_depth=False,
            padding="tf",
        ),
        # The reference subtracts the mean and divides by nothing.
        data=imagenet(mean=(123.68, 116.78, 103.94), std=(1.0, 1.0, 1.0)),
        batch_size=4096,
        eval_batch_size=4096,
        label_smoothing=0.1,
        optimizer=dict(
            name="lars",
            base_lr=10.0,
            momentum=0.9,
            weight_decay=2e-4,
            epsilon=0.0,
            trust_coefficient=0.001,
        ),
        schedule=dict(warmup_epochs=5, decay_steps=13137, end_lr=1e-4, power=2.0),
        target=0.759,
        # The warm-up and the decay take 47 epochs; the last evaluation is at the end.
        max_epochs=48,
        # The rules: first after epoch 1, 2, 3 or 4, then every 4.
        **loop(eval_offset_epochs=4, eval_every_epochs=4),
        inference=serving("resnet50", (1, 2, 4, 8, 16, 32, 64, 128), published_quality=0.7646),
        reference_points={
            "1632": _point(1632, 7.4, 0.9, 5e-5, 2, 27476, span=204, offset=3, epochs=39),
            "3264": _point(3264, 10.5, 0.9, 5e-5, 2, 14523, span=204, offset=3, epochs=39),
            "4096": _point(4096, 10.0, 0.9, 2e-4, 5, 13137, span=64, offset=4, epochs=48),
            "8192": _point(8192, 17.0, 0.9, 2e-4, 5, 6095, span=64, offset=2, epochs=46),
            "13056": _point(13056, 12.8, 0.9, 2.5e-5, 9, 4710, span=204, offset=2, epochs=58),
            "32768": _point(32768, 21.2, 0.94, 2.5e-5, 16, 2267, span=128, offset=4, epochs=76),
            "49152": _point(49152, 19.405, 0.951807, 1e-4, 24, 1846, span=256, offset=4, epochs=96),
            "58880": _point(58880, 23.246, 0.951807, 1e-4, 29, 1785, span=230, offset=4, epochs=112),
            "65536": _point(65536, 24.699, 0.951807, 1e-4, 31, 1133, span=128, offset=1, epochs=89),
            "67840": _point(67840, 24.699, 0.951807, 1e-4, 31, 1133, span=424, offset=2, epochs=94),
        },
    )


def _point(
    batch_size: int,
    base_lr: float,
    momentum: float,
    weight_decay: float,
    warmup_epochs: int,
    decay_steps: int,
    *,
    span: int,
    offset: int,
    epochs: int,
) -> Numbers:
    """The entries of the config that a reference convergence point sets.

    `offset` puts an evaluation at the epoch at which the point's runs converged; `epochs` is the first
    evaluation after the end of the decay.
    """
    return dict(
        batch_size=batch_size,
        model=dict(bn_span=span),
        optimizer=dict(
            name="lars", base_lr=base_lr, momentum=momentum, weight_decay=weight_decay, epsilon=0.0
        ),
        schedule=dict(warmup_epochs=warmup_epochs, decay_steps=decay_steps, end_lr=1e-4, power=2.0),
        eval_offset_epochs=offset,
        max_epochs=epochs,
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            stages=(1, 1, 1),
            width=8,
            num_classes=10,
            image_size=28,
            channels_in=1,
            stem="small",
            bn_span=0,
            zero_init_last_gamma=False,
            space_to_depth=False,
            padding="tf",
        ),
        data=fashion_mnist(),
        batch_size=128,
        eval_batch_size=1000,
        label_smoothing=0.1,
        optimizer=dict(name="sgd", base_lr=0.2, momentum=0.9, weight_decay=5e-4),
        schedule=dict(warmup_epochs=0.5, decay_epochs=5.5, end_lr=1e-4, power=2.0),
        target=0.90,
        max_epochs=6,
        **loop(eval_offset_epochs=1, eval_every_epochs=1),
        inference=serving("resnet50", (1, 2, 4, 8, 16, 32, 64, 128), min_duration_s=10.0),
    )
