"""OpenAI's HTTP interface of completions and chats over the engines, so that any load generator for such servers can drive them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mlperf_jax.tokens.openai import asked as asks
from mlperf_jax.tokens.openai import chat
from mlperf_jax.tokens.openai.desk import Desk
from mlperf_jax.tokens.openai.detokenizer import Detokenizer, Vocabulary
from mlperf_jax.tokens.openai.refusals import Refusal, encoded
from mlperf_jax.tokens.openai.telling import Choice, Shape, Telling

MOST_BYTES = 4 << 20  # of a request's body


@dataclasses.dataclass(frozen=True)
class Terms:
    """What is served, and to whom.

    Attributes:
        model: the name that clients give.
        vocabulary: of its tokens.
        template: of its chats, None for `chat.plain`.
        timeout_s: of a request, from its first byte to the last of its answer.
        api_key: that clients must give, None if none.
        hosts: names under which it may be asked, None for any; see `_Guard`.
    """

    model: str
    vocabulary: Vocabulary
    template: chat.Template | None = None
    timeout_s: float = 600.0
    api_key: str | None = None
    hosts: tuple[str, ...] | None = None


def make_app(desk: Desk, terms: Terms) -> ASGIApp:
    """The application; the desk is open while it runs."""
    door = _Door(desk, terms)
    app = Starlette(
        routes=[
            Route("/health", door.health, methods=["GET"]),
            Route("/v1/models", door.models, methods=["GET"]),
            Route("/v1/models/{model:path}", door.one_model, methods=["GET"]),
            Route("/v1/completions", door.completions, methods=["POST"]),
            Route("/v1/chat/completions", door.chat_completions, methods=["POST"]),
        ],
        lifespan=door.lifespan,
        exception_handlers={
            Refusal: _refused,
            HTTPException: _no_such_route,
            ClientDisconnect: _nobody_there,
            Exception: _failed,
        },
    )
    return _Guard(app, terms)


class _Door:
    def __init__(self, desk: Desk, terms: Terms) -> None:
        self._desk, self._terms = desk, terms
        self._created = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        with self._desk.open():
            yield
        if self._terms.template:
            self._terms.template.close()

    async def health(self, _: Request) -> Response:
        if why := self._desk.broken:
            raise Refusal(503, why)
        return _json({"status": "ok"})

    async def models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [self._model()]})

    async def one_model(self, request: Request) -> Response:
        self._require_model(request.path_params["model"])
        return _json(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._terms.model,
            "object": "model",
            "created": self._created,
            "owned_by": "mlperf_jax",
            "max_model_len": self._desk.length,
        }

    def _require_model(self, name: Any) -> None:
        if name not in (None, "", self._terms.model):
            raise Refusal(
                404,
                f"There is no model {str(name)[:100]!r} here; there is {self._terms.model!r}.",
                param="model",
                code="model_not_found",
            )

    async def completions(self, request: Request) -> ASGIApp:
        until = self._until()
        fields = await self._fields(request, until)
        asked = asks.asked(fields, chat=False)
        prompts = [
            await self._encoded(prompt, special=True) if isinstance(prompt, str) else prompt
            for prompt in asks.prompts(fields)
        ]
        return self._telling(asked, prompts, until, is_chat=False)

    async def chat_completions(self, request: Request) -> ASGIApp:
        until = self._until()
        fields = await self._fields(request, until)
        asked = asks.asked(fields, chat=True)
        messages = asks.messages(fields)
        template = self._terms.template
        text = await asyncio.to_thread(template.fill_in, messages) if template else chat.plain(messages)
        # A template writes itself what a tokenizer else puts around texts.
        prompt = await self._encoded(text, special=template is None)
        return self._telling(asked, [prompt], until, is_chat=True)

    def _until(self) -> float:
        return asyncio.get_running_loop().time() + self._terms.timeout_s

    async def _fields(self, request: Request, until: float) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no page from elsewhere can send without asking first
            raise Refusal(415, "The body must be JSON; send it with Content-Type: application/json.")
        try:
            async with asyncio.timeout_at(until):
                fields = asks.read(await _body(request))
        except TimeoutError:
            raise Refusal(408, "The request did not arrive in time.") from None
        self._require_model(fields.get("model"))
        return fields

    async def _encoded(self, text: str, *, special: bool) -> list[int]:
        """In a thread, as long texts take long; those of which no split could fit are refused before."""
        vocabulary = self._terms.vocabulary
        if len(text) > self._desk.length * vocabulary.most_bytes:
            raise Refusal(
                400,
                f"A prompt of {len(text):,} characters is more than the {self._desk.length:,} tokens that a text can "
                "have; give less.",
                code="context_length_exceeded",
            )
        return await asyncio.to_thread(vocabulary.encode, text, special=special)

    def _telling(
        self, asked: asks.Asked, prompts: Sequence[Sequence[int]], until: float, *, is_chat: bool
    ) -> ASGIApp:
        order = self._desk.order([asked.request(prompt, self._desk.length) for prompt in prompts])
        spelled = self._terms.vocabulary.spelled
        choices = [
            Choice(answer, Detokenizer(spelled, asked.stops), self._desk.ends) for answer in order.answers
        ]
        shape = Shape(is_chat, self._terms.model, sum(map(len, prompts)), asked.include_usage)
        return Telling(order, choices, shape, stream=asked.stream, until=until)


async def _body(request: Request) -> bytes:
    found = bytearray()
    length = request.headers.get("content-length", "")
    too_much = length.isdigit() and int(length[:20]) > MOST_BYTES
    if not too_much:
        async for part in request.stream():
            found += part
            if too_much := len(found) > MOST_BYTES:
                break
    if too_much:
        raise Refusal(
            413, f"The body is larger than the {MOST_BYTES:,} bytes that are read; send less at once."
        )
    return bytes(found)


class _Guard:
    """Lets in who has the key, where there is one, and asks for a host by a name of ours.

    The latter for servers that only this machine reaches: a page from elsewhere can send its readers to them under its own
    name, and then is of the same origin as they. Whether it is alive a server says to everybody.
    """

    def __init__(self, app: ASGIApp, terms: Terms) -> None:
        self._app, self._hosts = app, terms.hosts
        self._key = terms.api_key and f"Bearer {terms.api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        why = self._objection(Request(scope)) if scope["type"] == "http" else None
        await (_answered(why) if why else self._app)(scope, receive, send)

    def _objection(self, request: Request) -> Refusal | None:
        headers = request.headers
        host = headers.get("host", "")
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if self._hosts is not None and name.lower() not in self._hosts:
            return Refusal(403, f"This server answers to {', '.join(self._hosts)} alone.")
        given = headers.get("authorization", "").encode()
        if self._key and request.url.path != "/health" and not hmac.compare_digest(given, self._key):
            return Refusal(
                401,
                "The API key is missing or wrong; send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None


def _json(body: dict[str, Any]) -> Response:
    return Response(encoded(body), media_type="application/json")


def _answered(why: Refusal) -> Response:
    return Response(encoded(why.body), why.status, dict(why.headers))


async def _refused(_: Request, why: Exception) -> Response:
    assert isinstance(why, Refusal)
    return _answered(why)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:100]
    said = {
        404: f"There is no {path!r} here; there are /v1/completions, /v1/chat/completions, /v1/models and /health.",
        405: f"{path!r} does not take {request.method[:20]}; the header Allow says what it does.",
    }
    why = said.get(error.status_code, error.detail)
    return _answered(Refusal(error.status_code, why, headers=error.headers))


async def _failed(_: Request, error: Exception) -> Response:
    return _answered(Refusal(500, "The server failed at this request; its log says how."))


async def _nobody_there(_: Request, error: Exception) -> Response:
    return Response()
