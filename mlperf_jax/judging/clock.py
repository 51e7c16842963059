"""Finds the events of a log that are out of order."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence

from mlperf_jax.rounds.log_lines import Event


def out_of_order(events: Sequence[Event], slack_ms: float) -> Iterator[tuple[Event, str]]:
    """The events without which the times of the others do not fall: as few as possible, so that one that is years
    ahead is told, and not the hundred behind it.

    Args:
        events: in order of their lines.
        slack_ms: by how much one may be early unseen, between processes that write one log.

    Yields:
        An event, and in words by how much it is out of order.
    """
    latest = itertools.accumulate((event.time_ms for event in events), max)
    if all(event.time_ms >= most - slack_ms for event, most in zip(events, latest, strict=True)):
        return
    kept = _longest_in_order([event.time_ms for event in events])
    among = set(kept)
    for i, event in enumerate(events):
        if i in among:
            continue
        at = bisect.bisect(kept, i)
        before = events[kept[at - 1]] if at else None
        after = events[kept[at]] if at < len(kept) else None
        if before and before.time_ms - event.time_ms > slack_ms:
            back = (before.time_ms - event.time_ms) / 1e3
            yield event, f"{event.key} is {back:.1f} s before {before.key} in line {before.line}"
        elif after and event.time_ms - after.time_ms > slack_ms:
            ahead = (event.time_ms - after.time_ms) / 1e3
            yield event, f"{event.key} is {ahead:.1f} s after {after.key}, which is only in line {after.line}"


def _longest_in_order(times: Sequence[float]) -> list[int]:
    """Indices of the longest subsequence that nowhere falls; of several the one with the earliest members.

    Patience sorting, from the end: of 10, 9, 11 it keeps 10 and 11.
    """
    ends: list[float] = []  # of the subsequences of each length, the greatest first time, negated
    last: list[int] = []
    after: list[int] = []  # of each time, from the last to the first, the index that follows it
    for i in range(len(times) - 1, -1, -1):
        length = bisect.bisect_right(ends, -times[i])
        after.append(last[length - 1] if length else -1)
        ends[length : length + 1] = [-times[i]]
        last[length : length + 1] = [i]
    kept = []
    at = last[-1] if last else -1
    while at >= 0:
        kept.append(at)
        at = after[len(times) - 1 - at]
    return kept
