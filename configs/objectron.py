"""The detector of MediaPipe's Objectron (SSD-MobileNet v2, 300 x 300, 23 of Open Images's classes): only served.

mini: npm's @mediapipe/objectron as it is, on 41 photographs of scikit-image and GCompris. MLPerf has no such benchmark, so there
is no closed preset. The quality is agreement with what TensorFlow Lite's own interpreter answered (mean average precision against its
answers, of which 1 is all); what is right about these answers nobody has said.

    python -m mlperf_jax.main --workload=objectron --platform=cpu --scenario=all --prepare
    expected: mAP against recorded answers 1.0000 in all four (benchmarks/objectron.md)
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import serving

PRESETS = ("mini",)

_BLOCKS = (
    (1, 16, 1),
    *((6, 24, 2), (6, 24, 1)),
    *((6, 32, 2), (6, 32, 1), (6, 32, 1)),
    *((6, 64, 2), (6, 64, 1), (6, 64, 1), (6, 64, 1)),
    *((6, 96, 1), (6, 96, 1), (6, 96, 1)),
    *((6, 160, 2), (6, 160, 1), (6, 160, 1)),
    (6, 320, 1),
)
"""Expansion, channels and stride of every inverted residual."""


def get_config(preset: str) -> ConfigDict:
    """Returns the numbers of `preset`, "mini"."""
    return ConfigDict(
        dict(
            workload="objectron",
            benchmark="objectron",
            preset=preset,
            precision="auto",  # by the platform, see `mlperf_jax.precision`
            model=dict(
                image_size=300,
                num_classes=24,
                stem=32,
                blocks=_BLOCKS,
                taken_in=14,
                last=1280,
                extra_inner=(256, 128, 128, 64),
                extra_outer=(512, 256, 256, 128),
                anchors=(3, 6, 6, 6, 6, 6),
            ),
            anchors=dict(min_scale=0.2, max_scale=0.95, smallest=0.1, aspects=(1.0, 2.0, 0.5, 3.0, 0.3333)),
            # What is less certain than the recorded answers that count is still told, so that rounding loses none of them.
            detection=dict(score=0.2, candidates=100, iou=0.4, detections=100),
            data=dict(
                name="objectron",
                mean=(127.5,) * 3,
                std=(127.5,) * 3,
                num_eval=0,  # with --synthetic_data: how many; 0 as many as the real set
            ),
            target=1.0,
            inference=serving("ssd-mobilenet", (1, 2, 4, 8, 16), min_duration_s=10.0, max_latency_s=0.25),
        )
    )
