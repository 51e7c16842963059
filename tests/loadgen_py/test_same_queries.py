"""The queries are the official ones: sets, indices, schedules, counts and logged samples, recorded live."""

from __future__ import annotations

import random
import re

import drawn_cases
import official_runs
import pytest
import recording

import loadgen_py as lg

pytest.importorskip("mlperf_loadgen", reason="the official package is the judge")

CASES = 240
_ONE_AT_A_TIME = ("SingleStream", "MultiStream")


def _cases() -> list[dict]:
    rng = random.Random(20250806)
    scenarios, modes = drawn_cases.SCENARIOS, drawn_cases.MODES
    return [drawn_cases.draw_case(rng, scenarios[i % 4], modes[i // 4 % 3]) for i in range(CASES)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[tuple[dict, dict, dict]]:
    """(case, official record, our record)."""
    cases = _cases()
    theirs = official_runs.run_official(cases, tmp_path_factory.mktemp("official"))
    folder = tmp_path_factory.mktemp("ours")
    ours = []
    for number, case in enumerate(cases):
        (folder / str(number)).mkdir()
        ours.append(recording.record(lg, case, folder / str(number)))
    return list(zip(cases, theirs, ours, strict=True))


def _stops_by_count(case: dict) -> bool:
    """Whether the number of issued queries does not depend on how fast the queries were answered."""
    settings = case["settings"]
    return settings["scenario"] not in _ONE_AT_A_TIME or settings["mode"] == "AccuracyOnly"


def test_loads_the_same_sets(pairs):
    for case, theirs, ours in pairs:
        assert ours["loaded"] == theirs["loaded"], case
        assert ours["unloaded"] == theirs["unloaded"], case


def test_asks_for_the_same_samples_in_the_same_order(pairs):
    asked = 0
    for case, theirs, ours in pairs:
        if _stops_by_count(case):
            assert ours["issued"] == theirs["issued"], case
        shared = min(len(ours["issued"]), len(theirs["issued"]))
        assert shared > 0
        assert ours["issued"][:shared] == theirs["issued"][:shared], case
        asked += shared
    assert asked > 20_000


def test_stops_by_the_same_rules(pairs):
    """How many queries a timed run gets depends on the machine; why it ends must fit its own numbers."""
    ended = re.compile(r"Ending early: (Max query count reached|Ran out of generated queries)")
    for case, theirs, ours in pairs:
        settings, detail = case["settings"], ours["detail"]
        reasons = [match[1] for error in ours["errors"] if (match := ended.search(error))]
        if _stops_by_count(case):
            assert reasons == [match[1] for error in theirs["errors"] if (match := ended.search(error))], case
        elif settings["mode"] == "PerformanceOnly":
            issued = len(ours["issued"])
            limit = settings.get("max_query_count", 0)
            generated = detail["generated_query_count"][-1]
            if reasons == ["Max query count reached"]:
                assert issued == limit
            elif reasons == ["Ran out of generated queries"]:
                assert issued == generated
            else:
                assert (
                    "Ending naturally: Minimum query count and test duration met."
                    in detail["generic_message"]
                )
                assert issued >= detail["effective_min_query_count"][0]


def test_generates_and_logs_the_same_settings(pairs):
    prefixes = ("generated_", "requested_", "effective_", "loaded_", "qsl_", "sut_")
    compared = 0
    for case, theirs, ours in pairs:
        for key in (key for key in theirs["detail"] if key.startswith(prefixes)):
            # The official log has six significant digits.
            found = ours["detail"].get(key, [None])
            if isinstance(found[0], float):
                found = [float(f"{value:.6g}") for value in found]
            assert found == theirs["detail"][key], (key, case)
            compared += 1
    assert compared > 40 * CASES


def test_has_every_official_field(pairs):
    """All keys but those of the official package's own innards (its buffers and its build)."""
    internal = ("logger_", "loadgen_", "warning_generic_message")
    for case, theirs, ours in pairs:
        keys = {key for key in theirs["detail"] if not key.startswith(internal)}
        if not _stops_by_count(case):
            keys -= {"error_runtime", "generic_message", "result_invalid_reason"}
        assert keys <= set(ours["detail"]) | {"error_runtime", "result_invalid_reason"}, case


def test_keeps_the_same_schedule_to_the_nanosecond(pairs):
    compared = 0
    for case, theirs, ours in pairs:
        if case["settings"]["scenario"] != "Server" or case["settings"]["mode"] != "PerformanceOnly":
            continue
        for record in (theirs, ours):
            first = record["trace"][0]["scheduled"]
            record["due"] = {sample["seq"]: sample["scheduled"] - first for sample in record["trace"]}
        assert ours["due"] == theirs["due"], case
        compared += len(ours["due"])
    assert compared > 2_000


def test_logs_the_same_answers(pairs):
    """In accuracy mode all of them, in performance mode the sampled ones."""
    sampled = 0
    for case, theirs, ours in pairs:
        shared = min(sum(map(len, record["issued"])) for record in (theirs, ours))
        assert _entries(ours, shared) == _entries(theirs, shared), case
        if (
            case["settings"]["mode"] == "PerformanceOnly"
            and case["settings"].get("accuracy_log_probability", 1) < 1
        ):
            sampled += len(_entries(ours, shared))
    assert sampled > 100


def _entries(record: dict, shared: int) -> set[tuple[int, int, str]]:
    """The accuracy log up to a sequence number that both packages reached."""
    found = {(entry["seq_id"], entry["qsl_idx"], entry["data"]) for entry in record["accuracy"]}
    assert len(found) == len(record["accuracy"])
    return {entry for entry in found if entry[0] < shared}
