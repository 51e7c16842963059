"""Engines as a system under test: LoadGen's samples become requests, and what the engine tells goes to LoadGen."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from loadgen_py.responses import Responses
from mlperf_jax.tokens.engine import Engine
from mlperf_jax.tokens.programs import Programs
from mlperf_jax.tokens.requests import Request

_TOGETHER = 2  # times as many requests as slots are timed together


class TokenSamples:
    """A sample library of requests.

    Args:
        name: what the logs call it.
        total_count, performance_count: as `SampleLibrary` has them.
        read: gives the request of a sample.
    """

    def __init__(
        self, name: str, total_count: int, performance_count: int, read: Callable[[int], Request]
    ) -> None:
        self.name, self.total_count, self.performance_count = name, total_count, performance_count
        self._read = read
        self.requests: dict[int, Request] = {}

    def load(self, indices: np.ndarray) -> None:
        """Brings [N] samples into memory, in place of all others."""
        self.requests = {index: self._read(index) for index in np.unique(indices).tolist()}

    def unload(self, indices: np.ndarray) -> None:
        """Lets go of the samples [N]."""
        for index in indices.tolist():
            self.requests.pop(index, None)


class TokenReplica:
    """A model's programs, and how fast they are.

    Attributes:
        seconds: requests that are asked at once -> until all are answered.
        first_s, each_s: of a request alone, until its first token, and for each other.
    """

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self.seconds: dict[float, float] = {}
        self.first_s = self.each_s = 0.0

    def measure(self, requests: Sequence[Request]) -> None:
        """Runs every program, and times a request alone and many together."""
        many = [requests[n % len(requests)] for n in range(_TOGETHER * self.programs.sizes.slots)]
        for asked in (many[:1], many[:1], many):  # the first time to warm up
            engine, began = Engine(self.programs), time.perf_counter()
            heard = [_Timed() for _ in asked]
            for request, one in zip(asked, heard, strict=True):
                engine.submit(request, one)
            while engine.round():
                pass
            self.seconds[len(asked)] = time.perf_counter() - began
            if len(asked) == 1:
                first, last = heard[0].at[0], heard[0].at[-1]
                self.first_s = first - began
                self.each_s = (last - first) / max(len(heard[0].at) - 1, 1)


class _Timed:
    def __init__(self) -> None:
        self.at: list[float] = []

    def token(self, token: int, last: bool) -> None:
        self.at.append(time.perf_counter())

    def failed(self, why: str) -> None:
        raise RuntimeError(why)


class TokenSut:
    """Hands every request to the engine with the fewest; tells LoadGen first tokens and whole answers.

    No step is made while a slot that is free has a prompt to be read for it: first tokens come earlier so, and LoadGen judges the time
    of the others over whole answers, in which it matters little what was read when.

    Args:
        name: what the logs call it.
        replicas: compiled.
        samples: the library.
        first_tokens: whether LoadGen is told of these: in every scenario but Offline. Where it is not, only the end of all
            counts: the longest answers begin first, as those that begin last run on beside idle slots.

    Attributes:
        text_gaps_ns: of each answer with text behind its first token the time from that to the last, by the tokens that are
            text: as mlcommons/endpoints has the time per output token, which sees texts, in which ends are nothing. Source:
            src/inference_endpoint/async_utils/services/metrics_aggregator/metrics_table.py there, which counts the
            tokens of the text once more, where the tokens that were told are counted here.
    """

    def __init__(
        self, name: str, replicas: Sequence[TokenReplica], samples: TokenSamples, *, first_tokens: bool
    ) -> None:
        self.name = name
        self._samples, self.first_tokens = samples, first_tokens
        self._engines = [
            Engine(replica.programs, between_steps=_all_prompts(replica.programs)) for replica in replicas
        ]
        self._ends = frozenset(replicas[0].programs.ends)
        self.text_gaps_ns: list[float] = []
        self._outstanding = [0] * len(replicas)
        self._failure: str | None = None
        self._changed = threading.Condition()  # guards both
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for engine in self._engines:
            self._open.enter_context(engine)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def batches(self) -> dict[int, int]:
        """Texts that a step told a token of -> how many such steps there were."""
        return dict(sum((Counter(engine.batches) for engine in self._engines), Counter()))

    def start(self, responses: Responses) -> None:
        self._responses = responses

    def issue(self, ids: range, indices: np.ndarray) -> None:
        """Takes one query.

        Raises:
            RuntimeError: an earlier request has failed.
        """
        asked = [
            (sample_id, self._samples.requests[n]) for sample_id, n in zip(ids, indices.tolist(), strict=True)
        ]
        if not self.first_tokens:
            asked.sort(key=lambda one: -one[1].max_tokens)
        for sample_id, request in asked:
            with self._changed:
                self._raise_failure()
                number = min(range(len(self._engines)), key=self._outstanding.__getitem__)
                self._outstanding[number] += 1
            told = _Told(self, number, sample_id)
            self._engines[number].submit(request, told)

    def flush(self) -> None:
        """Returns once everything is answered.

        Raises:
            RuntimeError: a request has failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not any(self._outstanding))
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure:
            raise RuntimeError(self._failure)

    def heard(self, tokens: list[int], taken_ns: int) -> None:
        """All tokens of a sample are there, so long after the first."""
        if (text := len(tokens) - 1 - (tokens[-1] in self._ends)) > 0:
            self.text_gaps_ns.append(taken_ns / text)

    def first_token(self, sample_id: int, token: int) -> None:
        """The first token of a sample is there."""
        if self.first_tokens:
            self._responses.first_token((sample_id,), [np.int32(token)])

    def complete(self, sample_id: int, tokens: list[int]) -> None:
        """All tokens of a sample are there."""
        self._responses.complete((sample_id,), [np.array(tokens, np.int32)], [len(tokens)])

    def ended(self, number: int, failure: str | None = None) -> None:
        """A request to an engine is over."""
        with self._changed:
            self._outstanding[number] -= 1
            self._failure = self._failure or failure
            if self._failure or not any(self._outstanding):
                self._changed.notify_all()


def _all_prompts(programs: Programs) -> int:
    """Tokens that the prompts of all slots can have."""
    return programs.sizes.slots * programs.sizes.length


class _Told:
    """Listens for one sample."""

    __slots__ = ("_sut", "_number", "_sample_id", "_tokens", "_first_at")

    def __init__(self, sut: TokenSut, number: int, sample_id: int) -> None:
        self._sut, self._number, self._sample_id = sut, number, sample_id
        self._tokens: list[int] = []
        self._first_at = 0

    def token(self, token: int, last: bool) -> None:
        if not self._tokens:
            self._first_at = time.perf_counter_ns()
            self._sut.first_token(self._sample_id, token)
        self._tokens.append(token)
        if last:
            self._sut.heard(self._tokens, time.perf_counter_ns() - self._first_at)
            self._sut.complete(self._sample_id, self._tokens)
            self._sut.ended(self._number)

    def failed(self, why: str) -> None:
        self._sut.ended(self._number, why)
