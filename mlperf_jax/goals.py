"""What a model must reach: figures with their targets, that rise or fall.

One question, `reached`, for the training loop, inference, judging, reports and progress.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping, Sequence


class Direction(enum.StrEnum):
    """Where a figure goes as a model gets better.

    An `ERROR` is a share of mistakes, 1 less an accuracy, as the word error rate. A `LOSS` is any other
    figure that falls, as log perplexity.
    """

    HIGHER = "higher"
    ERROR = "error"
    LOSS = "loss"

    @property
    def falls(self) -> bool:
        return self is not Direction.HIGHER


@dataclasses.dataclass(frozen=True)
class Goal:
    """One figure and its target.

    Attributes:
        name: of the figure in an evaluation, and in MLPerf's log where there are several.
        target: what it must be at least or, where it falls, at most.
        direction: where it goes.
        metric: its name for people.
    """

    name: str
    target: float
    direction: Direction = Direction.HIGHER
    metric: str = "quality"

    def reached(self, figure: float) -> bool:
        """Whether a figure is good enough; NaN never is."""
        return figure <= self.target if self.direction.falls else figure >= self.target

    def best(self, figures: Iterable[float]) -> float:
        """The best of some figures; NaN where there is none."""
        known = [figure for figure in figures if not math.isnan(figure)]
        return (min if self.direction.falls else max)(known, default=math.nan)

    def share(self, figure: float, share: float) -> Goal:
        """The goal to be `share` as good as `figure`.

        Of a figure that rises that is its product with `share`; of an error the same of 1 less the error; a
        loss may be larger by what `share` lacks to 1: at 0.99, 1 percent.

        >>> Goal("WER", 0.06, Direction.ERROR).share(0.05, 0.99).target
        0.0595
        """
        match self.direction:
            case Direction.HIGHER:
                target = share * figure
            case Direction.ERROR:
                target = 1 - share * (1 - figure)
            case Direction.LOSS:
                target = (2 - share) * figure
        return dataclasses.replace(self, target=target)


Quality = float | dict[str, float]
"""The figure of a single goal, or those of several by name: as logs and result files have it."""


def reached(goals: Sequence[Goal], figures: Mapping[str, float]) -> bool:
    """Whether one evaluation reaches them all."""
    return all(goal.reached(figures[goal.name]) for goal in goals)


def quality(goals: Sequence[Goal], figures: Mapping[str, float]) -> Quality:
    """The figures of the goals; NaN where there are none yet."""
    found = {goal.name: float(figures.get(goal.name, math.nan)) for goal in goals}
    return found if len(goals) > 1 else found[goals[0].name]


def figures(goals: Sequence[Goal], found: Quality) -> dict[str, float]:
    """The inverse of `quality`."""
    return found if isinstance(found, dict) else {goals[0].name: found}


def targets(goals: Sequence[Goal]) -> Quality:
    """The targets, in the form of `quality`."""
    return quality(goals, {goal.name: goal.target for goal in goals})


def shown(goals: Sequence[Goal], figures: Mapping[str, float]) -> str:
    """For people: "top-1 accuracy 0.9078 of 0.9000", and so for each."""
    return ", ".join(f"{goal.metric} {figures[goal.name]:.4f} of {goal.target:.4f}" for goal in goals)
