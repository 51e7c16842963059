"""Whole answers to many requests at once, where nothing is measured."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mlperf_jax.tokens.engine import Device, Engine
from mlperf_jax.tokens.requests import Request


def answers(programs: Device, requests: Iterable[Request]) -> list[np.ndarray]:
    """The tokens of each answer, [tokens] int32.

    Raises:
        RuntimeError: one could not be answered.
    """
    engine, heard = Engine(programs), []
    for request in requests:
        heard.append(_Heard())
        engine.submit(request, heard[-1])
    while engine.round():
        pass
    if why := next((one.why for one in heard if one.why), None):
        raise RuntimeError(why)
    return [np.array(one.tokens, np.int32) for one in heard]


class _Heard:
    """Listens for one request."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.why: str | None = None

    def token(self, token: int, last: bool) -> None:
        self.tokens.append(token)

    def failed(self, why: str) -> None:
        self.why = why
