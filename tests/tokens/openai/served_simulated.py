"""A server of its own over a simulated model, and clients of Python's standard library."""

import contextlib
import http.client
import json
import threading
import time

from mlperf_jax.tokens.openai import server
from mlperf_jax.tokens.openai.app import Terms, make_app
from mlperf_jax.tokens.openai.desk import Desk
from mlperf_jax.tokens.openai.detokenizer import Numbers
from mlperf_jax.tokens.programs import Sizes
from tests.tokens.simulated import Simulated

SIZES = Sizes(slots=4, pages=65, page=4, length=64, chunks=(4, 16))
SECONDS = 120  # of patience


class Gated(Simulated):
    """Takes a step only while its gate is open."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gate = threading.Event()
        self.gate.set()

    def step(self, slots):
        assert self.gate.wait(SECONDS)
        return super().step(slots)


class Letters:
    """A vocabulary of the 256 bytes and of longer pieces; a text is encoded byte by byte."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.most_bytes = max(map(len, pieces))

    def encode(self, text, *, special):
        return list(text.encode())

    def spelled(self, token):
        return self.pieces[token]


class Client:
    def __init__(self, running, port, desk):
        self.running, self.port, self.desk = running, port, desk

    def ask(self, path, body=None, *, method=None, headers=None, raw=None):
        """Status, headers and JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            data = raw if raw is not None else None if body is None else json.dumps(body).encode()
            sent = {"Content-Type": "application/json"} if data is not None else {}
            method = method or ("GET" if data is None else "POST")
            connection.request(method, path, data, sent | (headers or {}))
            answer = connection.getresponse()
            content = answer.read()
            kind = answer.headers.get("Content-Type", "")
            if kind.startswith("text/event-stream"):
                return answer.status, answer.headers, events(content)
            return answer.status, answer.headers, json.loads(content)

    def complete(self, prompt, path="/v1/completions", **fields):
        """The JSON of an answer that succeeded, or its events."""
        status, _, found = self.ask(path, {"prompt": prompt} | fields)
        assert status == 200, found
        return found

    @contextlib.contextmanager
    def streaming(self, **fields):
        """A connection whose stream has begun."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            body = json.dumps({"stream": True} | fields).encode()
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            yield connection

    def wait_until_idle(self):
        """All places of the desk and all slots and pages of its engines are free."""

        def idle():
            schedulers = [engine._scheduler for engine in self.desk._engines]
            return (
                not any(self.desk._under_way)
                and not self.desk._orders
                and all(
                    one.idle and one.pages.free == one.pages.total and len(one._slots) == SIZES.slots
                    for one in schedulers
                )
            )

        wait_for(idle)


def wait_for(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


def events(content):
    """What the events of a stream hold; the last may be "[DONE]"."""
    *found, rest = content.decode().split("\n\n")
    assert rest == "" and all(one.startswith("data: ") for one in found)
    return [one[6:] if one == "data: [DONE]" else json.loads(one[6:]) for one in found]


def text_of(found):
    """The text of a stream's first choice; its usage, if it has one."""
    assert found[-1] == "[DONE]"
    pieces = [one["choices"][0] for one in found[:-1] if one["choices"]]
    assert [piece["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    return "".join(piece.get("text", "") or piece.get("delta", {}).get("content", "") for piece in pieces)


@contextlib.contextmanager
def served(*programs, queue=8, **terms):
    """A client of a server in a thread."""
    desk = Desk(programs, queue=queue)
    up = threading.Event()
    with server.bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        terms = Terms(**{"model": "toy", "vocabulary": Numbers()} | terms)
        running = server.Server(make_app(desk, terms), desk, ready=up.set)
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            assert up.wait(SECONDS)
            yield Client(running, port, desk)
        finally:
            running.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()
