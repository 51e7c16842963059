"""What is said of token latencies: both kinds are told, where the official verdict stops at the first that fails."""

import numpy as np
import pytest

from loadgen_py.advice import reasons
from loadgen_py.figures import result_fields
from loadgen_py.settings import TestScenario, TestSettings, resolve
from loadgen_py.statistics import Measurement, judge
from mlperf_jax.rounds.inference_logs import early_stopping, judged_by

MS = 1_000_000


def verdict(first_ms, each_ms, *, scenario=TestScenario.Server):
    """Of queries with so many milliseconds to the first of 11 tokens and to each later one."""
    asked = TestSettings(scenario, use_token_latencies=True, ttft_latency=500 * MS, tpot_latency=30 * MS)
    asked.server_target_qps, asked.min_duration_ms, asked.min_query_count = 10.0, 0, 1
    first, each = (np.asarray(ms, np.int64) * MS for ms in (first_ms, each_ms))
    count = len(first)
    measured = Measurement(
        sample_latencies=first + 10 * each,
        queries_issued=count,
        max_latency_s=60.0,
        final_scheduled_s=count / 10,
        final_issued_s=count / 10,
        final_done_s=50.0,
        first_token_latencies=first,
        time_per_output_token=each,
        tokens_per_sample=np.full(count, 11),
    )
    return judge(resolve(asked, 10, 10), measured)


def told(found):
    return [(reason.condition, reason.text) for reason in reasons(found)]


def test_where_both_latencies_fail_both_are_told():
    found = verdict([900] * 300, [40] * 300)
    fields = result_fields(found, found.valid)
    # As officially, of early stopping only the time per token is judged then.
    assert not fields["early_stopping_ttft_result"] and "unsuccessful" in fields["early_stopping_tpot_result"]
    evidence = [text for condition, text in told(found) if condition == "early_stopping"]
    assert evidence == [
        f"300 queries with 300 over the bound on the {name} prove nothing: lower the rate first."
        for name in ("time to first token", "time per output token")
    ]
    missed = [text for condition, text in told(found) if condition == "performance_constraints"]
    assert len(missed) == 2
    assert "time to first token is 900.000 ms, 400.000 ms over the bound of 500 ms" in missed[0]
    assert "time per output token is 40.000 ms, 10.000 ms over the bound of 30 ms" in missed[1]


@pytest.mark.parametrize("late", [0, 1])
def test_too_few_queries_are_told_of_each_latency_by_its_own_slow_ones(late):
    first = [100] * 300
    first[0] = 900 if late else 100
    found = verdict(first, [10] * 300)
    # h(0) is 459 and h(1) 662 - 1 at the 99th percentile.
    (one, other) = found.evidence
    assert (one.slow, one.missing, one.bounded) == (late, [159, 362][late], True)
    assert (other.slow, other.missing, other.bounded) == (0, 159, True)
    texts = [text for _, text in told(found)]
    assert len(texts) == 2 and f"300 queries, {late} of them over the bound on the time to first" in texts[0]
    # Both advise a run that is long enough for either.
    assert len({reason.try_next["min_duration_ms"] for reason in reasons(found)}) == 1


def test_where_one_fails_the_other_may_be_proven():
    found = verdict([100] * 1000, [40] * 1000)
    assert [one.missing > 0 for one in found.evidence] == [False, True]
    assert [condition for condition, _ in told(found)] == ["performance_constraints", "early_stopping"]
    fine = verdict([100] * 1000, [20] * 1000)
    assert fine.valid and not told(fine) and not any(one.missing for one in fine.evidence)


def test_token_runs_are_judged_by_tokens():
    found = verdict([100] * 500, [20] * 500)
    fields = result_fields(found, found.valid)
    name, _, unit, _ = judged_by("Server", fields)
    assert fields[name] == pytest.approx(500 * 11 / 50.0) and unit == "per s"
    assert judged_by("Server", {})[0] == "result_completed_samples_per_sec"
    assert judged_by("Offline", {"result_tokens_per_second": 3.0})[0] == "result_tokens_per_second"
    assert judged_by("SingleStream", fields)[0] == "early_stopping_latency_ss"
    few = verdict([100] * 300, [20] * 300)
    line = early_stopping(result_fields(few, few.valid))
    assert line.startswith("of the time per token: Run unsuccessful.") and "first tokens" not in line
