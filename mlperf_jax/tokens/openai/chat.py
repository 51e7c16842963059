"""From the messages of a chat to the text that the model continues."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.tokens.openai import template_process
from mlperf_jax.tokens.openai.refusals import Refusal

_LARGEST = 1 << 20  # bytes of a file with a template
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "TZ", "LANG")


def plain(messages: Sequence[Mapping[str, str]]) -> str:
    """Where there is no template: each message as "role: content" in a line of its own, and "assistant:" behind them."""
    return "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant:"


def find_template(tokenizer: Path) -> tuple[str, dict[str, str]] | None:
    """What a tokenizer's folder says of chats, in the files that transformers keeps beside tokenizer.json.

    Returns:
        The template, of `chat_template.jinja` or `tokenizer_config.json`, and the names of special tokens for it; None if
        there is none.

    Raises:
        UserError: a file cannot be read.
    """
    config = _json(tokenizer.with_name("tokenizer_config.json"))
    own = tokenizer.with_name("chat_template.jinja")
    template = _text(own) if own.exists() else config.get("chat_template")
    if isinstance(template, list):  # of several, by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise UserError(f"The chat template beside {tokenizer} is no text; put a sound copy there.")
    special = {}
    for name in ("bos_token", "eos_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        special[name] = token if isinstance(token, str) else ""
    return template, special


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path)) if path.exists() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}); put a sound copy there.") from None
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path} is larger than {_LARGEST:,} bytes; that is no chat template's file.")
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); put a sound copy there.") from None


class Template:
    """A chat template, filled in by `template_process`, which starts with the first chat.

    Args:
        source: the template.
        special: further variables.
    """

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        self._source, self._special = source, dict(special)
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()

    def fill_in(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text to be continued; from any thread, for which it may take a while.

        Raises:
            Refusal: the template does not take these messages, or is none.
        """
        variables = self._special | {"messages": list(messages), "add_generation_prompt": True, "tools": None}
        with self._one_at_a_time:
            try:
                if self._process is None:
                    self._start()
                return self._ask(variables)
            except (EOFError, OSError):
                self._end()
                raise Refusal(
                    400,
                    f"The model's chat template took more than {template_process.SECONDS:g} s of the processor or too "
                    "much memory.",
                    param="messages",
                ) from None

    def close(self) -> None:
        """Ends the process."""
        with self._one_at_a_time:
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", template_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        )
        try:
            self._ask(self._source)
        except Refusal:
            self._end()  # the next frame would be taken for the template
            raise

    def _ask(self, frame: Any) -> str:
        assert self._process and self._process.stdin and self._process.stdout
        sent = json.dumps(frame).encode()
        self._process.stdin.write(len(sent).to_bytes(4, "big") + sent)
        self._process.stdin.flush()
        answer = json.loads(self._read(int.from_bytes(self._read(4), "big")))
        if "text" not in answer:
            raise Refusal(
                400, f"The model's chat template refuses these messages ({answer['why']}).", param="messages"
            )
        return answer["text"]

    def _read(self, size: int) -> bytes:
        assert self._process and self._process.stdout
        found = self._process.stdout.read(size)
        if len(found) < size:
            raise EOFError
        return found
