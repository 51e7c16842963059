"""Answers of HTTP: all at once, or a piece whenever tokens have come (server-sent events)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from mlperf_jax.tokens.openai.desk import Answer, Order
from mlperf_jax.tokens.openai.detokenizer import Detokenizer
from mlperf_jax.tokens.openai.refusals import Refusal, encoded

_LAST_WORD_SECONDS = 1.0  # for a client to take the event that says why its stream ends early


class Choice:
    """An answer as text.

    Args:
        answer: of the engine.
        detokenizer: for its tokens alone.
        ends: tokens that end a text, and are no part of it.

    Attributes:
        count: tokens so far; one that ended the text counts, one behind a stop string does not.
        finish: "stop" or "length" once it is over.
    """

    def __init__(self, answer: Answer, detokenizer: Detokenizer, ends: Collection[int]) -> None:
        self._answer, self._detokenizer, self._ends = answer, detokenizer, ends
        self.count = 0
        self.finish: str | None = None

    def take(self) -> str | None:
        """The text of the tokens that have come, None where there are none."""
        before, parts = self.count, []
        tokens = self._answer.tokens
        while tokens and self.finish is None:
            token = tokens.popleft()
            self.count += 1
            if token in self._ends:
                parts.append(self._detokenizer.end())
                self.finish = "stop"
            else:
                parts.append(self._detokenizer.add(token))
                if self._detokenizer.stopped:
                    self.finish = "stop"
                    self._answer.cancel()
        if self._answer.complete and self.finish is None:
            parts.append(self._detokenizer.end())
            self.finish = "stop" if self._detokenizer.stopped else "length"
        return "".join(parts) if self.count > before else None


@dataclasses.dataclass(frozen=True)
class Shape:
    """The JSON of one answer.

    Attributes:
        chat: whether it is a chat's.
        model: as the client calls it.
        prompt_tokens: of all prompts.
        include_usage: whether a stream's last piece has the counts.
    """

    chat: bool
    model: str
    prompt_tokens: int
    include_usage: bool
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def whole(self, texts: Sequence[str], choices: Sequence[Choice]) -> bytes:
        """All of it."""
        found: list[dict[str, Any]] = []
        for text, choice in zip(texts, choices, strict=True):
            content: dict[str, Any] = {"text": text}
            if self.chat:
                content = {"message": {"role": "assistant", "content": text, "refusal": None}}
            found.append(self._choice(len(found), content, choice.finish))
        kind = "chat.completion" if self.chat else "text_completion"
        return encoded(self._head(kind) | {"choices": found, "usage": self.usage(choices)})

    def piece(self, index: int, text: str, finish: str | None, *, first: bool) -> bytes:
        """A stream's next one."""
        content: dict[str, Any] = {"text": text}
        if self.chat:
            content = {"delta": ({"role": "assistant"} if first else {}) | {"content": text}}
        return self._event({"choices": [self._choice(index, content, finish)]}, None)

    def last(self, choices: Sequence[Choice]) -> bytes:
        """What a stream ends with."""
        counts = self._event({"choices": []}, self.usage(choices)) if self.include_usage else b""
        return counts + b"data: [DONE]\n\n"

    def usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        told = sum(choice.count for choice in choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": told,
            "total_tokens": self.prompt_tokens + told,
        }

    def _event(self, body: dict[str, Any], usage: Mapping[str, int] | None) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return event(self._head(kind) | body | ({"usage": usage} if self.include_usage else {}))

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }

    @staticmethod
    def _choice(index: int, content: Mapping[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": None, "finish_reason": finish}


def event(body: Mapping[str, Any]) -> bytes:
    """A server-sent one."""
    return b"data: " + encoded(body) + b"\n\n"


class Telling:
    """Sends an order's answers while they come; nothing is sent before the first token is there, so that until then all can be refused.

    Args:
        order: just made.
        choices: its answers.
        shape: their JSON.
        stream: whether in pieces.
        until: when the event loop's clock says so, it is given up.
    """

    def __init__(
        self, order: Order, choices: Sequence[Choice], shape: Shape, *, stream: bool, until: float
    ) -> None:
        self._order, self._choices, self._shape = order, choices, shape
        self._stream, self._until = stream, until
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed = self._order.failed
        telling = asyncio.ensure_future(self._tell_pieces(send) if self._stream else self._tell_all(send))
        gone = asyncio.ensure_future(_gone(receive))
        left = self._until - asyncio.get_running_loop().time()
        try:
            await asyncio.wait((telling, gone, failed), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
            elif not gone.done():
                telling.cancel()
                await self._refuse(failed.result() if failed.done() else _late(), send)
        finally:
            telling.cancel()
            gone.cancel()
            self._order.close()

    async def _tell_all(self, send: Send) -> None:
        parts: list[list[str]] = [[] for _ in self._choices]
        while any(choice.finish is None for choice in self._choices):
            await self._order.news()
            for text, choice in zip(parts, self._choices, strict=True):
                text.append(choice.take() or "")
        body = self._shape.whole(["".join(text) for text in parts], self._choices)
        await self._start(send, b"application/json", len(body))
        await send({"type": "http.response.body", "body": body})

    async def _tell_pieces(self, send: Send) -> None:
        first = [True] * len(self._choices)
        while any(choice.finish is None for choice in self._choices):
            await self._order.news()
            pieces = []
            for index, choice in enumerate(self._choices):
                if (text := choice.take()) is not None:
                    pieces.append(self._shape.piece(index, text, choice.finish, first=first[index]))
                    first[index] = False
            if not pieces:
                continue
            if not self._started:
                await self._start(send, b"text/event-stream; charset=utf-8")
            self._order.sending = True
            await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": True})
            self._order.sending = False
        await send({"type": "http.response.body", "body": self._shape.last(self._choices)})

    async def _start(self, send: Send, kind: bytes, length: int | None = None) -> None:
        headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        self._started = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _refuse(self, why: Refusal, send: Send) -> None:
        """As an answer of its own; at the end of a stream that has begun as its last event."""
        if not self._started:
            raise why
        if self._stream:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORD_SECONDS):
                    await send({"type": "http.response.body", "body": event(why.body)})


async def _gone(receive: Receive) -> None:
    """Waits until the client has gone, who has nothing more to say."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _late() -> Refusal:
    return Refusal(504, "The answer was not complete in time; ask for less, or raise the server's --timeout.")
