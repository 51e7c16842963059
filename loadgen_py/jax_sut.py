"""Systems under test made of compiled JAX functions.

`InlineSut` answers within the call that issues, for one query at a time; `BatchingSut` has threads
that form batches of whatever waits. Both stamp an answer once it is on the host. A batch has samples of
one bucket.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from loadgen_py.replica import Ids, Part, Replica, Samples
from loadgen_py.responses import Responses

_PATIENCE_SECONDS = 5.0  # for a call to end


class InlineSut:
    """Answers each query before `issue` returns: SingleStream and MultiStream.

    A thread of its own would cost two switches of threads a query. With several replicas a query
    is divided over them, each bucket of it.
    """

    def __init__(self, name: str, replicas: Sequence[Replica], samples: Samples) -> None:
        self.name = name
        self._replicas, self._samples = list(replicas), samples

    def start(self, responses: Responses) -> None:
        self._responses = responses

    def issue(self, ids: Ids, indices: np.ndarray) -> None:
        parts = self._samples.parts(ids, indices)
        if len(ids) == 1 or len(parts) == len(self._replicas) == 1:
            ((bucket, ids, slots),) = parts
            answers = self._replicas[0].answer(bucket, self._samples.rows(bucket, slots))
            self._responses.complete(ids, self._samples.entries(bucket, slots, answers))
            return
        turn = itertools.cycle(self._replicas)
        started = [list(self._started(bucket, slots, turn)) for bucket, _, slots in parts]
        for (bucket, ids, slots), pieces in zip(parts, started, strict=True):
            answers = np.concatenate([np.asarray(batch)[:count] for batch, count in pieces])
            self._responses.complete(ids, self._samples.entries(bucket, slots, answers))

    def _started(self, bucket: str, slots: np.ndarray, turn: Iterator[Replica]) -> Iterator[tuple[Any, int]]:
        """Divides samples over the replicas, whose turn goes on; yields answers under way and how many rows they are."""
        for piece in np.array_split(slots, min(len(self._replicas), len(slots))):
            rows = self._samples.rows(bucket, piece)
            yield next(turn).start(bucket, rows), len(rows)

    def flush(self) -> None:
        pass


class BatchingSut:
    """Threads take what waits, oldest first, as one batch: Server and Offline.

    A free thread waits for nothing: under load batches grow by themselves, for more arrives while
    all are at work. Where a full batch waits, a thread starts it before it fetches the answers of the
    one before, so that gathering, transfer and fetching overlap computation. Of several buckets the one
    whose oldest sample has waited longest comes next, so that none starves.

    Args:
        name: what the logs call it.
        replicas: all compiled and timed for the same batch sizes.
        samples: the library.
        threads: to each replica; with two, also batches that are not full overlap.
        latency_budget_s: the bound on latencies. Batches are only so large that a sample that just
            missed one is answered with the next of its bucket in time: both calls, and one of every other
            bucket between them, within the budget. None sets no limit.
        max_wait_s: how long a batch that is not full waits for more samples.

    Attributes:
        batches: samples in a batch -> how many such there were, since `start`.
    """

    def __init__(
        self,
        name: str,
        replicas: Sequence[Replica],
        samples: Samples,
        *,
        threads: int = 1,
        latency_budget_s: float | None = None,
        max_wait_s: float = 0.0,
    ) -> None:
        self.name = name
        self._samples = samples
        self._max_wait_ns = int(max_wait_s * 1e9)
        self._lock = threading.Lock()  # guards all below
        self._ready = threading.Condition(self._lock)  # something waits
        self._drained = threading.Condition(self._lock)  # nothing waits, nobody works
        calls = 1 + len(samples.buckets)
        self._queues = {
            bucket: _Queue(
                bucket,
                _BatchSize(replicas[0].seconds[bucket], latency_budget_s, calls, samples.most_rows[bucket]),
            )
            for bucket in samples.buckets
        }
        self._count = 0  # rows in all queues
        self._working = 0  # batches under way
        self._flushing = self._closed = False
        self._failure: BaseException | None = None
        self.batches: dict[int, int] = {}
        self._threads = [
            threading.Thread(target=self._work, args=(replica,), name=f"sut-{r}-{t}", daemon=True)
            for r, replica in enumerate(replicas)
            for t in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads after the batches that they work on; one that hangs is left behind."""
        with self._lock:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(_PATIENCE_SECONDS)

    def start(self, responses: Responses) -> None:
        with self._lock:
            self._responses = responses
            self._forget()
            self._flushing, self._failure = False, None
            self.batches = {}

    def issue(self, ids: Ids, indices: np.ndarray) -> None:
        parts = self._samples.parts(ids, indices)
        now = time.perf_counter_ns()
        with self._lock:
            self._raise_failure()
            self._flushing = False
            for bucket, its_ids, slots in parts:
                self._count += self._queues[bucket].add(
                    its_ids, slots, self._samples.sizes(bucket, slots), now
                )
            self._ready.notify()

    def flush(self) -> None:
        """Returns once everything is answered.

        Raises:
            Exception: what a call raised.
        """
        with self._lock:
            self._flushing = True
            self._ready.notify_all()
            while (self._count or self._working) and not self._failure:
                self._drained.wait()
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    def _work(self, replica: Replica) -> None:
        """Starts batches and fetches answers, in the same order; while a full batch waits, two are under way."""
        under_way: deque[tuple[Part, int, Any]] = deque()
        while True:
            batch = self._take(wait=not under_way)
            if not batch and not under_way:
                return
            try:
                if batch:
                    bucket, _, slots = batch
                    rows = self._samples.rows(bucket, slots)
                    under_way.append((batch, len(rows), replica.start(bucket, rows)))
                if len(under_way) == 2 or not batch:
                    (bucket, ids, slots), count, answers = under_way[0]
                    answers = np.asarray(answers)[:count]
                    self._responses.complete(ids, self._samples.entries(bucket, slots, answers))
                    under_way.popleft()
                    self._ended(1)
            except BaseException as error:  # told to LoadGen by the next `issue` or `flush`
                not_started = bool(batch and len(under_way) < 2)  # it was the batch's start that raised
                self._ended(len(under_way) + not_started, error)
                under_way.clear()

    def _take(self, *, wait: bool) -> Part | None:
        """A batch: waits for one, or takes none that is not full; None at the end."""
        with self._lock:
            while not (queue := self._next()):
                if self._closed or not wait:
                    return None
                self._ready.wait(self._wait_left_s())
            if self._closed or not (wait or self._flushing or queue.count >= queue.largest):
                return None
            rows, batch = queue.cut()
            self._count -= rows
            size = len(batch[2])
            self.batches[size] = self.batches.get(size, 0) + 1
            self._working += 1
            if self._count:
                self._ready.notify()
            return batch

    def _ended(self, batches: int, failure: BaseException | None = None) -> None:
        """Batches are not under way any more; after a failure nothing that waits is begun."""
        with self._lock:
            self._working -= batches
            if failure:
                self._failure = failure
                self._forget()
            if self._failure or not (self._count or self._working):
                self._drained.notify()

    def _forget(self) -> None:
        for queue in self._queues.values():
            queue.clear()
        self._count = 0

    def _next(self) -> _Queue | None:
        """The bucket of the next batch; None where nothing waits, or all may wait for more."""
        found = None
        for queue in self._queues.values():
            if queue.count and (found is None or queue.since < found.since) and self._may_go(queue):
                found = queue
        return found

    def _may_go(self, queue: _Queue) -> bool:
        return (
            self._flushing
            or queue.count >= queue.largest
            or not self._max_wait_ns
            or time.perf_counter_ns() - queue.since >= self._max_wait_ns
        )

    def _wait_left_s(self) -> float | None:
        """Until the oldest sample may wait no longer; None where nothing waits."""
        if not self._count:
            return None
        oldest = min(queue.since for queue in self._queues.values() if queue.count)
        return max(oldest + self._max_wait_ns - time.perf_counter_ns(), 0) / 1e9


class _Queue:
    """What waits of one bucket, oldest first.

    Attributes:
        count: rows.
        largest: so many make a full batch.
    """

    def __init__(self, bucket: str, choose: _BatchSize) -> None:
        self._bucket, self._choose = bucket, choose
        self._waiting: deque[tuple[Ids, np.ndarray, np.ndarray | None, int]] = deque()
        self.count, self.largest = 0, choose.largest

    @property
    def since(self) -> int:
        """When the oldest came, by `time.perf_counter_ns`."""
        return self._waiting[0][3]

    def add(self, ids: Ids, slots: np.ndarray, sizes: np.ndarray | None, now: int) -> int:
        """Takes samples of `sizes` rows, None for one each; how many rows they are."""
        self._waiting.append((ids, slots, sizes, now))
        rows = len(slots) if sizes is None else int(sizes.sum())
        self.count += rows
        return rows

    def clear(self) -> None:
        self._waiting.clear()
        self.count = 0

    def cut(self) -> tuple[int, Part]:
        """Takes out the oldest samples, as many as fit into the best batch; how many rows they are, and they."""
        sizes = self._waiting[0][2]
        size = left = self._choose(self.count, 1 if sizes is None else int(sizes[0]))
        ids_parts, slots_parts = [], []
        while left and self._waiting:
            ids, slots, sizes, since = self._waiting.popleft()
            fit, rows = _fitting(len(slots), sizes, left)
            if fit < len(slots):
                rest = None if sizes is None else sizes[fit:]
                self._waiting.appendleft((ids[fit:], slots[fit:], rest, since))
                ids, slots = ids[:fit], slots[:fit]
                size -= left - rows  # no more whole samples fit
                left = 0
            else:
                left -= rows
            if fit:
                ids_parts.append(ids)
                slots_parts.append(slots)
        self.count -= size
        if len(ids_parts) == 1:
            return size, (self._bucket, ids_parts[0], slots_parts[0])
        return size, (self._bucket, _joined(ids_parts), np.concatenate(slots_parts))


def _fitting(count: int, sizes: np.ndarray | None, most: int) -> tuple[int, int]:
    """How many of the first of `count` samples have at most so many rows together, and how many they have."""
    if sizes is None:
        return min(count, most), min(count, most)
    if count == 1:
        rows = int(sizes[0])
        return (1, rows) if rows <= most else (0, 0)
    ends = np.cumsum(sizes[:most])
    fit = int(np.searchsorted(ends, most, "right"))
    return fit, int(ends[fit - 1]) if fit else 0


class _BatchSize:
    """How many of the rows that wait make the next batch.

    Args:
        seconds: batch size -> what a call takes.
        budget_s: so many calls must fit into it; those that a single sample needs are used whatever they take.
        calls: how many.
        most_rows: of a sample.

    Attributes:
        largest: the batch size with the most rows a second, among those that fit and hold any sample.
    """

    def __init__(
        self, seconds: Mapping[int, float], budget_s: float | None, calls: int = 2, most_rows: int = 1
    ) -> None:
        most_s = math.inf if budget_s is None else budget_s / calls
        alone = min(b for b in seconds if b >= most_rows)
        fits = {b: s for b, s in seconds.items() if s <= most_s or b <= alone}
        self.largest = max((b for b in fits if b >= alone), key=lambda b: b / fits[b])
        self._seconds = {b: s for b, s in sorted(fits.items()) if b <= self.largest}

    def __call__(self, waiting: int, oldest: int = 1) -> int:
        """All that wait, padded to the next batch size, or a full one of those below: the faster a row.

        Args:
            waiting: rows.
            oldest: rows of the sample that must be among them.
        """
        if waiting >= self.largest:
            return self.largest
        above = next(b for b in self._seconds if b >= waiting)
        below = max((b for b in self._seconds if oldest <= b <= waiting), default=None)
        if below is None or waiting / self._seconds[above] >= below / self._seconds[below]:
            return waiting
        return below


def _joined(parts: Sequence[Ids]) -> Sequence[int]:
    """Ids of several queries; adjoining ranges stay a range, which LoadGen takes fastest."""
    ranges = [part for part in parts if isinstance(part, range)]
    if len(ranges) == len(parts) and all(a.stop == b.start for a, b in itertools.pairwise(ranges)):
        return range(ranges[0].start, ranges[-1].stop)
    return [i for part in parts for i in (part.tolist() if isinstance(part, np.ndarray) else part)]
