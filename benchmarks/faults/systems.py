"""Systems under test that misbehave: the run ends, is INVALID or refused, and its logs are whole."""

from __future__ import annotations

import functools
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loadgen_py as lg
from benchmarks.faults.fault import Fault
from mlperf_jax.errors import UserError

_SECONDS = 60
Answer = Callable[[Any, Any, Any], None]


class _Library:
    name, total_count, performance_count = "indices", 64, 16

    def load(self, indices: Any) -> None: ...

    def unload(self, indices: Any) -> None: ...


class _System:
    name = "misbehaving"

    def __init__(self, answer: Answer, flush: Callable[[], None] = lambda: None) -> None:
        self._answer, self.flush = answer, flush

    def start(self, responses: Any) -> None:
        self._responses = responses

    def issue(self, ids: Any, indices: Any) -> None:
        self._answer(self._responses, ids, indices)


def _echo(responses: Any, ids: Any, indices: Any) -> None:
    responses.complete(ids, [int(index).to_bytes(4, "little") for index in indices])


def _raise(*_: Any) -> None:
    raise RuntimeError("the system under test is out of order")


def _twice(responses: Any, ids: Any, indices: Any) -> None:
    _echo(responses, ids, indices)
    _echo(responses, ids, indices)


def _half(responses: Any, ids: Any, indices: Any) -> None:
    half = len(ids) // 2
    if half:
        _echo(responses, ids[:half], indices[:half])


def _from_a_dead_thread(responses: Any, ids: Any, indices: Any) -> None:
    """The thread that should answer ends first."""
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


MISBEHAVIOURS: dict[str, Answer] = {
    "never answers": lambda responses, ids, indices: None,
    "answers half": _half,
    "answers twice": _twice,
    "answers an unknown query": lambda responses, ids, indices: responses.complete([10**9]),
    "answers a negative query": lambda responses, ids, indices: responses.complete([-5]),
    "answers with text for ids": lambda responses, ids, indices: responses.complete(["one"]),
    "answers with objects for bytes": lambda responses, ids, indices: responses.complete(
        ids, [object()] * len(ids)
    ),
    "answers with too few": lambda responses, ids, indices: responses.complete(ids, []),
    "answers nothing at all": lambda responses, ids, indices: responses.complete(None),
    "raises": _raise,
    "leaves it to a thread that ended": _from_a_dead_thread,
}
_CRASHING_FLUSH = "raises where it is flushed"


def systems(folder: Path, random: random.Random) -> Iterator[Fault]:
    for scenario in lg.TestScenario:
        for mode in (lg.TestMode.PerformanceOnly, lg.TestMode.AccuracyOnly):
            for what in (*MISBEHAVIOURS, _CRASHING_FLUSH):
                yield Fault(
                    "systems",
                    f"{scenario.name} {mode.name}: {what}",
                    functools.partial(_judge, folder, what, scenario, mode),
                )


def _judge(folder: Path, what: str, scenario: lg.TestScenario, mode: lg.TestMode) -> str:
    place = folder / f"{what} {scenario.name} {mode.name}".replace(" ", "_")
    place.mkdir(parents=True)
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(_run(place, what, scenario, mode)), daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return told[0] if told else f"not over after {_SECONDS} s"


def _run(place: Path, what: str, scenario: lg.TestScenario, mode: lg.TestMode) -> str:
    system = _System(MISBEHAVIOURS.get(what, _echo), _raise if what == _CRASHING_FLUSH else lambda: None)
    settings = lg.TestSettings(
        scenario=scenario,
        mode=mode,
        min_duration_ms=50,
        min_query_count=20,
        server_target_qps=2_000,
        offline_expected_qps=2_000,
        sut_timeout_ms=500,
    )
    logs = lg.LogSettings(log_output=lg.LogOutputSettings(outdir=str(place)))
    try:
        result = lg.run(system, _Library(), settings, logs, audit_config=place / "audit.config")
    except UserError:
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    json.loads((place / "mlperf_log_accuracy.json").read_text())
    if not (place / "mlperf_log_summary.txt").read_text():
        return "no summary"
    return "VALID" if result.valid else ""
