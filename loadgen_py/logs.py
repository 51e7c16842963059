"""The four log files of a run, in the official formats."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from loadgen_py.issue import Phase
from loadgen_py.settings import LogSettings, TestScenario
from mlperf_jax.errors import UserError

LOG_ENDINGS = {"summary": "txt", "detail": "txt", "accuracy": "json", "trace": "json"}
_PACKAGE = Path(__file__).parent


def _json_value(value: Any) -> str:
    """A value as the official log writes it, except that not-a-number and infinity become null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "null"
    if isinstance(value, np.ndarray):
        return json.dumps(value.tolist(), separators=(",", ":"))
    return json.dumps(value)


class LoggedAnswers:
    """The answers of one phase that go into the accuracy log, in order of completion.

    `wanted` is `[samples]` bool, or None for all of them.
    """

    def __init__(self, wanted: np.ndarray | None) -> None:
        self._wanted = wanted
        self._answers: dict[int, tuple[bytes, int]] = {}
        self._first_tokens: dict[int, bytes] = {}

    def wants(self, position: int) -> bool:
        """Whether the sample's answer is logged."""
        return self._wanted is None or (position < len(self._wanted) and bool(self._wanted[position]))

    def answer(self, position: int, data: bytes, n_tokens: int) -> None:
        """Keeps an answer."""
        self._answers[position] = (data, n_tokens)

    def first_token(self, position: int, data: bytes) -> None:
        """Keeps a first token."""
        self._first_tokens[position] = data

    def entries(self, phase: Phase, first_seq: int) -> Iterable[str]:
        """The lines of the accuracy log."""
        tokens = phase.settings.requested.use_token_latencies
        first_tokens = tokens and phase.settings.scenario != TestScenario.Offline
        for position, (data, n_tokens) in list(self._answers.items()):
            entry = (
                f'{{ "seq_id" : {first_seq + position}, "qsl_idx" : {phase.queries.indices[position]}, '
                f'"data" : "{data.hex().upper()}"'
            )
            if first_tokens:
                entry += f', "token_data" : "{self._first_tokens.get(position, b"").hex().upper()}"'
            if tokens:
                entry += f', "token_count" : {n_tokens}'
            yield entry + " }"


class Logs:
    """The open log files of one run.

    Attributes:
        paths: the files by kind: summary, detail, accuracy, trace.
        error_count, warning_count: what the detail log holds of each.
    """

    def __init__(self, settings: LogSettings, date_time: str) -> None:
        output = settings.log_output
        self._settings = settings
        stem = output.prefix + (f"{date_time}_" if output.prefix_with_datetime else "")
        folder = Path(output.outdir)
        self.paths = {
            kind: folder / f"{stem}{kind}{output.suffix}.{end}" for kind, end in LOG_ENDINGS.items()
        }
        self._files: dict[str, IO[str]] = {}
        try:
            for kind, path in self.paths.items():
                self._files[kind] = path.open("w", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            self._close_files()
            raise UserError(
                f"The log file {path} cannot be written ({error.strerror}); give an outdir that exists."
            ) from None
        self._origin = time.perf_counter_ns()
        self._pid = os.getpid()
        self._accuracy_entries = 0
        self._traced = 0
        self.error_count = self.warning_count = 0
        self._files["accuracy"].write("[")
        if settings.enable_trace:
            self._files["trace"].write('{"traceEvents":[\n')

    def detail(self, key: str, value: Any, *, is_error: bool = False, is_warning: bool = False) -> None:
        """One line of the detail log; `value` may be a number, text, or a list or array of numbers."""
        self.error_count += is_error
        self.warning_count += is_warning
        caller = sys._getframe(1)
        while caller.f_code.co_filename == __file__ and caller.f_back is not None:
            caller = caller.f_back
        path = Path(caller.f_code.co_filename)
        path = path.relative_to(_PACKAGE.parent) if path.is_relative_to(_PACKAGE) else Path(path.name)
        time_ns = time.perf_counter_ns() - self._origin
        line = (
            f':::MLLOG {{"key": {json.dumps(key)}, "value": {_json_value(value)}, '
            f'"time_ms": {time_ns // 1_000_000}.{time_ns % 1_000_000:06d}, '
            '"namespace": "mlperf::logging", "event_type": "POINT_IN_TIME", '
            f'"metadata": {{"is_error": {_json_value(is_error)}, "is_warning": {_json_value(is_warning)}, '
            f'"file": {json.dumps(str(path))}, "line_no": {caller.f_lineno}, '
            f'"pid": {self._pid}, "tid": {threading.get_native_id()}}}}}\n'
        )
        self._write("detail", line, self._settings.log_output.copy_detail_to_stdout)

    def details(self, fields: dict[str, Any]) -> None:
        """Several lines of the detail log."""
        for key, value in fields.items():
            self.detail(key, value)

    def error(self, text: str, key: str = "error_runtime") -> None:
        """An error in the detail log."""
        self.detail(key, text, is_error=True)

    def warning(self, text: str) -> None:
        """A warning in the detail log."""
        self.detail("warning_generic_message", text, is_warning=True)

    def summary(self, lines: Iterable[str]) -> None:
        """Lines of the summary."""
        text = "".join(f"{line}\n" for line in lines)
        self._write("summary", text, self._settings.log_output.copy_summary_to_stdout)

    def accuracy(self, entries: Iterable[str]) -> None:
        """Entries of the accuracy log."""
        for entry in entries:
            self._files["accuracy"].write((",\n" if self._accuracy_entries else "\n") + entry)
            self._accuracy_entries += 1

    def trace(self, phase: Phase, first_seq: int, first_query: int) -> None:
        """Adds a phase's samples to the trace, up to the number of samples it may hold."""
        if not self._settings.enable_trace:
            return
        issued, size = phase.responses.issued, phase.queries.samples_per_query
        count = min(issued, max(self._settings.max_trace_samples - self._traced, 0))
        self._traced += count
        out = self._files["trace"]
        for position in range(count):
            done = phase.responses.done[position]
            if not done:
                continue
            query = position // size
            issued_at = phase.issued_at[query]
            scheduled = issued_at
            if phase.settings.scenario == TestScenario.Server:
                scheduled = phase.start_ns + int(phase.queries.due_ns[position])
                out.write(
                    f'{{"name":"Latency","ph": "C","pid":{self._pid},"ts":{self._micros(scheduled)},'
                    f'"args":{{ "issue_delay":{issued_at - scheduled},'
                    f'"issue_to_done":{done - issued_at}}}}},\n'
                )
            elif phase.settings.scenario == TestScenario.Offline:
                scheduled = phase.start_ns
            common = f'"name":"Sample","cat":"default","pid":{self._pid},"id":{first_seq + position}'
            out.write(
                f'{{{common},"ph":"b","ts":{self._micros(scheduled)},'
                f'"args":{{"sample_seq":{first_seq + position},'
                f'"query_seq":{first_query + query},"sample_idx":{phase.queries.indices[position]},'
                f'"issue_start_ns":{issued_at - scheduled},"complete_ns":{done - scheduled}}}}},\n'
                f'{{{common},"ph":"e","ts":{self._micros(done)}}},\n'
            )

    def _micros(self, time_ns: int) -> str:
        return f"{(time_ns - self._origin) / 1000:.3f}"

    def _write(self, kind: str, text: str, copy_to_stdout: bool) -> None:
        self._files[kind].write(text)
        self._files[kind].flush()
        if copy_to_stdout:
            sys.stdout.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        """Completes and closes the files."""
        counts = []
        for count, one, many, end in (
            (self.warning_count, "1 warning", "warnings", "warnings"),
            (self.error_count, "1 ERROR", "ERRORS", "errors"),
        ):
            if count == 0:
                counts.append(f"\nNo {end} encountered during test.")
            else:
                counts.append(f"\n{one if count == 1 else f'{count} {many}'} encountered. See detailed log.")
        self.summary(counts)
        self._files["accuracy"].write("\n]\n")
        if self._settings.enable_trace:
            self._files["trace"].write(
                '{"name":"LastTrace"}\n],\n"displayTimeUnit":"ns",\n'
                f'"otherData":{{\n"ts":{self._origin / 1000:.3f},\n"version":"MLPerf LoadGen v1.0"\n}}\n}}\n'
            )
        self._close_files()

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()
