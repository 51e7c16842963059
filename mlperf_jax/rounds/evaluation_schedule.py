"""When a training benchmark must be evaluated: more often or less often is no result of the rules.

The official checkers do not look at it. Sources: mlcommons/training_policies, training_rules.adoc, one revision
per round, tables "Evaluation frequency"; and mlcommons/training, "Evaluation frequency" in each README.

How exactly: "The quality measure must be evaluated at least as frequently (in terms of number of training items
between test sets) [...] as in the reference implementation" held until 13 May 2021 (revision 47ef1fd), when the
runs of v1.0 were made: until then more often is right. Since then it is "at the same frequency", and "the required
evaluation point may be rounded up to the nearest batch size". Before the first step anybody may evaluate (bert's
README: "starting from 0 samples [...] could be skipped").
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
_LAST_AT_LEAST = "v1.0"  # the last round whose rules let evaluate more often
_ALMOST_ONE = 0.99
_SMALL = 0.06  # epochs: who logs epochs of whole steps as whole numbers of true ones has steps of less


@dataclasses.dataclass(frozen=True)
class Every:
    """Evaluations at equal distances.

    Attributes:
        interval: between two of them, in `unit`.
        first: least and most of the first; None where the first is one interval.
        unit: "epoch" or "samples".
        per_sample: what a sample counts in `unit`, where that is not 1.
        words: the rule, for people.
        more: whether more often is right too.
    """

    interval: float
    words: str
    first: tuple[float, float] | None = None
    unit: str = "epoch"
    per_sample: int = 1
    more: bool = False


@dataclasses.dataclass(frozen=True)
class At:
    """Evaluations at given epochs at least, up to the one that reaches the target; `interval`: the least between two."""

    epochs: tuple[float, ...]
    words: str
    interval: float = 5
    unit: str = "epoch"
    per_sample: int = 1


Schedule = Every | At
_Rule = Callable[[int], Schedule | tuple[Schedule, ...]]


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
        # Each is after whole batches, so that those that are left out may come later than so many samples.
        last = math.ceil(interval / batch) * batch * (skipped + 1)
        return Every(interval, words, (interval, last), "samples")

    return schedule


def _bert(batch: int) -> Every:
    interval = 25_000 * math.floor(0.05 * (230.23 * batch + 3_000_000) / 25_000)
    return Every(interval, f"every {interval:,} samples at this batch size", unit="samples")


def _resnet(batch: int) -> Every:
    """ "Every 4 epochs with offset 0 or 1 or 2 or 3" (rules); "the first evaluation can happen after 1, 2, 3, or 4" (README)."""
    return Every(4, "every 4 epochs, the first after 1 to 4", (1, 4))


def _gpt3(batch: int) -> Every:
    return Every(24_576 * _GPT3_TOKENS, "every 24,576 sequences", unit="samples", per_sample=_GPT3_TOKENS)


def _unet(batch: int) -> tuple[Every, ...]:
    """ "Starting at CEILING(1000*168/samples_per_epoch) epochs, then every CEILING(20*168/samples_per_epoch) epochs."

    samples_per_epoch is what an epoch processes: the rules pad its last batch, the reference drops it ("The last batch
    of 8 is dropped", first at 1050 of batch 32), and where it "may be composed of the remaining samples" or mixed
    with the next epoch's it is all 168, as in most published logs of batch 48, 60 or 80.
    """
    padded, dropped = math.ceil(_KITS / batch) * batch, _KITS // batch * batch
    sizes = dict.fromkeys(size for size in (_KITS, padded, dropped) if size)
    found = ((math.ceil(1000 * _KITS / size), math.ceil(20 * _KITS / size)) for size in sizes)
    return tuple(
        Every(interval, f"at epoch {first}, then every {interval} epochs", (first, first))
        for first, interval in found
    )


def _ssd(batch: int) -> tuple[Schedule, ...]:
    """ "Fixed at epochs=40, 50, 55, 60, 65, 70, 75, 80" (rules); "Every 5th epoch, starting with epoch 5" (README)."""
    fixed = At((40, 50, 55, 60, 65, 70, 75, 80), "at epochs 40, 50, 55, 60, 65, 70, 75 and 80")
    return fixed, Every(5, "every 5 epochs")


def _dcnv2(batch: int) -> Every:
    interval = math.floor(_CRITEO / (batch * 20)) * batch / _CRITEO
    return Every(interval, "every 1/20 epoch, in whole steps")


# (first round, rule) in order; None where nothing general can be said.
_RULES: dict[str, tuple[tuple[str, _Rule | None], ...]] = {
    "resnet": (("v0.5", None), ("v0.6", _resnet)),
    "ssd": (("v0.5", None), ("v0.7", _ssd), ("v1.1", _epochs(5)), ("v2.0", _epochs(1))),
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


def find_schedules(benchmark: str, round_name: str, batch_size: int) -> tuple[Schedule, ...]:
    """The evaluation schedules of a benchmark in a round, of which a run follows one.

    Returns:
        None of them where the rules leave it open or none is known.
    """
    at = ROUNDS.index(round_name) if round_name in ROUNDS else len(ROUNDS)
    known = [rule for first, rule in _RULES.get(benchmark, ()) if ROUNDS.index(first) <= at]
    rule = known[-1] if known else None
    if rule is None or batch_size <= 0:
        return ()
    found = rule(batch_size)
    found = found if isinstance(found, tuple) else (found,)
    # U-Net's rule says itself when not to evaluate.
    if at > ROUNDS.index(_LAST_AT_LEAST) or benchmark == "unet3d":
        return found
    return tuple(dataclasses.replace(one, more=True) if isinstance(one, Every) else one for one in found)


def breaches(
    schedules: Sequence[Schedule],
    done: Sequence[float],
    slack: Callable[[Schedule], float],
    step: float = 0.0,
) -> list[tuple[int, str]]:
    """Evaluations that are not where the schedule has them, of several schedules that which fits best.

    Args:
        schedules: what may be.
        done: epochs (or samples) trained at each evaluation, in order.
        slack: by how much one may be off: a step is evaluated whole.
        step: what one step trains, in the same unit; 0.0 where that is not known.

    Returns:
        Index of each such evaluation, and what is wrong with it.
    """
    found = [list(_breaches(schedule, done, slack(schedule), step)) for schedule in schedules]
    return min(found, key=len, default=[])


def _breaches(
    schedule: Schedule, done: Sequence[float], slack: float, step: float
) -> Iterator[tuple[int, str]]:
    if not done:
        return
    if isinstance(schedule, At):
        for want in schedule.epochs:
            later = next((i for i, at in enumerate(done) if at > want + slack), None)
            if later is not None and all(abs(at - want) > slack for at in done):
                yield (
                    later,
                    f"evaluated at {done[later]:g} and not at {want:g}, and the rules evaluate {schedule.words}",
                )
        return
    # Logged as whole numbers epochs fit exactly, but for the one that epochs of whole steps may be ahead in the end.
    whole = schedule.unit == "epoch" and all(float(at).is_integer() for at in (*done, schedule.interval))
    slack = min(slack, _ALMOST_ONE) if whole else slack
    drift = schedule.interval * (math.ceil(1 / step) * step - 1) if whole and 0 < step < _SMALL else 0.0
    least, most = schedule.first or (schedule.interval, schedule.interval)
    if done[0] > most + slack or (done[0] < least - slack and not schedule.more):
        yield 0, f"first evaluated at {done[0]:g}, and the rules evaluate {schedule.words}"
    since, count = done[0], 0  # the last evaluation from which all fit, and how many there were
    for i, (before, at) in enumerate(itertools.pairwise(done), 1):
        count += 1
        off, off_in_all = at - before - schedule.interval, at - since - count * schedule.interval
        if abs(off) <= slack or (whole and 0 <= off_in_all < 0.9 + count * drift):
            continue
        since, count = at, 0
        if off > 0 or not schedule.more:
            yield i, f"evaluated at {at:g} after {before:g}, and the rules evaluate {schedule.words}"
