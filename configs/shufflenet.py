"""ShuffleNet v2 1x (224 x 224), image classification; v1 1x with three groups as a variant.

closed: MLPerf's rounds never had it, so these runs are of the open division. Schedule and target are its authors'
(megvii-model/ShuffleNet-Series, ShuffleNetV2/train.py and README.md: SGD, 300,000 steps of batch 1,024, a rate that falls
linearly from .5, label smoothing .1; top-1 .694). Their colour jitter is left out: ImageNet here is augmented as MLPerf's
ResNet is.

    ./run_and_time.sh --workload=shufflenet --platform=tpu
    expected: not run by us; 0.694 within 240 epochs by the recipe
    ./run_and_time.sh --workload=shufflenet --platform=tpu --config.variant=v1
    expected: not run by us; 0.678 within 240 epochs by the recipe

Torchvision's weights (top-1 .69362), 98 % of which is to be reached in inference:

    python -m mlperf_jax.import_weights --workload=shufflenet --from=shufflenetv2_x1-5666bf0f80.pth --to=weights
    python -m mlperf_jax.main --workload=shufflenet --preset=closed --scenario=Offline --weights=weights

mini: v2's units on Fashion-MNIST (28x28, 10 classes, 60,000 / 10,000 images); not the published data or model.

    ./run_and_time.sh --workload=shufflenet --platform=cpu
    expected: 0.90 after epoch 5 of 8, in 2 minutes on two cores (benchmarks/convergence)
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import Numbers, config, fashion_mnist, imagenet, loop, serving

# LoadGen's defaults do not know the model; these are of the other image classifier.
_LOADGEN_MODEL = "resnet50"


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`: "closed" or "mini"."""
    return config(preset, workload="shufflenet", benchmark="shufflenet", closed=_closed, mini=_mini)


def _closed() -> Numbers:
    return dict(
        model=dict(
            version=2,
            widths=(116, 232, 464),
            repeats=(4, 8, 4),
            groups=3,
            stem_width=24,
            stem="imagenet",
            last=1024,
            num_classes=1000,
            image_size=224,
            channels_in=3,
            bn_span=64,
        ),
        data=imagenet(),
        batch_size=1024,
        eval_batch_size=1000,
        label_smoothing=0.1,
        optimizer=dict(name="sgd", base_lr=0.5, momentum=0.9, weight_decay=4e-5),
        schedule=dict(warmup_epochs=0, decay_steps=300_000, end_lr=0.0, power=1.0),
        target=0.694,
        max_epochs=240,
        **loop(eval_offset_epochs=4, eval_every_epochs=4),
        inference=serving(_LOADGEN_MODEL, (1, 2, 4, 8, 16, 32, 64, 128), published_quality=0.69362)
        | dict(quality_share=0.98),
        variant="",
        variants={"v1": dict(model=dict(version=1, widths=(240, 480, 960)), target=0.678)},
    )


def _mini() -> Numbers:
    return dict(
        model=dict(
            version=2,
            widths=(48, 96),
            repeats=(2, 3),
            groups=3,
            stem_width=24,
            stem="small",
            last=128,
            num_classes=10,
            image_size=28,
            channels_in=1,
            bn_span=0,
        ),
        data=fashion_mnist(),
        batch_size=128,
        eval_batch_size=1000,
        label_smoothing=0.1,
        optimizer=dict(name="sgd", base_lr=0.2, momentum=0.9, weight_decay=2e-4),
        schedule=dict(warmup_epochs=0.5, decay_epochs=7.5, end_lr=1e-4, power=2.0),
        target=0.90,
        max_epochs=8,
        **loop(eval_offset_epochs=1, eval_every_epochs=1),
        inference=serving(_LOADGEN_MODEL, (1, 2, 4, 8, 16, 32, 64, 128), min_duration_s=10.0),
    )
