"""What the HTTP door costs the engine: eight clients that stream texts of a device that does nothing, or takes its time.

    python -m benchmarks.http_door benchmarks/http_door.json

Of each time of a step, rounds in turns: the engine alone, whose listeners do nothing, and the same texts streamed to clients in a process of
their own. Tokens a second are of the wall clock, CPU is that of the process with engine and server.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from mlperf_jax.tokens.engine import Engine
from mlperf_jax.tokens.openai import server
from mlperf_jax.tokens.openai.app import Terms, make_app
from mlperf_jax.tokens.openai.desk import Desk
from mlperf_jax.tokens.openai.detokenizer import Numbers
from mlperf_jax.tokens.programs import Chunk, Sizes
from mlperf_jax.tokens.requests import Request

CLIENTS, ROUNDS = 8, 5
STEPS = {0.0: 2000, 0.002: 1000, 0.005: 400, 0.02: 150}
"""Seconds of a step -> tokens of a text."""


class Paced:
    """A device whose step takes its time, and no processor."""

    vocabulary = 1000
    ends: tuple[int, ...] = ()

    def __init__(self, step_s: float) -> None:
        self.sizes = Sizes(slots=CLIENTS, pages=CLIENTS * 256 + 1, page=16, length=4096, chunks=(64,))
        self._step_s, self._tokens = step_s, np.arange(100, 100 + CLIENTS, dtype=np.int32)

    def prefill(self, chunk: Chunk) -> np.int32:
        return np.int32(99)

    def step(self, slots: int) -> np.ndarray:
        if self._step_s:
            time.sleep(self._step_s)
        return self._tokens

    def stop(self, slot: int) -> None: ...


class _Deaf:
    def __init__(self, done: threading.Semaphore) -> None:
        self._done = done

    def token(self, token: int, last: bool) -> None:
        if last:
            self._done.release()

    def failed(self, why: str) -> None:
        raise RuntimeError(why)


def engine_alone(step_s: float, tokens: int) -> dict[str, float]:
    """Tokens a second, and microseconds of CPU a token."""
    done = threading.Semaphore(0)
    with Engine(Paced(step_s)) as engine:
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(CLIENTS):
            engine.submit(Request(np.array([1, 2, 3]), tokens), _Deaf(done))
        for _ in range(CLIENTS):
            done.acquire()
        return _figures(tokens, time.perf_counter() - began, time.process_time() - cpu)


def through_the_door(step_s: float, tokens: int) -> dict[str, float]:
    """The same, as the clients see it."""
    desk, up = Desk([Paced(step_s)], queue=0), threading.Event()
    with server.bound("127.0.0.1", 0) as listening:
        running = server.Server(make_app(desk, Terms("paced", Numbers())), desk, ready=up.set)
        port = listening.getsockname()[1]
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        up.wait()
        command = [sys.executable, "-m", "benchmarks.http_door", f"--port={port}", f"--tokens={tokens}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
            assert clients.stdin and clients.stdout
            clients.stdout.readline()
            cpu = time.process_time()
            seconds = float(clients.communicate("go\n")[0])
            cpu = time.process_time() - cpu
        running.should_exit = True
        thread.join()
    return _figures(tokens, seconds, cpu)


def _figures(tokens: int, seconds: float, cpu: float) -> dict[str, float]:
    told = CLIENTS * tokens
    return {"tokens_per_s": told / seconds, "cpu_us_per_token": 1e6 * cpu / told}


def clients(port: int, tokens: int) -> None:
    """Streams, all at once; prints how many seconds they took together."""
    body = json.dumps(
        {
            "prompt": [1, 2, 3],
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    asked = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    def stream() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(asked)
            tail = b""
            while b"[DONE]" not in tail:
                tail = tail[-1000:] + connection.recv(1 << 16)
            assert f'"completion_tokens":{tokens},'.encode() in tail

    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    threads = [threading.Thread(target=stream) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(time.perf_counter() - began)


def measure() -> list[dict[str, Any]]:
    """Of each time of a step the median round of both sides."""
    rows = []
    for step_s, tokens in STEPS.items():
        rounds = [(engine_alone(step_s, tokens), through_the_door(step_s, tokens)) for _ in range(ROUNDS)]
        row: dict[str, Any] = {"step_ms": 1000 * step_s, "tokens": tokens}
        for name, side in zip(("engine", "door"), zip(*rounds, strict=True), strict=True):
            row[name] = {key: [round(one[key], 2) for one in side] for key in side[0]}
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    engine, door = (statistics.median(row[name]["tokens_per_s"]) for name in ("engine", "door"))
    cpu = statistics.median(row["door"]["cpu_us_per_token"])
    return f"| {row['step_ms']:g} | {engine:,.0f} | {door:,.0f} | {door / engine:.2f} | {cpu:.0f} |"


def to_markdown(record: dict[str, Any]) -> str:
    return "\n".join(
        [
            "# The HTTP door beside the engine alone",
            "",
            f"{CLIENTS} clients stream at once; medians of {ROUNDS} rounds in turns; Python {record['python']}, "
            f"{record['cores']} cores, uvicorn {record['uvicorn']}, starlette {record['starlette']}.",
            "",
            "    python -m benchmarks.http_door benchmarks/http_door.json",
            "",
            "| ms of a step | engine alone, tokens/s | through the door, tokens/s | ratio | CPU us a token, engine and server |",
            "|---|---|---|---|---|",
            *(_line(row) for row in record["rows"]),
            "",
            "Where a step takes no time a piece holds many tokens, else one. Other work ran on the machine meanwhile: see the rounds.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, help="the record; a page goes beside it")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.port:
        clients(args.port, args.tokens)
        return
    versions = {name: importlib.metadata.version(name) for name in ("uvicorn", "starlette")}
    record = {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        **versions,
        "rows": measure(),
    }
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(to_markdown(record))


if __name__ == "__main__":
    main()
