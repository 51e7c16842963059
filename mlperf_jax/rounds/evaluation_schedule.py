"""When a training benchmark must be evaluated: more often or less often is no result of the rules.

The official checkers do not look at it. Sources: training_rules.adoc, "Benchmarks" (one revision per
round), and the references in mlcommons/training.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from mlperf_jax.rounds.training_rules import ROUNDS

_CRITEO = 4_195_197_692  # samples of Criteo 1TB's days that are trained on
_KITS = 168
_GPT3_TOKENS = 2048  # of a sample; its logs count tokens


@dataclasses.dataclass(frozen=True)
class Every:
    """Evaluations at equal distances.

    Attributes:
        interval: between two of them, in `unit`.
        first: least and most of the first; None where the first is one interval.
        unit: "epoch" or "samples".
        per_sample: what a sample counts in `unit`, where that is not 1.
        words: the rule, for people.
    """

    interval: float
    words: str
    first: tuple[float, float] | None = None
    unit: str = "epoch"
    per_sample: int = 1


@dataclasses.dataclass(frozen=True)
class At:
    """Evaluations at given epochs, up to the one that reaches the target; `interval`: the least between two."""

    epochs: tuple[float, ...]
    words: str
    interval: float = 5
    unit: str = "epoch"
    per_sample: int = 1


Schedule = Every | At
_Rule = Callable[[int], Schedule]


def _epochs(interval: float, first: tuple[float, float] | None = None) -> _Rule:
    words = "every epoch" if interval == 1 else f"every {interval:g} epochs"
    return lambda batch: Every(interval, words, first)


def _samples(interval: int) -> _Rule:
    return lambda batch: Every(interval, f"every {interval:,} samples", unit="samples")


def _skipping(interval: int, share: float, more: int) -> _Rule:
    """Every `interval` samples, where the first floor(share * batch size + more) evaluations may be left out."""

    def schedule(batch: int) -> Every:
        skipped = math.floor(share * batch + more)
        words = f"every {interval:,} samples, the first {skipped} of them left out"
        return Every(interval, words, (interval, interval * (skipped + 1)), "samples")

    return schedule


def _bert(batch: int) -> Every:
    interval = 25_000 * math.floor(0.05 * (230.23 * batch + 3_000_000) / 25_000)
    return Every(interval, f"every {interval:,} samples at this batch size", unit="samples")


def _resnet(batch: int) -> Every:
    return Every(4, "every 4 epochs, the first after 1 to 4", (1, 4))


def _gpt3(batch: int) -> Every:
    return Every(24_576 * _GPT3_TOKENS, "every 24,576 sequences", unit="samples", per_sample=_GPT3_TOKENS)


def _unet(batch: int) -> Every:
    per_epoch = math.ceil(_KITS / batch) * batch if batch > _KITS else _KITS
    first, interval = math.ceil(1000 * _KITS / per_epoch), math.ceil(20 * _KITS / per_epoch)
    return Every(interval, f"at epoch {first}, then every {interval} epochs", (first, first))


def _ssd_epochs(batch: int) -> At:
    return At((40, 50, 55, 60, 65, 70, 75, 80), "at epochs 40, 50, 55, 60, 65, 70, 75 and 80")


def _dcnv2(batch: int) -> Every:
    interval = math.floor(_CRITEO / (batch * 20)) * batch / _CRITEO
    return Every(interval, "every 1/20 epoch, in whole steps")


# (first round, rule) in order; None where nothing general can be said.
_RULES: dict[str, tuple[tuple[str, _Rule | None], ...]] = {
    "resnet": (("v0.5", None), ("v0.6", _resnet)),
    "ssd": (("v0.5", None), ("v0.7", _ssd_epochs), ("v1.1", _epochs(5)), ("v2.0", _epochs(1))),
    "retinanet": (("v5.0", _epochs(1)),),
    "maskrcnn": (("v0.5", _epochs(1)),),
    "gnmt": (("v0.5", _epochs(1)),),
    "transformer": (("v0.5", _epochs(1)),),
    "rnnt": (("v1.0", _epochs(1)),),
    "dlrm": (("v0.7", lambda batch: Every(0.05, "every 1/20 epoch", (0, 1.05))),),
    "dlrm_dcnv2": (("v3.0", _dcnv2),),
    "bert": (("v0.7", None), ("v1.0", _bert)),
    "unet3d": (("v1.0", _unet),),
    "gpt3": (("v3.0", _gpt3),),
    "llama2_70b_lora": (("v4.0", _skipping(384, 0.125, 2)),),
    "llama31_405b": (("v5.0", _samples(46_080)), ("v5.1", _skipping(18_432, 0.0026, 12))),
    "llama31_8b": (("v5.1", _samples(12_288)),),
    "gpt_oss_20b": (("v6.0", _samples(12_288)),),
    "flux1": (("v5.1", _samples(262_144)),),
}


def find_schedule(benchmark: str, round_name: str, batch_size: int) -> Schedule | None:
    """The evaluation schedule of a benchmark in a round; None where the rules leave it open or none is known."""
    at = ROUNDS.index(round_name) if round_name in ROUNDS else len(ROUNDS)
    known = [rule for first, rule in _RULES.get(benchmark, ()) if ROUNDS.index(first) <= at]
    rule = known[-1] if known else None
    return rule(batch_size) if rule and batch_size > 0 else None


def breaches(schedule: Schedule, done: Sequence[float], slack: float) -> Iterator[tuple[int, str]]:
    """Evaluations that are not where the schedule has them.

    Args:
        schedule: what should be.
        done: epochs (or samples) trained at each evaluation, in order.
        slack: by how much one may be off: a step is evaluated whole.

    Yields:
        Index of the evaluation, and what is wrong with it.
    """
    if not done:
        return
    if isinstance(schedule, At):
        for i, at in enumerate(done):
            want = schedule.epochs[i] if i < len(schedule.epochs) else None
            if want is None or abs(at - want) > slack:
                yield i, f"evaluated at {at:g}, and the rules evaluate {schedule.words}"
        return
    least, most = schedule.first or (schedule.interval, schedule.interval)
    if not least - slack <= done[0] <= most + slack:
        yield 0, f"first evaluated at {done[0]:g}, and the rules evaluate {schedule.words}"
    for i, (before, at) in enumerate(itertools.pairwise(done), 1):
        if abs(at - before - schedule.interval) > slack:
            yield i, f"evaluated at {at:g} after {before:g}, and the rules evaluate {schedule.words}"
