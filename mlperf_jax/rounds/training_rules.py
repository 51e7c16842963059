"""What the rules say of each training benchmark: its names, targets, runs, and reference times.

Sources: mlcommons/training_policies, training_rules.adoc, one revision per round (targets: section
"Benchmarks"; runs: "Benchmark Results"; variance: the published results' notes), and for the Pascal
P100 mlcommons/training, reference_results.md (2018). Facts that changed with the rounds are tuples of
(first round, value).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from mlperf_jax.goals import Direction, Goal

ROUNDS = (
    "v0.5",
    "v0.6",
    "v0.7",
    "v1.0",
    "v1.1",
    "v2.0",
    "v2.1",
    "v3.0",
    "v3.1",
    "v4.0",
    "v4.1",
    "v5.0",
    "v5.1",
    "v6.0",
    "v6.1",
)
LOCAL = "local"  # the round of runs of our own, which nobody reviewed
UNVERIFIED = "unverified, not reviewed by MLCommons"  # what must then be said with every figure
_Fact = TypeVar("_Fact")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        key: its name in logs and folders.
        titles, targets, runs: (first round, value), in order. A target is in the unit of the logs.
        direction: where the quality goes.
        figure: the quality's name in the logs, where it has one of its own.
        also: what must be reached by the same evaluation.
        dropped: runs dropped at each end.
        variance: how far scores of the same system differ from one set of runs to the next.
        p100_minutes: time to train of the reference on one Pascal P100, where that is confirmed.
        local_round: the round whose facts hold for runs of our own; by default the latest.
    """

    key: str
    titles: tuple[tuple[str, str], ...]
    targets: tuple[tuple[str, float], ...] = ()
    runs: tuple[tuple[str, int], ...] = (("v0.5", 10),)
    direction: Direction = Direction.HIGHER
    figure: str = "quality"
    also: tuple[Goal, ...] = ()
    dropped: int = 1
    variance: float = 0.05
    p100_minutes: float | None = None
    local_round: str = LOCAL

    def title(self, round_name: str) -> str:
        return _as_of(self.titles, self.round(round_name))

    def target(self, round_name: str) -> float | None:
        return _as_of(self.targets, self.round(round_name)) if self.targets else None

    def goals(self, round_name: str) -> tuple[Goal, ...]:
        """What a run must reach; nothing where that is not known."""
        target = self.target(round_name)
        return () if target is None else (Goal(self.figure, target, self.direction, self.figure), *self.also)

    def required_runs(self, round_name: str) -> int:
        return _as_of(self.runs, self.round(round_name))

    def round(self, name: str) -> str:
        """The round whose facts hold for results of round `name`."""
        return self.local_round if name == LOCAL else name


def _as_of(facts: Sequence[tuple[str, _Fact]], round_name: str) -> _Fact:
    """The fact that held in a round; in an unknown one the last. The first is of v0.5."""
    at = ROUNDS.index(round_name) if round_name in ROUNDS else len(ROUNDS)
    return next(value for first, value in reversed(facts) if ROUNDS.index(first) <= at)


_VISION = 0.025
_FIVE = (("v0.5", 5),)
_THREE = (("v0.5", 3),)


def _one(key: str, title: str, target: float | None = None, **rest: Any) -> Benchmark:
    targets = () if target is None else (("v0.5", target),)
    return Benchmark(key, titles=(("v0.5", title),), **{"targets": targets, **rest})


_ALL = (
    _one(
        "resnet",
        "ResNet-50",
        targets=(("v0.5", 0.749), ("v0.6", 0.759)),
        runs=_FIVE,
        variance=_VISION,
        p100_minutes=529_877 / 60,
    ),
    Benchmark(
        "ssd",
        titles=(("v0.5", "SSD"), ("v2.0", "RetinaNet")),
        targets=(("v0.5", 0.212), ("v0.6", 0.230), ("v2.0", 0.340)),
        runs=_FIVE,
        variance=_VISION,
        local_round="v1.1",  # our `ssd` is SSD-ResNet34
    ),
    _one("retinanet", "RetinaNet", 0.340, runs=_FIVE, variance=_VISION),
    _one(
        "maskrcnn",
        "Mask R-CNN",
        0.377,
        figure="BBOX",
        also=(Goal("SEGM", 0.339, metric="SEGM"),),
        runs=_FIVE,
        variance=_VISION,
        p100_minutes=299_971 / 60,
    ),
    _one("unet3d", "3D U-Net", 0.908, runs=(("v0.5", 40),), dropped=4),
    _one("gnmt", "GNMT", targets=(("v0.5", 21.8), ("v0.6", 24.0))),
    _one("transformer", "Transformer", 25.0, p100_minutes=112_187 / 60),
    _one("bert", "BERT", targets=(("v0.5", 0.712), ("v1.0", 0.720))),
    _one("rnnt", "RNN-T", 0.058, direction=Direction.ERROR),
    # 100 runs were made, and the first 50 that converge are scored (see scoring.py).
    _one("ncf", "NCF", 0.635, runs=(("v0.5", 50),), p100_minutes=2_803 / 60),
    # Drafts of 2018 that no round scored: the rules name no number of runs.
    _one("sentiment", "Sentiment analysis", 0.906, p100_minutes=214 / 60),
    _one("deepspeech2", "DeepSpeech2", 0.23, direction=Direction.ERROR, p100_minutes=412_417 / 60),
    _one("dlrm", "DLRM", 0.8025, runs=_FIVE),
    _one("dlrm_dcnv2", "DLRM-DCNv2", 0.80275),
    _one("dlrmv4", "DLRMv4"),
    # Its P100 time is left out: the benchmark changed after it was measured.
    _one("minigo", "MiniGo", targets=(("v0.5", 0.40), ("v0.7", 0.50)), runs=(("v0.5", 20), ("v0.6", 10))),
    _one("gpt3", "GPT-3", 2.69, direction=Direction.LOSS, runs=_THREE),
    _one(
        "stable_diffusion",
        "Stable Diffusion v2",
        90.0,
        direction=Direction.LOSS,
        figure="FID",
        also=(Goal("CLIP", 0.15, metric="CLIP"),),
    ),
    _one("flux1", "FLUX.1", 0.586, direction=Direction.LOSS),
    _one("gnn", "R-GAT", 0.72),
    _one("rgat", "R-GAT", 0.72),
    _one("llama2_70b_lora", "Llama 2 70B LoRA", 0.925, direction=Direction.LOSS),
    _one("llama31_405b", "Llama 3.1 405B", 5.6, direction=Direction.LOSS, runs=_THREE),
    _one("llama31_8b", "Llama 3.1 8B", 3.3, direction=Direction.LOSS),
    _one("gpt_oss_20b", "GPT-OSS 20B", 3.34, direction=Direction.LOSS),
    _one("deepseekv3_671b", "DeepSeek-V3", 3.60, direction=Direction.LOSS, runs=_THREE),
    _one("qwen35_397b_grpo", "Qwen3.5 GRPO", runs=_THREE),
)
BENCHMARKS = {benchmark.key: benchmark for benchmark in _ALL}

_ALIASES = {
    "mask": "maskrcnn",
    "mask_rcnn": "maskrcnn",
    "mask_r_cnn": "maskrcnn",
    "object_detection": "maskrcnn",
    "resnet50": "resnet",
    "resnet_50": "resnet",
    "image_classification": "resnet",
    "single_stage_detector": "ssd",
    "nmt": "gnmt",
    "rnn_translator": "gnmt",
    "translation": "transformer",
    "recommendation": "ncf",
    "sentiment_analysis": "sentiment",
    "reinforcement": "minigo",
    "unet_3d": "unet3d",
    "3d_unet": "unet3d",
    "rnn_t": "rnnt",
    "dlrm_dcn": "dlrm_dcnv2",
    "sd": "stable_diffusion",
}


def find_benchmark(name: str) -> Benchmark | None:
    """The benchmark that a folder or a log calls `name`, None if the rules know none."""
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    return BENCHMARKS.get(_ALIASES.get(key, key))


def benchmark_called(name: str) -> Benchmark:
    """The benchmark of a name; of one that the rules do not know, one that is scored like most."""
    return find_benchmark(name) or _one(name, name)
