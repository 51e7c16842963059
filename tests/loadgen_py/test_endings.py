"""Whatever ends an issuing thread, a flush, a callback or a conversion is a reason: the run is INVALID."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import systems

import loadgen_py as lg
from mlperf_jax.errors import UserError

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
MODES = ("AccuracyOnly", "PerformanceOnly")


class _Silent(BaseException):
    """Cannot even be shown."""

    def __str__(self) -> str:
        raise _Silent


ENDINGS = [SystemExit(0), SystemExit(3), GeneratorExit(), _Silent(), ValueError("\udc80"), StopIteration()]


def _run(folder: Path, answer, scenario: str, mode: str, library=None, **fields) -> lg.Result:
    system = answer if hasattr(answer, "issue") else systems.System(answer)
    settings = systems.settings(scenario, mode, **fields)
    return lg.run(system, library or systems.Library(), settings, systems.log_to(folder))


def _check_invalid(result: lg.Result, folder: Path, words: str) -> None:
    assert not result.valid
    assert any(words in reason.text for reason in result.reasons), result.reasons
    assert any(words in error for error in systems.errors(folder))
    summary = (folder / "mlperf_log_summary.txt").read_text()
    assert "Result is : INVALID" in summary and "Result is : VALID" not in summary
    json.loads((folder / "mlperf_log_accuracy.json").read_text())


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("threads, timeout_ms", [(0, 0), (0, 5000), (3, 0), (3, 5000)])
def test_ends_the_issuing_thread(scenario, mode, ending, threads, timeout_ms, tmp_path):
    asked = []

    def answer(responses, ids, indices):
        asked.append(ids)
        if len(asked) == 5 or scenario == "Offline":
            raise ending
        systems.echo(responses, ids, indices)

    fields = dict(sut_timeout_ms=timeout_ms, server_num_issue_query_threads=threads, server_target_qps=2000)
    result = _run(tmp_path, answer, scenario, mode, **fields)
    _check_invalid(result, tmp_path, f"The system under test raised {type(ending).__name__}")
    assert not result.interrupted


@pytest.mark.parametrize("timeout_ms", [0, 5000])
@pytest.mark.parametrize("threads", [0, 3])
def test_the_keyboard_interrupts_from_any_issuing_thread(threads, timeout_ms, tmp_path):
    def answer(responses, ids, indices):
        raise KeyboardInterrupt

    fields = dict(sut_timeout_ms=timeout_ms, server_num_issue_query_threads=threads)
    result = _run(tmp_path, answer, "Server", "AccuracyOnly", **fields)
    assert result.interrupted
    _check_invalid(result, tmp_path, "Interrupted by the user")


def test_a_handler_of_a_signal_ends_the_run(tmp_path):
    def answer(responses, ids, indices):
        time.sleep(0.001)
        systems.echo(responses, ids, indices)

    before = signal.signal(signal.SIGALRM, lambda *_: _raise(SystemExit(143)))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        result = _run(
            tmp_path, answer, "Server", "PerformanceOnly", sut_timeout_ms=5000, min_query_count=2000
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    _check_invalid(result, tmp_path, "A signal's handler raised SystemExit: 143")


class _Ends(systems.System):
    """Raises in one of its methods."""

    def __init__(self, where: str, ending: BaseException) -> None:
        super().__init__(systems.echo)
        self._where, self._ending = where, ending

    def start(self, responses) -> None:
        self._maybe("start")
        super().start(responses)

    def flush(self) -> None:
        self._maybe("flush")

    def _maybe(self, where: str) -> None:
        if where == self._where:
            raise self._ending


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["start", "flush"])
@pytest.mark.parametrize("mode", [*MODES, "SubmissionRun", "FindPeakPerformance"])
def test_ends_the_start_or_the_flush(where, ending, mode, tmp_path):
    result = _run(tmp_path, _Ends(where, ending), "Server", mode, min_duration_ms=10)
    _check_invalid(result, tmp_path, f"The system under test raised {type(ending).__name__}")


class _Library(systems.Library):
    def __init__(self, where: str, ending: BaseException) -> None:
        super().__init__()
        self._where, self._ending = where, ending

    def load(self, indices) -> None:
        if self._where == "load":
            raise self._ending
        super().load(indices)

    def unload(self, indices) -> None:
        if self._where == "unload":
            raise self._ending


@pytest.mark.parametrize("ending", [*ENDINGS, OSError("no such disk")], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["load", "unload"])
@pytest.mark.parametrize("mode", [*MODES, "SubmissionRun"])
def test_ends_the_library(where, ending, mode, tmp_path):
    result = _run(tmp_path, systems.echo, "Server", mode, _Library(where, ending), min_duration_ms=10)
    _check_invalid(result, tmp_path, f"The sample library raised {type(ending).__name__}")
    measured = where == "unload" and mode == "PerformanceOnly"
    assert bool(result.metrics) == measured
    if measured:
        assert result.metrics["result_validity"] == "INVALID"


def test_a_mistake_of_the_user_is_raised(tmp_path):
    with pytest.raises(UserError, match="no data"):
        _run(tmp_path, systems.echo, "Server", "AccuracyOnly", _Library("load", UserError("no data")))


def test_an_interrupt_stays_one_whatever_comes_after(tmp_path):
    def answer(responses, ids, indices):
        raise KeyboardInterrupt

    result = _run(tmp_path, answer, "Server", "AccuracyOnly", _Library("unload", ValueError()))
    assert result.interrupted


def test_a_warm_up_that_fails_is_the_end(tmp_path):
    asked = []

    def answer(responses, ids, indices):
        asked.append(len(ids))
        raise SystemExit

    result = _run(tmp_path, answer, "Offline", "PerformanceOnly", offline_warmup_ms=50)
    _check_invalid(result, tmp_path, "raised SystemExit")
    assert len(asked) == 1


def test_every_sample_of_an_accuracy_run_is_answered(tmp_path, monkeypatch):
    """Even if the loop itself should end too early."""
    from loadgen_py import issue

    def too_short(phase, prepare, issue):
        phase.responses.issued = 4
        issue(*prepare(0, 4))

    monkeypatch.setitem(issue._LOOPS, lg.TestScenario.Offline, too_short)
    result = _run(tmp_path, systems.echo, "Offline", "AccuracyOnly")
    _check_invalid(result, tmp_path, "Only 4 of 16 samples were answered")


# Conversions of answers, in the issuing thread and in the system's own.


class _Unreadable:
    def __init__(self, ending: BaseException) -> None:
        self._ending = ending

    def __array__(self, dtype=None, copy=None):
        raise self._ending

    __int__ = __array__


def _complete_in_a_thread(responses, *arguments) -> None:
    threading.Thread(target=responses.complete, args=arguments).start()


def _complete_here(responses, *arguments) -> None:
    responses.complete(*arguments)


@pytest.mark.parametrize("ending", [*ENDINGS, KeyboardInterrupt()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("complete", [_complete_here, _complete_in_a_thread])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ends_a_conversion(scenario, complete, ending, tmp_path):
    def answer(responses, ids, indices):
        complete(responses, ids, [b"good"] * (len(ids) - 1) + [_Unreadable(ending)])

    result = _run(tmp_path, answer, scenario, "AccuracyOnly")
    _check_invalid(result, tmp_path, f"cannot be taken: {type(ending).__name__}")
    assert result.interrupted == (type(ending) is KeyboardInterrupt and complete is _complete_here)


def test_ends_the_conversion_of_a_number_of_tokens(tmp_path):
    def answer(responses, ids, indices):
        responses.first_token(ids, [_Unreadable(SystemExit())] * len(ids))
        responses.complete(ids, None, [_Unreadable(SystemExit())] * len(ids))

    result = _run(tmp_path, answer, "Server", "AccuracyOnly", use_token_latencies=True)
    _check_invalid(result, tmp_path, "The first token of sample")
    assert any("The number of tokens" in error for error in result.errors)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "text",
        np.str_("text"),
        object(),
        {},
        np.array([None]),
        [None],
        np.zeros(1, "O,i4"),
        [[1], [2, 3]],
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_an_answer_without_bytes_is_an_error(wrong, tmp_path):
    def answer(responses, ids, indices):
        responses.complete(ids, [wrong] * len(ids))

    result = _run(tmp_path, answer, "Server", "AccuracyOnly")
    _check_invalid(result, tmp_path, "cannot be taken")
    entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    assert [entry["data"] for entry in entries] == [""] * 64


def test_too_few_answers_are_an_error(tmp_path):
    def answer(responses, ids, indices):
        responses.complete(ids, [b"good"] * (len(ids) - 1))

    result = _run(tmp_path, answer, "Offline", "AccuracyOnly")
    _check_invalid(result, tmp_path, "cannot be taken: IndexError")


def test_answers_of_kinds_without_a_buffer_are_logged(tmp_path):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16

    def answer(responses, ids, indices):
        responses.complete(ids, np.full((len(ids), 2), 1, bfloat16))

    assert _run(tmp_path, answer, "Offline", "AccuracyOnly").valid
    entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    assert {entry["data"] for entry in entries} == {"803F803F"}


@pytest.mark.parametrize("many", [list, np.array], ids=["list", "array"])
def test_ids_that_are_not_whole_are_no_ids(many, tmp_path):
    def answer(responses, ids, indices):
        responses.complete(many([i + 0.5 for i in ids]))

    result = _run(tmp_path, answer, "Offline", "PerformanceOnly", sut_timeout_ms=500)
    _check_invalid(result, tmp_path, "raised TypeError")


class _CallsBack:
    def __init__(self, call) -> None:
        self._call = call

    def __array__(self, dtype=None, copy=None):
        self._call()
        return np.zeros(1, np.uint8)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_conversion_may_answer_another_sample(scenario, tmp_path):
    def answer(responses, ids, indices):
        first = list(ids[:-1])
        last = _CallsBack(lambda: responses.complete(first, [b"1"] * len(first)))
        responses.complete([ids[-1]], [last])

    outcome = []
    worker = threading.Thread(
        target=lambda: outcome.append(_run(tmp_path, answer, scenario, "AccuracyOnly", sut_timeout_ms=3000)),
        daemon=True,
    )
    worker.start()
    worker.join(20)
    assert outcome and outcome[0].valid


# The same through the official names.


def _start(folder: Path, issue, flush=lambda: None, load=lambda _: None, unload=lambda _: None, **fields):
    mode = fields.pop("mode", "AccuracyOnly")
    sut, library = lg.ConstructSUT(issue, flush), lg.ConstructQSL(8, 8, load, unload)
    lg.StartTestWithLogSettings(
        sut,
        library,
        systems.settings(fields.pop("scenario", "Server"), mode, **fields),
        systems.log_to(folder),
    )


def _raise(ending: BaseException):
    raise ending


def _answer(samples) -> None:
    lg.QuerySamplesComplete([lg.QuerySampleResponse(s.id, b"good") for s in samples])


def _answer_with(ending: BaseException):
    def callback(response):
        raise ending

    return lambda samples: lg.QuerySamplesComplete(
        [lg.QuerySampleResponse(s.id, 0, 0) for s in samples], callback
    )


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["issue", "flush", "load", "unload", "callback"])
@pytest.mark.parametrize("threads", [0, 3])
def test_ends_a_callback_of_the_official_names(where, ending, threads, tmp_path):
    callbacks = {"issue": _answer} | (
        {"issue": _answer_with(ending)} if where == "callback" else {where: lambda *_: _raise(ending)}
    )
    with pytest.raises(lg.SutError, match=type(ending).__name__):
        _start(tmp_path, **callbacks, server_num_issue_query_threads=threads)
    assert any(type(ending).__name__ in error for error in systems.errors(tmp_path))
    assert "Result is : INVALID" in (tmp_path / "mlperf_log_summary.txt").read_text()


@pytest.mark.parametrize("data", [None, "text", np.array([None])], ids=repr)
def test_a_response_without_bytes_is_an_error(data, tmp_path):
    with pytest.raises(lg.SutError, match="cannot be taken"):
        _start(tmp_path, lambda s: lg.QuerySamplesComplete([lg.QuerySampleResponse(x.id, data) for x in s]))


def test_an_address_may_be_a_numpy_number(tmp_path):
    kept = np.frombuffer(b"good", np.uint8)

    def issue(samples):
        address = np.uint64(kept.ctypes.data)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(s.id, address, np.int64(4)) for s in samples])

    _start(tmp_path, issue)
    entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    assert {entry["data"] for entry in entries} == {b"good".hex().upper()}


@pytest.mark.parametrize("data", [b"good", 5], ids=["object", "address"])
def test_a_negative_size_is_an_error(data, tmp_path):
    with pytest.raises(lg.SutError, match="size is -1"):
        _start(
            tmp_path, lambda s: lg.QuerySamplesComplete([lg.QuerySampleResponse(x.id, data, -1) for x in s])
        )


# Through the official package itself.


@pytest.mark.timing
def test_through_the_official_package(tmp_path):
    pytest.importorskip("mlperf_loadgen", reason="the official package is the judge")
    script = textwrap.dedent(
        """
        import sys
        sys.path[:0] = sys.argv[2:]
        from pathlib import Path
        import systems, loadgen_py as lg
        def end(*_):
            raise SystemExit(3)
        class Unreadable:
            __array__ = end
        def later(responses, ids, indices):
            if system.queries == 3:
                end()
            systems.echo(responses, ids, indices)
        def unreadable(responses, ids, indices):
            responses.complete(ids, [Unreadable()] * len(ids))
        def interrupt(responses, ids, indices):
            raise KeyboardInterrupt
        for name in ("issue", "flush", "load", "unload", "answer", "threads", "interrupt"):
            answer = dict(issue=later, answer=unreadable, interrupt=interrupt).get(name, systems.echo)
            system, library = systems.System(answer), systems.Library()
            if name == "flush":
                system.flush = end
            if name in ("load", "unload"):
                setattr(library, name, end)
            settings = systems.settings("Server", "AccuracyOnly")
            settings.server_num_issue_query_threads = 2 * (name == "threads")
            folder = Path(sys.argv[1]) / name
            folder.mkdir()
            try:
                result = lg.run_official(system, library, settings, folder)
                print(name, result.valid, result.errors[0], flush=True)
            except BaseException as error:
                print(name, type(error).__name__, flush=True)
        """
    )
    paths = [str(tmp_path), str(Path(lg.__file__).parent.parent), str(Path(__file__).parent)]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sut, library = ("raised SystemExit: 3" for _ in range(2))
    assert done.stdout.splitlines() == [
        f"issue False The system under test {sut}",
        f"flush False The system under test {sut}",
        f"load False The sample library {library}",
        f"unload False The sample library {library}",
        "answer False The conversion of an answer raised SystemExit: 3",
        "threads UserError",
        "interrupt KeyboardInterrupt",
    ]


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt(), ValueError()], ids=repr)
@pytest.mark.parametrize("mode", MODES)
def test_ends_a_thread_of_a_batching_system(mode, ending, tmp_path):
    from loadgen_py.jax_sut import BatchingSut

    class Model:
        buckets = ("",)
        most_rows = {"": 1}
        seconds = {"": {1: 0.001, 4: 0.002}}
        started = 0

        def start(self, bucket, slots):
            self.started += 1
            if self.started == 3:
                raise ending
            return slots

        def parts(self, ids, indices):
            return (("", ids, np.asarray(indices)),)

        def sizes(self, bucket, slots):
            return None

        def rows(self, bucket, slots):
            return slots

        def entries(self, bucket, slots, answers):
            return answers

    model = Model()
    with BatchingSut("batching", [model], model) as system:
        result = _run(tmp_path, system, "Server", mode, sut_timeout_ms=2000)
    words = "Interrupted" if isinstance(ending, KeyboardInterrupt) else f"raised {type(ending).__name__}"
    _check_invalid(result, tmp_path, words)


# Several issuing threads.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("timeout_ms", [0, 5000])
def test_several_threads_issue_in_turn(mode, timeout_ms, tmp_path):
    seen: dict[int, list[int]] = {}

    def answer(responses, ids, indices):
        seen.setdefault(threading.get_ident(), []).append(ids[0])
        systems.echo(responses, ids, indices)

    fields = dict(server_num_issue_query_threads=3, sut_timeout_ms=timeout_ms, min_query_count=700)
    result = _run(tmp_path, answer, "Server", mode, server_target_latency_ns=10**9, **fields)
    assert result.valid, result.reasons
    assert not systems.errors(tmp_path)
    turns = {}
    first = min(min(ids) for ids in seen.values())
    for ids in seen.values():
        if mode == "PerformanceOnly":
            assert len({(i - first) % 3 for i in ids}) == 1 and ids == sorted(ids)
        turns[len(turns)] = len(ids)
    assert threading.get_ident() not in seen
    if mode == "PerformanceOnly":
        assert len(seen) == 3 and sum(turns.values()) == result.metrics["result_query_count"]
    else:
        entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
        assert sorted(entry["qsl_idx"] for entry in entries) == list(range(64))


@pytest.mark.timing
def test_slow_calls_run_side_by_side(tmp_path):
    """As officially: a call that takes longer than the gap between queries keeps only its own thread."""

    def answer(responses, ids, indices):
        time.sleep(0.01)
        systems.echo(responses, ids, indices)

    fields = dict(server_target_qps=200, min_query_count=100, server_target_latency_ns=200_000_000)
    (tmp_path / "1").mkdir()
    (tmp_path / "8").mkdir()
    one = _run(tmp_path / "1", answer, "Server", "PerformanceOnly", **fields)
    several = _run(
        tmp_path / "8", answer, "Server", "PerformanceOnly", server_num_issue_query_threads=8, **fields
    )
    key = "result_99.00_percentile_latency_ns"
    assert one.metrics[key] > 2 * several.metrics[key]


@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream", "Offline"])
def test_only_server_issues_from_several_threads(scenario, tmp_path):
    seen = set()

    def answer(responses, ids, indices):
        seen.add(threading.get_ident())
        systems.echo(responses, ids, indices)

    _run(tmp_path, answer, scenario, "AccuracyOnly", server_num_issue_query_threads=3)
    assert seen == {threading.get_ident()} and not systems.errors(tmp_path)
