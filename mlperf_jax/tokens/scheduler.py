"""Who is served when: texts wait for a slot and for pages, are read in part by part, and then told step by step.

Plain counting on the host, by what has been asked of the device. What tokens came out is known a step late, and changes who
goes on, not what has been asked.
"""

from __future__ import annotations

import heapq
from collections import deque

from mlperf_jax.tokens.pages import Pages
from mlperf_jax.tokens.programs import Chunk, Sizes
from mlperf_jax.tokens.requests import Listener, Request


class Text:
    """A request on its way.

    Attributes:
        request, listener: what is asked, and who hears of it.
        slot: where it is continued, None where it has none.
        pages: of the cache, in order.
        read: tokens of the prompt that the device was given.
        asked: new tokens that were asked of the device.
        told: and those that came back.
        over: nobody waits for more.
    """

    __slots__ = ("request", "listener", "slot", "pages", "read", "asked", "told", "over")

    def __init__(self, request: Request, listener: Listener) -> None:
        self.request, self.listener = request, listener
        self.slot: int | None = None
        self.pages: list[int] = []
        self.read = self.asked = self.told = 0
        self.over = False


class Scheduler:
    """First come, first served.

    A text is let in when a slot is free and as many pages as it can come to need, so that none that has begun ever has
    to stop for another.

    Args:
        sizes: of cache and slots.

    Attributes:
        waiting: texts that are not let in yet.
        reading: those whose prompts are being read, in order.
        telling: slot -> text that gets a token with every step.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.pages = Pages(sizes.pages, sizes.page)
        self._chunk = sizes.chunks[-1]
        self._slots = list(range(sizes.slots))  # a heap: steps have the first ones, and should have few
        self.waiting: deque[Text] = deque()
        self.reading: deque[Text] = deque()
        self.telling: dict[int, Text] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done."""
        return not (self.waiting or self.reading or self.telling)

    def needed(self, request: Request) -> int:
        """Pages that it can come to need: the last token's keys and values are never computed."""
        return self.pages.needed(len(request.prompt) + request.max_tokens - 1)

    def admit(self) -> None:
        """Lets in who is next, as long as there is room."""
        while self.waiting and self._slots:
            text = self.waiting[0]
            if (needed := self.needed(text.request)) > self.pages.free:
                return
            text.slot, text.pages = heapq.heappop(self._slots), self.pages.take(needed)
            self.reading.append(self.waiting.popleft())

    def next_chunk(self) -> tuple[Text, Chunk] | None:
        """The next part of a prompt, the largest chunk or what is left of it; its text moves on."""
        if not self.reading:
            return None
        text = self.reading[0]
        prompt = len(text.request.prompt)
        assert text.slot is not None
        start, text.read = text.read, min(text.read + self._chunk, prompt)
        if text.read == prompt:
            self.reading.popleft()
            self.telling[text.slot] = text
        return text, Chunk(text.request, text.slot, start, text.read, text.pages)

    def asked(self, text: Text) -> None:
        """A token of it was asked of the device; after the last its place is free, for what is asked from now on."""
        text.asked += 1
        if text.asked == text.request.max_tokens:
            self.release(text)

    def release(self, text: Text) -> bool:
        """Whoever it is, its slot and its pages are free; whether the device may still be at work on it."""
        if text.slot is None:
            if not text.asked and text in self.waiting:
                self.waiting.remove(text)
            return False
        if not text.asked and text in self.reading:
            self.reading.remove(text)
        working = self.telling.pop(text.slot, None) is not None
        heapq.heappush(self._slots, text.slot)
        self.pages.give_back(text.pages)
        text.slot, text.pages = None, []
        return working
