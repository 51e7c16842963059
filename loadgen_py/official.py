"""The same system under test through the official package, and the two results side by side."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from loadgen_py.advice import Reason
from loadgen_py.logs import LOG_ENDINGS
from loadgen_py.responses import Rows, as_bytes, told
from loadgen_py.result import Result
from loadgen_py.settings import TestSettings
from loadgen_py.sut import SampleLibrary, SystemUnderTest
from mlperf_jax.errors import UserError

T = TypeVar("T")

_EARLY = (
    ("", "early_stopping_result"),
    ("TTFT: ", "early_stopping_ttft_result"),
    ("TPOT: ", "early_stopping_tpot_result"),
)


def run_official(
    sut: SystemUnderTest,
    library: SampleLibrary,
    settings: TestSettings,
    log_dir: str | os.PathLike[str],
    *,
    audit_config: str | os.PathLike[str] = "audit.config",
) -> Result:
    """Tests a system of loadgen_py's idiom with `mlperf_loadgen`, if it is installed.

    Settings beyond the official ones have no effect; a system that never answers blocks
    for ever, as it does there. Only one test can run in a process at a time.

    Returns:
        The result as the official detail log has it. It is INVALID also where that log has
        errors or the system under test raised.

    Raises:
        UserError: if the package is not installed, `log_dir` does not exist, or several threads
            are to issue.
        KeyboardInterrupt: after the logs are written, if the user stopped the run.
    """
    lg = _official_module()
    log_dir = Path(log_dir)
    if not log_dir.is_dir():
        raise UserError(f"The log folder {log_dir} does not exist; create it first.")
    if settings.server_num_issue_query_threads:
        raise UserError(
            "The official package waits for ever for issuing threads that Python cannot register; "
            "set server_num_issue_query_threads to 0."
        )
    bridge = _Bridge(lg, sut)
    sut.start(bridge)
    logs = lg.LogSettings()
    logs.enable_trace = False
    logs.log_output.outdir = str(log_dir)
    handle = lg.ConstructFastSUT(bridge.issue, bridge.flush)
    qsl = lg.ConstructQSL(
        library.total_count,
        library.performance_count,
        lambda indices: bridge.call("The sample library", library.load, np.array(indices, np.int64)),
        lambda indices: bridge.call("The sample library", library.unload, np.array(indices, np.int64)),
    )
    try:
        lg.StartTestWithLogSettings(handle, qsl, _official_settings(lg, settings), logs, str(audit_config))
    finally:
        lg.DestroyQSL(qsl)
        lg.DestroyFastSUT(handle)
    if bridge.interrupted:
        raise KeyboardInterrupt
    return _read_result(settings, log_dir, bridge.error)


def side_by_side(ours: Result, theirs: Result) -> list[str]:
    """A table of the figures that both results have, for people."""
    rows: list[tuple[str, ...]] = [("", "loadgen_py", "official", "ratio")]
    verdicts = ["VALID" if result.valid else "INVALID" for result in (ours, theirs)]
    rows.append(("result", *verdicts, ""))
    for name, value in ours.metrics.items():
        other = theirs.metrics.get(name)
        if isinstance(value, int | float) and isinstance(other, int | float) and not isinstance(value, bool):
            ratio = f"{value / other:.3f}" if other else ""
            rows.append((name, f"{value:,.6g}", f"{other:,.6g}", ratio))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    return lines


def require_official() -> None:
    """Finds out before anything is measured whether the official package is there.

    Raises:
        UserError: it is not.
    """
    _official_module()


def _official_module() -> ModuleType:
    try:
        import mlperf_loadgen
    except ImportError:
        raise UserError(
            "The official LoadGen is not installed; run `pip install mlcommons-loadgen`, "
            "or leave --loadgen=official out."
        ) from None
    return mlperf_loadgen


def _official_settings(lg: ModuleType, settings: TestSettings) -> Any:
    official = lg.TestSettings()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name == "scenario":
            value = getattr(lg.TestScenario, value.name)
        elif field.name == "mode":
            value = getattr(lg.TestMode, value.name)
        if hasattr(official, field.name):
            setattr(official, field.name, value)
    return official


class _Bridge:
    """Stands in for `Responses`: consecutive ids here, the official addresses there."""

    def __init__(self, lg: ModuleType, sut: SystemUnderTest) -> None:
        self._lg, self._sut = lg, sut
        self._official_ids: dict[int, int] = {}
        self._next = 1
        self._lock = threading.Lock()
        self.completed = 0
        self.error: str | None = None
        self.interrupted = False

    def issue(self, official_ids: list[int], indices: list[int]) -> None:
        """One official query."""
        with self._lock:
            ids = range(self._next, self._next + len(official_ids))
            self._next = ids.stop
            self._official_ids.update(zip(ids, official_ids, strict=True))
        if self.error is None:
            self.call("The system under test", self._sut.issue, ids, np.array(indices, np.int64))
        self._give_up()

    def flush(self) -> None:
        """The end of a phase."""
        self.call("The system under test", self._sut.flush)
        self._give_up()

    def call(self, who: str, function: Callable[..., T], *arguments: Any) -> T | None:
        """Keeps what a callback raises: through the C++ loop it would end the process."""
        try:
            return function(*arguments)
        except BaseException as error:
            self.interrupted |= isinstance(error, KeyboardInterrupt)
            self._fail(f"{who} raised {told(error)}")
            traceback.print_exception(error)
            return None

    def _fail(self, why: str) -> None:
        self.error = self.error or why

    def _give_up(self) -> None:
        """After an error answers all that is outstanding, for the official package waits for it."""
        if self.error is not None:
            with self._lock:
                left = list(self._official_ids)
            self.complete(left)

    def complete(
        self, ids: Sequence[int] | np.ndarray, answers: Rows | None = None, n_tokens: Rows | None = None
    ) -> None:
        """As `Responses.complete`."""
        with self._lock:
            try:
                official_ids = [self._official_ids.pop(int(i)) for i in ids]
            except KeyError as unknown:
                self._fail(f"Attempted to complete a sample twice, or one never issued. Actual id: {unknown}")
                return
            self.completed += len(official_ids)
        responses, keep = self._responses(official_ids, answers, n_tokens)
        self._lg.QuerySamplesComplete(responses)
        del keep

    def first_token(self, ids: Sequence[int] | np.ndarray, tokens: Rows | None = None) -> None:
        """As `Responses.first_token`."""
        with self._lock:
            try:
                official_ids = [self._official_ids[int(i)] for i in ids]
            except KeyError as unknown:
                self._fail(f"Attempted to record the first token of a sample not outstanding: {unknown}")
                return
        responses, keep = self._responses(official_ids, tokens, None)
        self._lg.FirstTokenComplete(responses)
        del keep

    def _responses(
        self, official_ids: list[int], answers: Rows | None, n_tokens: Rows | None
    ) -> tuple[list, list]:
        """The official responses and the memory that they point to."""
        responses, keep = [], []
        for k, official_id in enumerate(official_ids):
            answer = self.call("The conversion of an answer", _row, as_bytes, answers, k)
            data = np.frombuffer(answer or b"", np.uint8)
            keep.append(data)
            count = self.call("The number of tokens", _row, int, n_tokens, k) or 0
            responses.append(self._lg.QuerySampleResponse(official_id, data.ctypes.data, data.size, count))
        return responses, keep


def _row(convert: Callable[[Any], T], rows: Rows | None, k: int) -> T | None:
    return convert(rows[k]) if rows is not None else None


def _read_result(settings: TestSettings, log_dir: Path, error: str | None) -> Result:
    metrics: dict[str, Any] = {}
    errors = [error] if error else []
    for line in (log_dir / "mlperf_log_detail.txt").read_text(errors="replace").splitlines():
        text = re.sub(r'"value": -?(nan|inf)', '"value": null', line.removeprefix(":::MLLOG "))
        record = json.loads(text, strict=False)
        key, value = record["key"], record["value"]
        if record["metadata"]["is_error"]:
            errors.append(str(value))
        if key.startswith(("result_", "early_stopping_")):
            metrics[key] = math.nan if value is None else value
    reasons = [Reason("system_under_test", text) for text in errors]
    if metrics.get("result_validity") == "INVALID":
        texts = [metrics.get("result_invalid_reason", "")]
        if not metrics.get("early_stopping_met", True):
            texts += [f"{kind}{text}" for kind, key in _EARLY if (text := metrics.get(key, "").strip())]
        reasons.append(Reason("official", " ".join(text.strip() for text in texts if text.strip())))
    return Result(
        scenario=settings.scenario.name,
        mode=settings.mode.name,
        valid=not reasons,
        reasons=tuple(reasons),
        metrics=metrics,
        errors=tuple(errors),
        interrupted=False,
        logs={kind: log_dir / f"mlperf_log_{kind}.{end}" for kind, end in LOG_ENDINGS.items()},
    )
