"""The processes of one run find each other, and notice at once when one of them is gone.

jax's own runtime aborts a process whose partners do not come, with a C++ stack, and notices a dead one after
half a minute. So the others first say to process 0, at the address that `--coordinator` names, that they are
there; when all are, jax takes over the port, and the connections stay open. The kernel closes those of a
process that is killed, whatever it was doing, and process 0 tells who it was.

    process k                         process 0
    mlperf_jax 1 k of n       ->
                              <-      go                  all n are there
                              <-      no REASON           they do not go together, or not all came
    bye                       ->                          an ordinary end, of either
                              <-      lost j              process j is gone
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from mlperf_jax.errors import UserError

_HELLO = re.compile(r"mlperf_jax 1 (\d{1,9}) of (\d{1,9})")
_LONGEST_LINE = 1000
_STRANGERS_SECONDS = 2.0  # so long may whoever connects keep the others waiting for its first line
_RETRY_SECONDS = 0.2
_TELL_AFTER_SECONDS = 5.0
# A machine that is gone closes nothing: after 5 s of silence it is asked every 5 s, three times.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `--coordinator`.

    Raises:
        UserError: it is not of the form host:port, or there can be no such port.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""  # an IPv6 address without brackets: its last group would be taken for the port
    if not (host and colon and re.fullmatch(r"[\w.:%-]+", host) and re.fullmatch(r"\d{1,5}", port)):
        raise UserError(f"--coordinator={text} is not of the form host:port; as in --coordinator=host0:1234.")
    if not 0 < int(port) < 65536:
        raise UserError(f"--coordinator={text} names port {port}; ports go from 1 to 65535.")
    return host, int(port)


class Partners:
    """The connections to the other processes of a run, made by `join`.

    Attributes:
        lost: in a phrase, which process was found to be gone first; "" while all are there.
    """

    def __init__(self, connections: Mapping[int, _Connection]) -> None:
        self.lost = ""
        self._connections = dict(connections)
        self._found = threading.Event()

    def watch(self, on_loss: Callable[[], None]) -> None:
        """Calls `on_loss` in a thread of its own when one of them is gone."""
        threading.Thread(target=self._watch, args=(on_loss,), name="partners", daemon=True).start()

    def find_lost(self, seconds: float) -> str:
        """`lost`, for which an error is already there, after waiting for it so long at most."""
        self._found.wait(seconds)
        return self.lost

    def bye(self) -> None:
        """Tells the others that this process ends in good order."""
        for connection in self._connections.values():
            connection.tell("bye")

    def _watch(self, on_loss: Callable[[], None]) -> None:
        with selectors.DefaultSelector() as selector:
            for index, connection in self._connections.items():
                selector.register(connection.socket, selectors.EVENT_READ, index)
            while selector.get_map() and not self.lost:
                for key, _ in selector.select():
                    line = self._connections[key.data].line()
                    if line == "bye":
                        selector.unregister(key.fileobj)
                    elif not self.lost:
                        gone = line.removeprefix("lost ") if line.startswith("lost ") else f"{key.data}"
                        self.lost = f"process {gone} ended or was killed"
                        for index, connection in self._connections.items():
                            if index != key.data:
                                connection.tell(f"lost {gone}")
        if self.lost:
            self._found.set()
            on_loss()


def join(address: str, num_processes: int, process_id: int, seconds: float) -> Partners:
    """Waits until all processes of a run are there.

    Args:
        address: host:port of process 0.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        seconds: how long to wait.

    Raises:
        UserError: they do not go together, or not all came in time; the sentence names those.
    """
    host, port = parse_address(address)
    if process_id >= num_processes:
        raise UserError(
            f"--process_id={process_id} of --num_processes={num_processes} cannot be; they count from 0."
        )
    end = time.monotonic() + seconds
    if process_id == 0:
        return Partners(_gather(host, port, num_processes, end, seconds))
    return Partners({0: _present(host, port, num_processes, process_id, end, seconds)})


class _Connection:
    """Lines over a socket."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)

    def tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # who is gone need not be told
            self.socket.sendall(line.encode() + b"\n")

    def line(self, end: float | None = None) -> str:
        """The next line, "" where there is none any more, or none until `end`."""
        received = b""
        try:
            while not received.endswith(b"\n") and len(received) < _LONGEST_LINE:
                self.socket.settimeout(None if end is None else max(end - time.monotonic(), 0.001))
                byte = self.socket.recv(1)
                if not byte:
                    return ""
                received += byte
        except OSError:
            return ""
        return received.decode("utf-8", "replace").strip()


def _gather(host: str, port: int, count: int, end: float, seconds: float) -> dict[int, _Connection]:
    """What process 0 does: hears the others."""
    found: dict[int, _Connection] = {}
    try:
        with _listening(host, port) as server:
            told = False
            while len(found) < count - 1:
                left = end - time.monotonic()
                missing = sorted(set(range(1, count)) - found.keys())
                if left <= 0:
                    raise UserError(
                        f"{_named(missing)} did not come to {host}:{port} within {seconds:g} s; start all "
                        f"{count} processes with the same --coordinator and --num_processes."
                    )
                if not told and left < seconds - _TELL_AFTER_SECONDS:
                    print(
                        f"mlperf_jax: waiting for {_named(missing)} at {host}:{port}",
                        file=sys.stderr,
                        flush=True,
                    )
                    told = True
                server.settimeout(min(left, 1.0))
                with contextlib.suppress(TimeoutError):
                    _welcome(_Connection(server.accept()[0]), found, count)
                _require_all_there(found)
    except UserError as error:
        for connection in found.values():
            connection.tell(f"no {error}")
        raise
    for connection in found.values():
        connection.tell("go")
    return found


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        if socket.has_dualstack_ipv6():
            server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            server = socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"Process 0 cannot listen at --coordinator={host}:{port} ({error.strerror}); name another port."
        ) from error
    with server:
        yield server


def _welcome(connection: _Connection, found: dict[int, _Connection], count: int) -> None:
    """Takes in whoever says that it is a process of this run; others are none of our business."""
    hello = _HELLO.fullmatch(connection.line(time.monotonic() + _STRANGERS_SECONDS))
    if hello is None:
        connection.socket.close()
        return
    index, theirs = int(hello[1]), int(hello[2])
    if theirs != count:
        reason = f"Process {index} was started with --num_processes={theirs} and process 0 with {count}; start all of them alike."
    elif not 0 < index < count or index in found:
        reason = (
            f"Two processes were started with --process_id={index}; give each its own, from 0 to {count - 1}."
        )
    else:
        found[index] = connection
        return
    connection.tell(f"no {reason}")
    raise UserError(reason)


def _require_all_there(found: Mapping[int, _Connection]) -> None:
    """Those that wait say nothing: what can be read is the end of a connection."""
    with selectors.DefaultSelector() as selector:
        for index, connection in found.items():
            selector.register(connection.socket, selectors.EVENT_READ, index)
        gone = sorted(key.data for key, _ in selector.select(0))
    if gone:
        raise UserError(
            f"{_named(gone)} ended before all others were there, and its own output may say why; "
            "repeat the same command in all of them."
        )


def _present(host: str, port: int, count: int, index: int, end: float, seconds: float) -> _Connection:
    """What the others do: say that they are there, until process 0 hears it and all have come."""
    while True:
        try:
            connection = _Connection(
                socket.create_connection((host, port), timeout=max(end - time.monotonic(), 0.001))
            )
            break
        except OSError as error:
            if time.monotonic() + _RETRY_SECONDS > end:
                raise UserError(
                    f"Process 0 was not to be reached at --coordinator={host}:{port} within {seconds:g} s "
                    f"({error.strerror or error}); start it there, or name the address that it has."
                ) from error
            time.sleep(_RETRY_SECONDS)
    connection.tell(f"mlperf_jax 1 {index} of {count}")
    # Process 0 began to wait at another time, and says itself when it gives up.
    answer = connection.line(end + seconds)
    connection.socket.settimeout(None)
    if answer == "go":
        return connection
    if answer.startswith("no "):
        raise UserError(answer.removeprefix("no "))
    raise UserError(
        f"What answered at --coordinator={host}:{port} hung up: process 0 ended, and its own output may say why, "
        "or the address is another program's; start all processes again, or name another port."
    )


def _named(processes: list[int]) -> str:
    shown = ", ".join(map(str, processes[:16])) + (", ..." if len(processes) > 16 else "")
    return f"{'Process' if len(processes) == 1 else 'Processes'} {shown}"
