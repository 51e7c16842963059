"""What a request's JSON asks for, by OpenAI's reference of its completions and with what vLLM adds for load generators.

Unknown fields are ignored, as other servers do, so that clients of these can be used; known ones that ask for what is not
offered are refused, unless they say what is so anyhow.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlperf_jax.tokens.openai.refusals import Refusal
from mlperf_jax.tokens.requests import Request

MOST_STOPS, LONGEST_STOP = 16, 256
_MOST_TOKENS = 16  # of a completion whose client names no number, as OpenAI has it
_ROLES = ("system", "developer", "user", "assistant")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (),
    "prompt_logprobs": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "top_k": (-1, 0),
    "min_p": (0,),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
}
"""Fields of what is not offered, with the values that ask for nothing of it; null is one of each."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """How to answer; see `Request` for what is of its names.

    Attributes:
        chat: whether it is a chat's, which goes on as long as there is room, and not for a few tokens only.
        max_tokens: None where the client says nothing of it.
        stops: strings before which a text ends.
        ignore_eos: whether only `max_tokens` and `stops` end it.
        seed: None to draw one.
        stream: token by token.
        include_usage: whether a stream ends with the counts.
    """

    chat: bool
    max_tokens: int | None
    min_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stops: tuple[str, ...]
    ignore_eos: bool
    stream: bool
    include_usage: bool

    def request(self, prompt: Sequence[int], length: int) -> Request:
        """For the engine, in which a text has `length` positions."""
        room = max(length - len(prompt), 1)
        most = self.max_tokens or (room if self.chat else min(_MOST_TOKENS, room))
        return Request(
            # Numbers that no array holds are of no vocabulary either.
            np.array([max(-1, min(token, 2**31)) for token in prompt], np.int64),
            most,
            most if self.ignore_eos else self.min_tokens,
            self.temperature,
            self.top_p,
            random.getrandbits(32) if self.seed is None else self.seed % (1 << 32),
        )


def read(body: bytes) -> dict[str, Any]:
    """The fields of a request.

    Raises:
        Refusal: it is no JSON object, or has characters that are none.
    """
    try:
        found = json.loads(body, parse_constant=_no_number)
        if b"\\u" in body:  # with which JSON can write half of a pair of surrogates, of which no text is made
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is no JSON that can be read ({error}).") from None
    if not isinstance(found, dict):
        raise Refusal(400, "The body must be a JSON object.")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def asked(fields: Mapping[str, Any], *, chat: bool) -> Asked:
    """How to answer a request.

    Raises:
        Refusal: a field is not what it must be, or asks for what is not offered.
    """
    for name, neutral in _NEUTRAL.items():
        value = fields.get(name)
        if value is not None and not any(_same(value, one) for one in neutral):
            kept = f", or give {json.dumps(neutral[0])}" if neutral else ""
            raise Refusal(400, f"{name} is not offered here; leave it out{kept}.", param=name)
    stream = _flag(fields, "stream")
    options = fields.get("stream_options")
    if options is not None and (not stream or not isinstance(options, dict)):
        raise Refusal(400, "stream_options is an object that goes with stream=true.", param="stream_options")
    name = (
        "max_completion_tokens" if chat and fields.get("max_completion_tokens") is not None else "max_tokens"
    )
    return Asked(
        chat=chat,
        max_tokens=_integer(fields, name, None, least=1),
        min_tokens=_integer(fields, "min_tokens", 0, least=0) or 0,
        temperature=_number(fields, "temperature", 1.0),
        top_p=_number(fields, "top_p", 1.0),
        seed=_integer(fields, "seed", None),
        stops=_stops(fields.get("stop")),
        ignore_eos=_flag(fields, "ignore_eos"),
        stream=stream,
        include_usage=_flag(options or {}, "include_usage"),
    )


def _same(value: Any, neutral: Any) -> bool:
    """As JSON has it, where 0 is not false."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def _wrong(name: str, wanted: str) -> Refusal:
    return Refusal(400, f"{name} must be {wanted}.", param=name)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _wrong(name, "true or false")
    return value


def _integer(
    fields: Mapping[str, Any], name: str, default: int | None, *, least: int | None = None
) -> int | None:
    value = fields.get(name)
    if value is None:
        return default
    if not _is_integer(value) or (least is not None and value < least):
        raise _wrong(name, "an integer" + ("" if least is None else f" of {least} or more"))
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(fields: Mapping[str, Any], name: str, default: float) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, float) and not _is_integer(value):
        raise _wrong(name, "a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    return found


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops)
    ):
        raise _wrong(
            "stop", f"a string or at most {MOST_STOPS} of them, each of 1 to {LONGEST_STOP} characters"
        )
    return tuple(stops)


def prompts(fields: Mapping[str, Any]) -> list[str | list[int]]:
    """What a completion is to continue: texts, or tokens; one or several.

    Raises:
        Refusal: there is nothing, or something else.
    """
    value: Any = fields.get("prompt")
    if isinstance(value, str) or _are_tokens(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(one, str) or _are_tokens(one) for one in value):
        return value
    raise _wrong("prompt", "a text, a list of tokens, or a list of several of these")


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_integer, value))


def messages(fields: Mapping[str, Any]) -> list[dict[str, str]]:
    """Of a chat: `role` and `content` of each message, a content's parts put together.

    Raises:
        Refusal: there are none, or something else.
    """
    value = fields.get("messages")
    if not isinstance(value, list) or not value:
        raise _wrong("messages", "a list of at least one message")
    found = []
    for number, message in enumerate(value):
        name = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise _wrong(name, f"an object whose role is one of {', '.join(_ROLES)}")
        found.append(
            {"role": message["role"], "content": _content(message.get("content"), f"{name}.content")}
        )
    return found


def _content(value: Any, name: str) -> str:
    parts = [{"type": "text", "text": value}] if isinstance(value, str) else value
    if isinstance(parts, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in parts
    ):
        return "".join(part["text"] for part in parts)
    raise _wrong(name, "a text, or a list of parts of type text")
