"""Two folders of results side by side: what both have measured, and by how much they differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from mlperf_jax.reporting.runs import columns
from mlperf_jax.reporting.tables import amount, figure
from mlperf_jax.rounds.collect import Result
from mlperf_jax.rounds.inference_logs import InferenceRun

Item = TypeVar("Item", Result, InferenceRun)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One measurement in both folders.

    Attributes:
        what: benchmark or scenario, and the system where both have the same one.
        first, second: figures with units, and what must be known with them.
        ratio: the second over the first; None where one of them has no figure.
    """

    what: str
    first: str
    second: str
    ratio: float | None

    @property
    def change(self) -> str:
        return "" if self.ratio is None else f"{self.ratio:.3f}"


def pairs(
    roots: Sequence[Path], results: Sequence[Result], inference: Sequence[InferenceRun]
) -> tuple[Pair, ...]:
    """What the two roots can be compared by; nothing where there are not two.

    The same benchmark of the same preset on the same system is one pair; where the systems differ, and
    each folder has one left, these are. Likewise the same scenario and mode of a model.
    """
    if len(roots) != 2 or roots[0] == roots[1]:
        return ()
    trained = _matched(roots, results, lambda r: (r.rules.key, r.title, r.mini), lambda r: r.system)
    served = _matched(roots, inference, lambda r: (r.model, r.scenario, r.mode), lambda r: r.system)
    return (*(_training(a, b) for a, b in trained), *(_inference(a, b) for a, b in served))


def _matched(
    roots: Sequence[Path],
    items: Sequence[Item],
    kind: Callable[[Item], Hashable],
    system: Callable[[Item], str],
) -> Iterator[tuple[Item, Item]]:
    """Pairs of the same kind, first those of one system."""
    sides: list[dict[Hashable, dict[str, Item]]] = [{}, {}]
    for item in items:
        # The deeper root, should one lie in the other.
        at = max(
            (i for i, root in enumerate(roots) if item.path.is_relative_to(root)),
            key=lambda i: len(roots[i].parts),
            default=None,
        )
        if at is not None:
            sides[at].setdefault(kind(item), {}).setdefault(system(item), item)
    for key, first in sides[0].items():
        second = sides[1].get(key, {})
        for name in first.keys() & second.keys():
            yield first.pop(name), second.pop(name)
        if len(first) == len(second) == 1:
            yield next(iter(first.values())), next(iter(second.values()))


def _names(first: str, second: str) -> str:
    return first if first == second else f"{first} / {second}"


def _training(first: Result, second: Result) -> Pair:
    what = f"{first.title}{' (mini)' if first.mini else ''}, {_names(first.system, second.system)}"
    minutes = [result.score.minutes or result.score.mean_minutes for result in (first, second)]
    return Pair(what, _time(first), _time(second), _ratio(*minutes))


def _time(result: Result) -> str:
    """The score, or what stands for it."""
    score = result.score
    if score.minutes is not None:
        return f"{figure(score.minutes)} min"
    if score.mean_minutes is not None:
        return f"{figure(score.mean_minutes)} min (mean of {score.converged}, no score: {score.reason})"
    return f"no score: {score.reason}"


def _inference(first: InferenceRun, second: InferenceRun) -> Pair:
    what = f"{first.model} {first.scenario} {first.mode}, {_names(first.system, second.system)}"
    return Pair(what, _served(first), _served(second), _ratio(first.value, second.value))


def _served(run: InferenceRun) -> str:
    if run.value is None:
        return "; ".join(run.accuracy) or "no figure"
    verdict = "" if run.valid is None else " VALID" if run.valid else " INVALID"
    return f"{amount(run.value)} {run.unit}{verdict}"


def _ratio(first: float | None, second: float | None) -> float | None:
    return second / first if first and second else None


def to_text(found: Sequence[Pair], names: Sequence[str]) -> str:
    """The pairs for a terminal; names: of the two folders."""
    rows = [("measured", *names, "second / first")]
    rows += [(pair.what, pair.first, pair.second, pair.change or "-") for pair in found]
    return "\n".join(["Side by side", *columns(rows)])
