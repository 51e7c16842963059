"""What a log says of quality: the figures of each evaluation, and the goals they are held against.

A benchmark has one figure or several: Mask R-CNN logs {"BBOX": 0.378, "SEGM": 0.341} as one value, Stable
Diffusion FID and CLIP of a checkpoint in events of their own. Whether they are reached is asked of `goals`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from mlperf_jax.goals import Direction, Goal
from mlperf_jax.rounds.objects import number
from mlperf_jax.rounds.training_rules import Benchmark

EVALS = ("eval_accuracy", "eval_error")
_TARGETS = ("quality_target", "eval_target")


class Told(Protocol):
    """An event of a log, whoever read it."""

    @property
    def key(self) -> str: ...
    @property
    def value(self) -> Any: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...


E = TypeVar("E", bound=Told)
E_co = TypeVar("E_co", bound=Told, covariant=True)


class Log(Protocol[E_co]):
    """A log, as far as its goals go."""

    @property
    def ours(self) -> bool: ...
    def first(self, key: str) -> E_co | None: ...


@dataclasses.dataclass(frozen=True)
class Evaluated(Generic[E]):
    """One evaluation. event: the first that tells of it. found: figures. epoch: epochs or samples, as logged."""

    event: E
    found: dict[str, float]
    epoch: float | None


def evaluations(events: Iterable[E]) -> list[Evaluated[E]]:
    """The evaluations that events tell of, in order; what holds no number is left out.

    Figures that are logged apart, each with its `metric`, are those of one evaluation where they are of one step.
    """
    found: list[Evaluated[E]] = []
    apart: dict[float, int] = {}  # step -> where in `found` its figures are gathered
    for event in (event for event in events if event.key in EVALS):
        nested = isinstance(event.value, dict) and "value" in event.value  # v0.5
        value, about = (event.value["value"], event.value) if nested else (event.value, event.metadata)
        if number(value) is None:
            continue
        metric = about.get("metric")
        named = isinstance(metric, str) and not isinstance(value, dict)
        told = numbers({metric: value} if named else value)
        epoch = _epoch(about, steps=named)
        if named and epoch is not None:
            at = apart.setdefault(epoch, len(found))
            if at < len(found) and not found[at].found.keys() & told.keys():
                found[at] = dataclasses.replace(found[at], found=found[at].found | told)
                continue
        found.append(Evaluated(event, told, epoch))
    return found


def _epoch(about: Mapping[str, Any], *, steps: bool) -> float | None:
    names = ("samples_count", "epoch_num", "epoch", *(["step_num"] if steps else []))
    return next((n for n in (number(about.get(name)) for name in names) if n is not None), None)


def find_goals(
    log: Log[Told],
    benchmark: Benchmark,
    round_name: str,
    found: Sequence[Mapping[str, float] | float],
    *,
    by_rules: bool = True,
) -> tuple[Goal, ...]:
    """What a run had to reach: as its log says, else the rules, in the unit in which it gives its figures.

    BLEU is logged as 24.0 or as 0.24. Runs of our own log their targets in the unit of their figures, and which way
    they go where that is not as the rules have it.

    Args:
        log: of the run.
        benchmark, round_name: whose rules hold.
        found: of its evaluations.
        by_rules: whether the rules' targets hold for it where it names none.

    Returns:
        Nothing where no target is known.
    """
    rules = benchmark.goals(round_name)
    event = target_event(log)
    if event is None:
        goals = rules if by_rules else ()
    else:
        goals = told_goals(event.value, event.metadata, rules)
        if len(rules) > 1 and len(goals) == 1 and not log.ours:
            goals = (dataclasses.replace(rules[0], target=goals[0].target), *rules[1:])
    if log.ours and event:
        return goals
    return tuple(in_unit(goal, [figures(goals, one)[goal.name] for one in found]) for goal in goals)


def target_event(log: Log[E]) -> E | None:
    """Where a log names its target."""
    events = (event for key in _TARGETS if (event := log.first(key)))
    return next((event for event in events if number(event.value) is not None), None)


def told_goals(targets: Any, about: Mapping[str, Any], rules: Sequence[Goal] = ()) -> tuple[Goal, ...]:
    """The goals that a record of a run tells.

    Args:
        targets: a number, or {name: number}.
        about: what else it says: `metric` and `direction`, of all or by name.
        rules: whose direction holds where it does not say.
    """
    named = numbers(targets)
    return tuple(
        _goal(name, target, about, _rule(name, rules, alone=len(named) == 1))
        for name, target in named.items()
    )


def figures(goals: Sequence[Goal], found: Any) -> dict[str, float]:
    """The figures of one evaluation by the names of the goals; NaN where it tells none."""
    named = {name.casefold(): value for name, value in numbers(found).items()}
    other = next(iter(named.values()), math.nan) if len(goals) == 1 else math.nan
    return {goal.name: named.get(goal.name.casefold(), other) for goal in goals}


def numbers(value: Any) -> dict[str, float]:
    """The numbers in a value by name; one that stands alone is "quality"."""
    told = value if isinstance(value, dict) else {"quality": value}
    pairs = ((str(name), number(item)) for name, item in told.items())
    return {name: n for name, n in pairs if n is not None}


def _rule(name: str, rules: Sequence[Goal], *, alone: bool) -> Goal:
    if alone and len(rules) == 1:
        return dataclasses.replace(rules[0], name=name)
    return next((rule for rule in rules if rule.name.casefold() == name.casefold()), Goal(name, math.nan))


def _goal(name: str, target: float, about: Mapping[str, Any], rule: Goal) -> Goal:
    def said(key: str) -> Any:
        told = about.get(key)
        if isinstance(told, dict) and name == "quality" and len(told) == 1:
            (told,) = told.values()  # of the only goal, whatever its name
        return told.get(name) if isinstance(told, dict) else told

    direction, metric = said("direction"), said("metric")
    known = isinstance(direction, str) and direction in list(Direction)
    return Goal(
        name,
        target,
        Direction(direction) if known else rule.direction,
        metric if isinstance(metric, str) else rule.metric,
    )


def in_unit(goal: Goal, found: Sequence[float]) -> Goal:
    """A goal that rises, as a share or in per cent as the best of its figures is."""
    best = goal.best(found)
    if goal.direction.falls or not best > 0:
        return goal
    if goal.target > 1.5 and best <= 1:
        return dataclasses.replace(goal, target=goal.target / 100)
    if goal.target <= 1 and best > 1.5:
        return dataclasses.replace(goal, target=goal.target * 100)
    return goal
