"""The page over folders that grow, for this machine alone."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mlperf_jax.errors import UserError
from mlperf_jax.reporting import page
from mlperf_jax.reporting.tables import References
from mlperf_jax.rounds.collect import Reader

HOST = "127.0.0.1"
_PATIENCE_SECONDS = 10.0
_LEAST_SECONDS = 2.0  # between two looks at the folders, however many pages ask


@dataclasses.dataclass
class _Shown:
    version: str = ""
    html: bytes = b""
    looked: float = float("-inf")


class Source:
    """The newest page; made anew when what it shows has changed."""

    def __init__(self, roots: Sequence[Path], references: References, metric: str) -> None:
        self._roots, self._references, self._metric = roots, references, metric
        self._reader = Reader()
        self._shown = _Shown()
        self._lock = threading.Lock()

    def version(self) -> str:
        return self._newest().version

    def html(self) -> bytes:
        return self._newest().html

    def _newest(self) -> _Shown:
        with self._lock:
            if time.monotonic() - self._shown.looked > _LEAST_SECONDS:
                self._look()
            return self._shown

    def _look(self) -> None:
        report = page.read_report(self._reader, self._roots)
        marks: list[tuple[object, ...]] = [
            (str(r.path), r.score, [(len(log.events), len(log.throughput.points)) for log in r.logs])
            for r in report.results
        ]
        marks += [(str(run.path), run.fields, len(run.latencies)) for run in report.inference]
        version = hashlib.sha256(repr((marks, report.problems)).encode("utf-8", "replace")).hexdigest()[:16]
        if version != self._shown.version:
            html = page.render(report, self._references, self._metric, live=version)
            self._shown = _Shown(version, html.encode())
        self._shown.looked = time.monotonic()


class _Server(http.server.ThreadingHTTPServer):
    """Says nothing of clients that go away or fall silent; everything else that goes wrong in a word."""

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            reason = str(error) or type(error).__name__
            print(f"mlperf_jax: a page could not be shown ({reason}).", file=sys.stderr, flush=True)


def make_server(source: Source, port: int) -> http.server.ThreadingHTTPServer:
    """A server that answers this machine only: "/" with the page, "/version" with what it shows.

    Raises:
        UserError: the port is taken.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _PATIENCE_SECONDS  # with who connects and does not speak, or does not listen

        def do_GET(self) -> None:
            # A page from elsewhere can send its readers here under its own name; it learns nothing.
            name = self.headers.get("Host", "").rsplit(":", 1)[0]
            if name not in (HOST, "localhost"):
                self.send_error(403)
            elif self.path == "/":
                self._answer(source.html(), "text/html; charset=utf-8")
            elif self.path == "/version":
                self._answer(source.version().encode(), "text/plain; charset=utf-8")
            else:
                self.send_error(404)

        def _answer(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Says nothing: requests are nobody's news."""

    try:
        return _Server((HOST, port), Handler)
    except OSError as error:
        raise UserError(
            f"Port {port} cannot be used ({error.strerror}); choose another with --port."
        ) from None


def serve(roots: Sequence[Path], references: References, metric: str, port: int) -> int:
    """Shows the page until Ctrl-C."""
    source = Source(roots, references, metric)
    source.version()  # what is wrong with the folders is said before there is a server
    with make_server(source, port) as server:
        print(f"http://{HOST}:{server.server_address[1]}/ (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0
