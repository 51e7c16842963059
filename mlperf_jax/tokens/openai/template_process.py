"""Fills in a chat template: a process of its own, as a template is a program of whoever made the tokenizer.

It runs in jinja2's sandbox, writes no file, and ends itself when it takes too long or too much memory. Frames on standard input
and output are four bytes of length, big-endian, and JSON: first the template, then variables; to each the answer {"text"} or {"why"}.
The interface is that of chat templates in Hugging Face's transformers: messages, add_generation_prompt, raise_exception, strftime_now.
"""

from __future__ import annotations

import datetime
import json
import resource
import signal
import sys
from typing import Any

import jinja2.debug  # what jinja2 itself imports when a template fails, and could not later
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, MOST_BYTES, LONGEST = 0.5, 1 << 29, 1 << 22
"""What a chat may take: time of the processor, memory of the process, and characters that come out."""


def main() -> None:
    """Answers until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; chats under way are finished
    # Whoever started this may ignore or block the signal that is to end it, and both would be inherited.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    template: Any = None
    while (frame := _read()) is not None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
        try:
            if template is None:
                template = environment().from_string(frame)
                text = ""
            else:
                text = template.render(**frame)
            answer = {"text": text} if len(text) <= LONGEST else {"why": f"it makes {len(text):,} characters"}
        except Exception as error:
            answer = {"why": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(answer)


def environment() -> ImmutableSandboxedEnvironment:
    """What a template finds there."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    found.filters["tojson"] = _to_json
    found.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return found


def _to_json(value: Any, indent: int | None = None) -> str:
    """As it is: jinja2's own writes it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _raise(why: str) -> None:
    raise jinja2.TemplateError(why)


def _read() -> Any:
    size = sys.stdin.buffer.read(4)
    return json.loads(sys.stdin.buffer.read(int.from_bytes(size, "big"))) if len(size) == 4 else None


def _write(answer: dict[str, str]) -> None:
    frame = json.dumps(answer).encode()
    sys.stdout.buffer.write(len(frame).to_bytes(4, "big") + frame)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
