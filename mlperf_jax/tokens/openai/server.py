"""The application on a socket, until it is told to stop."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from mlperf_jax.errors import Stopped, UserError
from mlperf_jax.tokens.openai.desk import Desk

GRACE_SECONDS = 10.0
"""For answers under way, after the server was told to stop."""
_CUT_OFF_SECONDS = 3.0  # for those who do not even take that they are told so
_UNREAD_SECONDS = 30.0  # that the network waits for a client that takes nothing
_SPARE_CONNECTIONS = 1024  # beside those of requests that there is room for


def bound(host: str, port: int) -> socket.socket:
    """A socket on which nothing listens yet.

    Raises:
        UserError: there is no such address, or the port is taken.
    """
    try:
        (family, kind, proto, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        found = socket.socket(family, kind, proto)
    except OSError as error:
        raise UserError(f"--host={host} is no address of this machine ({error.strerror}).") from None
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * _UNREAD_SECONDS))
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        raise UserError(
            f"Port {port} of {host} cannot be used ({error.strerror}); choose another with --port, 0 for any that is free."
        ) from None
    return found


def url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def own_names(listening: socket.socket) -> tuple[str, ...] | None:
    """The names by which a socket that this machine alone reaches is asked for; None where others reach it too."""
    host = listening.getsockname()[0]
    if not ipaddress.ip_address(host).is_loopback:
        return None
    return tuple(dict.fromkeys((f"[{host}]" if ":" in host else host, "localhost", "127.0.0.1", "[::1]")))


class Server(uvicorn.Server):
    """uvicorn's, which tells the desk when it stops.

    Args:
        app: over the desk.
        desk: that takes its requests.
        ready: called once it listens.
    """

    def __init__(self, app: ASGIApp, desk: Desk, *, ready: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            app,
            http="h11",  # it bounds what a client may send before its request is whole
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=desk.room + _SPARE_CONNECTIONS,
            timeout_graceful_shutdown=round(GRACE_SECONDS + _CUT_OFF_SECONDS),
        )
        super().__init__(config)
        self._desk, self._ready = desk, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._desk.close(GRACE_SECONDS)
        await super().shutdown(sockets)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within it SIGINT and SIGTERM end the command as `Stopped`, once uvicorn has done what it does at them."""

    def stop(number: int, _: Any) -> None:
        name = signal.Signals(number).name
        raise Stopped(f"Stopped by {name}.", 128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(app: ASGIApp, desk: Desk, listening: socket.socket, *, ready: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM.

    Raises:
        Stopped: it was one of these.
    """
    with stopped_by_signals():
        Server(app, desk, ready=ready).run(sockets=[listening])
