"""Continuous batching: texts come and go between steps of one compiled program.

    engine = Engine(programs)
    with engine:  # a thread of its own
        engine.submit(Request(prompt, max_tokens=128), listener)

A round gives the device parts of prompts, then a step of the slots at work, and only then fetches the tokens of the round before: the
device always has work while Python counts. That a text has ended is so known a round late; the device, which knows at
once, does nothing for it in that round.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from mlperf_jax.errors import first_line
from mlperf_jax.tokens.programs import Chunk, Sizes
from mlperf_jax.tokens.requests import Listener, Request, refusal
from mlperf_jax.tokens.sampling import FAILED
from mlperf_jax.tokens.scheduler import Scheduler, Text

_PATIENCE_SECONDS = 60.0  # for a round to end: no other engine can have the programs before

_log = logging.getLogger(__name__)


class Device(Protocol):
    """What the engine asks of `mlperf_jax.tokens.programs.Programs`; what comes back may still be on its way."""

    sizes: Sizes
    vocabulary: int
    ends: tuple[int, ...]

    def prefill(self, chunk: Chunk) -> Any: ...

    def step(self, slots: int) -> Any: ...

    def stop(self, slot: int) -> None: ...


class _Asked(NamedTuple):
    """Tokens on their way.

    Attributes:
        tokens: [] or [S] int32.
        texts: whose they are, each with its place among them; None for the only one.
    """

    tokens: Any
    texts: list[tuple[int | None, Text]]


class Engine:
    """Answers requests from any thread.

    Args:
        programs: compiled.
        between_steps: a step is made once so many tokens of prompts were read, if any wait for it; by default as many as
            the largest chunk. More let texts begin earlier, and hold up those that are under way for longer. A part is not
            cut to meet it: that would read all weights once more for the rest, and a prompt's parts would depend on its
            neighbours.

    Attributes:
        batches: texts that got a token -> in how many steps there were so many, since it was made.
    """

    def __init__(self, programs: Device, *, between_steps: int = 0) -> None:
        self._programs, self._ends = programs, frozenset(programs.ends)
        self._budget = between_steps or programs.sizes.chunks[-1]
        self._scheduler = Scheduler(programs.sizes)
        self._under_way: deque[list[_Asked]] = deque()
        self._ready = threading.Condition()  # guards what follows
        self._new: deque[Text] = deque()
        self._cancelled: deque[Text] = deque()
        self._closed = False
        self._broken: str | None = None
        self._thread: threading.Thread | None = None
        self.batches: dict[int, int] = {}

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="tokens", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends after the round that is under way; texts that are not finished hear that they failed."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        if self._thread:
            self._thread.join(_PATIENCE_SECONDS)

    @property
    def broken(self) -> str | None:
        """Why nobody can be served any more, None while all is well."""
        return self._broken or ("The engine is closed." if self._closed else None)

    def refusal(self, request: Request) -> str | None:
        """Why a request can never be answered, in a sentence, or None."""
        sizes, pages = self._programs.sizes, self._scheduler.pages
        why = refusal(request, length=sizes.length, vocabulary=self._programs.vocabulary)
        if why is None and (needed := self._scheduler.needed(request)) > pages.total:
            why = f"It may need {needed} pages of the cache, which has {pages.total}; ask for less."
        return why

    def submit(self, request: Request, listener: Listener) -> Text:
        """Takes a request; what becomes of it the listener hears. What is returned is for `cancel`."""
        text = Text(request, listener)
        why = self.refusal(request)
        with self._ready:
            if why := why or self.broken:
                text.over = True
            else:
                self._new.append(text)
                self._ready.notify()
        if why:
            listener.failed(why)
        return text

    def cancel(self, text: Text) -> None:
        """Nobody waits for it any more; its listener hears nothing more either."""
        with self._ready:
            self._cancelled.append(text)
            self._ready.notify()

    def round(self) -> bool:
        """Does what there is to do, as told above; whether there is more."""
        self._take()
        scheduler = self._scheduler
        asked = self._read_prompts()
        if scheduler.telling:
            telling = scheduler.telling
            step = _Asked(self._programs.step(1 + max(telling)), list(telling.items()))
            asked.append(step)
            size = len(step.texts)
            self.batches[size] = self.batches.get(size, 0) + 1
            for _, text in step.texts:
                scheduler.asked(text)
        if asked:
            self._under_way.append(asked)
        while self._under_way and (len(self._under_way) > 1 or not asked):
            self._fetch(self._under_way.popleft())
        return bool(self._under_way) or not scheduler.idle

    def _take(self) -> None:
        with self._ready:
            new, self._new = self._new, deque()
            cancelled, self._cancelled = self._cancelled, deque()
        self._scheduler.waiting.extend(new)
        for text in cancelled:
            self._break_off(text)

    def _read_prompts(self) -> list[_Asked]:
        """Parts of prompts, as many as come between two steps; the first tokens on their way."""
        scheduler, left = self._scheduler, self._budget
        first: list[_Asked] = []
        scheduler.admit()
        while left > 0 and (found := scheduler.next_chunk()):
            text, chunk = found
            token = self._programs.prefill(chunk)
            left -= chunk.stop - chunk.start
            if chunk.stop == len(text.request.prompt):
                first.append(_Asked(token, [(None, text)]))
                scheduler.asked(text)
                scheduler.admit()
        return first

    def _fetch(self, asked: list[_Asked]) -> None:
        """Waits for tokens, in the order in which they come, and tells them."""
        for handle, texts in asked:
            tokens = np.asarray(handle).tolist()
            for slot, text in texts:
                if not text.over:
                    self._tell(text, tokens if slot is None else tokens[slot])

    def _tell(self, text: Text, token: int) -> None:
        try:
            if token == FAILED:
                text.over = True
                self._scheduler.release(text)
                text.listener.failed("The model gave no numbers for this text.")
                return
            text.told += 1
            last = token in self._ends or text.told == text.request.max_tokens
            if last:
                text.over = True
                self._scheduler.release(text)
            text.listener.token(token, last)
        except Exception:
            _log.exception("a listener failed, and with it its own request")
            self._break_off(text)

    def _break_off(self, text: Text) -> None:
        """Ends a text of which the device does not know that it is over: its pages may be others' in the next round."""
        text.over = True
        slot = text.slot
        if self._scheduler.release(text) and slot is not None:
            self._programs.stop(slot)

    def _run(self) -> None:
        try:
            while True:
                more = self.round()
                with self._ready:
                    while not (more or self._new or self._cancelled or self._closed):
                        self._ready.wait()
                    if self._closed:
                        break
            for slot in self._scheduler.telling:  # the programs may serve another engine
                self._programs.stop(slot)
            why = "The engine was closed."
        except BaseException as error:  # a program that does not run: nobody can be served any more
            _log.exception("the engine failed")
            why = f"The engine failed: {first_line(error)}"
        with self._ready:
            self._broken = why
        self._fail_all(why)

    def _fail_all(self, why: str) -> None:
        self._take()
        scheduler = self._scheduler
        texts = [*scheduler.waiting, *scheduler.reading, *scheduler.telling.values()]
        texts += [text for asked in self._under_way for one in asked for _, text in one.texts]
        for text in dict.fromkeys(texts):
            if not text.over:
                text.over = True
                with contextlib.suppress(Exception):
                    text.listener.failed(why)
