"""What a system under test and a sample library must offer, and the callbacks of the official API as such."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np

from loadgen_py.responses import Responses

_AT_ONCE = 1024  # indices that become Python's numbers together

Callback = TypeVar("Callback", bound=Callable[..., Any])


class SystemUnderTest(Protocol):
    """A system in loadgen_py's own idiom: arrays of samples in, vectorised answers out.

    Attributes:
        name: what the logs call it.
    """

    name: str

    def start(self, responses: Responses) -> None:
        """Called once before a run. Answers go to `responses.complete(ids, answers)`, from any thread."""

    def issue(self, ids: range, indices: np.ndarray) -> None:
        """Takes one query; may answer before it returns, or later.

        Args:
            ids: `[N]` consecutive ids of the samples; `responses.complete` takes any of them.
            indices: `[N]` int64 indices into the sample library.
        """

    def flush(self) -> None:
        """Called when no more queries come in this phase: answer what is still held back."""


class SampleLibrary(Protocol):
    """The samples; LoadGen asks only for indices that are loaded.

    Attributes:
        name: what the logs call it.
        total_count: samples there are.
        performance_count: samples that fit into memory together.
    """

    name: str
    total_count: int
    performance_count: int

    def load(self, indices: np.ndarray) -> None:
        """Brings `[N]` samples into memory; not timed."""

    def unload(self, indices: np.ndarray) -> None:
        """Gives `[N]` samples up; not timed."""


class QuerySample:
    """One sample of a query: the `id` to answer to and the `index` into the sample library."""

    __slots__ = ("id", "index")

    def __init__(self, id: int = 0, index: int = 0) -> None:
        self.id = id
        self.index = index

    def __repr__(self) -> str:
        return f"QuerySample(id={self.id}, index={self.index})"


def _checked(callback: Callback) -> Callback:
    """The callback itself; `TypeError` now instead of in the run if it is none."""
    if not callable(callback):
        raise TypeError(f"{callback!r} cannot be called; give a function.")
    return callback


class CallbackSut:
    """A system made of the official callbacks: `issue_query([QuerySample, ...])`, `flush_queries()`.

    Its `issue` takes what `query` makes of the arguments of `SystemUnderTest.issue`.
    """

    def __init__(
        self,
        issue_query: Callable[..., Any],
        flush_queries: Callable[[], Any],
        name: Callable[[], str] = lambda: "PySUT",
    ) -> None:
        self.issue = _checked(issue_query)
        self.flush = _checked(flush_queries)
        self._name = _checked(name)

    @property
    def name(self) -> str:
        """What the logs call it; may ask over a network."""
        name = self._name()
        if not isinstance(name, str):
            raise TypeError(f"The system under test is called {name!r}; return text.")
        return name

    def start(self, responses: Responses) -> None:
        """Nothing to hand over: the callbacks answer through `QuerySamplesComplete`."""

    def query(self, ids: range, indices: np.ndarray) -> tuple[list[Any], ...]:
        """The arguments of `issue`, made before the clock is read."""
        if len(ids) == 1:
            return ([QuerySample(ids.start, indices.item())],)
        return (list(map(QuerySample, ids, indices.tolist())),)

    def singles(self, first_id: int, indices: np.ndarray) -> Iterator[tuple[list[Any], ...]]:
        """`query` of one sample after the other, in a third of the time.

        Args:
            first_id: of the first; the others follow.
            indices: `[N]` of all samples.
        """
        for sample in map(QuerySample, itertools.count(first_id), _numbers(indices)):
            yield ([sample],)


class FastCallbackSut(CallbackSut):
    """A system made of the official fast callbacks: `issue_query([id, ...], [index, ...])`."""

    def query(self, ids: range, indices: np.ndarray) -> tuple[list[int], list[int]]:
        """The arguments of `issue`, made before the clock is read."""
        return list(ids), indices.tolist()

    def singles(self, first_id: int, indices: np.ndarray) -> Iterator[tuple[list[int], list[int]]]:
        """`query` of one sample after the other."""
        for sample_id, index in zip(itertools.count(first_id), _numbers(indices), strict=False):
            yield [sample_id], [index]


def _numbers(indices: np.ndarray) -> Iterator[int]:
    """The indices `[N]`, of which few at a time lie in memory as numbers of Python's."""
    parts = (indices[start : start + _AT_ONCE].tolist() for start in range(0, len(indices), _AT_ONCE))
    return itertools.chain.from_iterable(parts)


class CallbackLibrary:
    """A sample library made of the official callbacks, which take lists of indices."""

    name = "PyQSL"

    def __init__(
        self,
        total_count: int,
        performance_count: int,
        load: Callable[[list[int]], Any],
        unload: Callable[[list[int]], Any],
    ) -> None:
        self.total_count, self.performance_count = (
            operator.index(total_count),
            operator.index(performance_count),
        )
        if min(self.total_count, self.performance_count) < 0:
            raise TypeError("A sample library has a negative number of samples; give at least 0.")
        self._load, self._unload = _checked(load), _checked(unload)

    def load(self, indices: np.ndarray) -> None:
        """Brings `[N]` samples into memory."""
        self._load(indices.tolist())

    def unload(self, indices: np.ndarray) -> None:
        """Gives `[N]` samples up."""
        self._unload(indices.tolist())
