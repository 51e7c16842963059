"""What a client is told where there is no answer, in the form in which OpenAI says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_JSON = {"Content-Type": "application/json"}


class Refusal(Exception):
    """Ends a request with a sentence.

    Attributes:
        status: of HTTP.
        message: the sentence.
        param: the field of the request that it is about.
        code: a word for programs.
        headers: beside those of every answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = _JSON | dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        error = {
            "message": self.message,
            "type": "server_error" if self.status >= 500 else kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


def encoded(body: Mapping[str, Any]) -> bytes:
    """JSON in a line, of ASCII alone: no character of a model's or a client's can break it."""
    return json.dumps(body, separators=(",", ":")).encode()
