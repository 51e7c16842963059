"""Systems under test made of compiled JAX functions.

`InlineSut` answers within the call that issues, for one query at a time; `BatchingSut` has threads
that form batches of whatever waits. Both stamp an answer once it is on the host.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np

from loadgen_py.replica import Replica, Samples
from loadgen_py.responses import Responses

_PATIENCE_SECONDS = 5.0  # for a call to end


class InlineSut:
    """Answers each query before `issue` returns: SingleStream and MultiStream.

    A thread of its own would cost two switches of threads a query. With several replicas a query
    is divided over them.
    """

    def __init__(self, name: str, replicas: Sequence[Replica], samples: Samples) -> None:
        self.name = name
        self._replicas, self._samples = list(replicas), samples

    def start(self, responses: Responses) -> None:
        self._responses = responses

    def issue(self, ids: Sequence[int], indices: np.ndarray) -> None:
        slots = self._samples.slots[indices]
        if len(slots) == 1 or len(self._replicas) == 1:
            answers = self._replicas[0].answer(slots)
        else:
            parts = [part for part in np.array_split(slots, len(self._replicas)) if len(part)]
            started = [replica.start(part) for replica, part in zip(self._replicas, parts, strict=False)]
            fetched = zip(started, parts, strict=True)
            answers = np.concatenate([np.asarray(batch)[: len(part)] for batch, part in fetched])
        self._responses.complete(ids, self._samples.entries(slots, answers))

    def flush(self) -> None:
        pass


class BatchingSut:
    """Threads take what waits, oldest first, as one batch: Server and Offline.

    A free thread waits for nothing: under load batches grow by themselves, for more arrives while
    all are at work. Where a full batch waits, a thread starts it before it fetches the answers of the
    one before, so that gathering, transfer and fetching overlap computation.

    Args:
        name: what the logs call it.
        replicas: all compiled and timed for the same batch sizes.
        samples: the library.
        threads: to each replica; with two, also batches that are not full overlap.
        latency_budget_s: the bound on latencies. Batches are only so large that a sample that just
            missed one is answered with the next in time: two calls within the budget. None sets no
            limit.
        max_wait_s: how long a batch that is not full waits for more samples.

    Attributes:
        batches: batch size (without padding) -> how many there were, since `start`.
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
        self._choose = _BatchSize(replicas[0].seconds, latency_budget_s)
        self._max_wait_ns = int(max_wait_s * 1e9)
        self._lock = threading.Lock()  # guards all below
        self._ready = threading.Condition(self._lock)  # something waits
        self._drained = threading.Condition(self._lock)  # nothing waits, nobody works
        self._waiting: deque[tuple[Sequence[int], np.ndarray, int]] = deque()
        self._count = 0  # samples in `_waiting`
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
            self._waiting.clear()
            self._count = 0
            self._flushing, self._failure = False, None
            self.batches = {}

    def issue(self, ids: Sequence[int], indices: np.ndarray) -> None:
        slots = self._samples.slots[indices]
        now = time.perf_counter_ns()
        with self._lock:
            self._raise_failure()
            self._flushing = False
            self._waiting.append((ids, slots, now))
            self._count += len(slots)
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
        under_way: deque[tuple[Sequence[int], np.ndarray, Any]] = deque()
        while True:
            batch = self._take(wait=not under_way)
            if not batch and not under_way:
                return
            try:
                if batch:
                    ids, slots = batch
                    under_way.append((ids, slots, replica.start(slots)))
                if len(under_way) == 2 or not batch:
                    ids, slots, answers = under_way[0]
                    answers = np.asarray(answers)[: len(slots)]
                    self._responses.complete(ids, self._samples.entries(slots, answers))
                    under_way.popleft()
                    self._ended(1)
            except BaseException as error:  # told to LoadGen by the next `issue` or `flush`
                not_started = bool(batch and len(under_way) < 2)  # it was the batch's start that raised
                self._ended(len(under_way) + not_started, error)
                under_way.clear()

    def _take(self, *, wait: bool) -> tuple[Sequence[int], np.ndarray] | None:
        """A batch, [n] ids and [n] slots: waits for one, or takes none that is not full; None at the end."""
        with self._lock:
            if not wait and self._count < (1 if self._flushing else self._choose.largest):
                return None
            while not (self._closed or self._may_go()):
                self._ready.wait(self._wait_left_s())
            if self._closed:
                return None
            size = self._choose(self._count)
            self.batches[size] = self.batches.get(size, 0) + 1
            self._working += 1
            batch = self._cut(size)
            if self._count:
                self._ready.notify()
            return batch

    def _ended(self, batches: int, failure: BaseException | None = None) -> None:
        """Batches are not under way any more; after a failure nothing that waits is begun."""
        with self._lock:
            self._working -= batches
            if failure:
                self._failure = failure
                self._waiting.clear()
                self._count = 0
            if self._failure or not (self._count or self._working):
                self._drained.notify()

    def _may_go(self) -> bool:
        if not self._count:
            return False
        return (
            self._flushing
            or self._count >= self._choose.largest
            or time.perf_counter_ns() - self._waiting[0][2] >= self._max_wait_ns
        )

    def _wait_left_s(self) -> float | None:
        """Until the oldest sample may wait no longer; None where nothing waits."""
        if not self._count:
            return None
        return max(self._waiting[0][2] + self._max_wait_ns - time.perf_counter_ns(), 0) / 1e9

    def _cut(self, size: int) -> tuple[Sequence[int], np.ndarray]:
        """Takes the `size` oldest samples out of those that wait."""
        self._count -= size
        ids_parts, slots_parts = [], []
        while size:
            ids, slots, since = self._waiting.popleft()
            if len(slots) > size:
                self._waiting.appendleft((ids[size:], slots[size:], since))
                ids, slots = ids[:size], slots[:size]
            size -= len(slots)
            ids_parts.append(ids)
            slots_parts.append(slots)
        if len(ids_parts) == 1:
            return ids_parts[0], slots_parts[0]
        return _joined(ids_parts), np.concatenate(slots_parts)


class _BatchSize:
    """How many of the samples that wait make the next batch.

    Args:
        seconds: batch size -> what a call takes.
        budget_s: two calls must fit into it; the smallest batch size is used whatever it takes.

    Attributes:
        largest: the batch size with the most samples a second, among those that fit.
    """

    def __init__(self, seconds: Mapping[int, float], budget_s: float | None) -> None:
        smallest = min(seconds)
        fits = {b: s for b, s in seconds.items() if budget_s is None or 2 * s <= budget_s or b == smallest}
        self.largest = max(fits, key=lambda b: b / fits[b])
        self._seconds = {b: s for b, s in sorted(fits.items()) if b <= self.largest}

    def __call__(self, waiting: int) -> int:
        """All that wait, padded to the next batch size, or a full one of those below: the faster a sample."""
        if waiting >= self.largest:
            return self.largest
        above = next(b for b in self._seconds if b >= waiting)
        below = max((b for b in self._seconds if b <= waiting), default=None)
        if below is None or waiting / self._seconds[above] >= below / self._seconds[below]:
            return waiting
        return below


def _joined(parts: Sequence[Sequence[int]]) -> Sequence[int]:
    """Ids of several queries; adjoining ranges stay a range, which LoadGen takes fastest."""
    ranges = [part for part in parts if isinstance(part, range)]
    if len(ranges) == len(parts) and all(a.stop == b.start for a, b in pairwise(ranges)):
        return range(ranges[0].start, ranges[-1].stop)
    return [i for part in parts for i in part]
