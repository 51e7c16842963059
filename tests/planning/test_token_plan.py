"""plan of models that answer token by token: their engine's programs, and what these come to."""

import importlib.util

import pytest

from mlperf_jax import making
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.planning import plan, plan_report, topology
from mlperf_jax.workload import TokenWorkload

TINY = ["--config.model.num_layers=1", "--config.model.vocab_size=512", "--config.inference.chunks=(32,)"]


def tiny(overrides=TINY):
    return making.choose("llama31_8b", "mini", "tpu", overrides, kind=TokenWorkload).make(synthetic=True)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'"
)
def test_a_step_is_planned_where_it_is_split(tmp_path):
    """Kernels and cache by the heads that each device has."""
    workload, where = tiny(), topology.parse("v6e:2x2")
    found = plan.plan_strategy(
        workload, STRATEGIES["tp"], where, scenario="Offline", program="step", cache_dir=tmp_path,
        asked_mesh={"data": 2, "model": 2},
    )  # fmt: skip
    numbers, model = workload.config.inference, workload.config.model
    pages = 1 + numbers.slots * -(-(numbers.prompt + numbers.max_tokens) // numbers.page)
    of_heads = 2 * 2 * model.num_key_heads * model.head_width * numbers.page  # bfloat16, keys and values
    assert found.verdict == "fits" and found.hbm["cache"] == pages * of_heads / 2
    assert found.predicted["step"] > 0 and not found.compiler["unknown_loops"]
    assert {row["kind"] for row in found.collectives} >= {"all-reduce"}
    assert "tp, step, on v6e:2x2" in plan_report.describe(found, where, "tokens")


def test_what_programs_come_to():
    """Prompts of 150 in parts of 64 and 32: two of 64 and one of 32; 20 tokens behind each from 4 slots at once."""
    workload, where = tiny(
        ["--config.inference.chunks=(32,64)", "--config.inference.prompt=150", "--config.inference.max_tokens=20",
         "--config.inference.slots=4"]
    ), topology.parse("v6e:2x2")  # fmt: skip
    assert plan.token_programs(workload) == ("step", "32", "64")
    memory = {"capacity": 100.0, "total": 60.0, "cache": 40.0}
    plans = [
        plan.Plan("tp", {}, program=name, predicted={"step": seconds}, hbm=memory)
        for name, seconds in (("step", 0.01), ("32", 0.02), ("64", 0.03))
    ]
    found = plan.telling(workload, plans, where)
    assert found["reading"] == pytest.approx(0.08)
    assert found["tokens_per_s"] == pytest.approx(20 / (0.08 + 20 * 0.01 / 4))
    assert found["tokens_per_s_per_chip"] == pytest.approx(found["tokens_per_s"] / 4)
    assert found["most_slots"] == 8
    plans[-1].telling = found
    assert "room for 8 slots" in plan_report.telling(plans[-1])
    plans[1].predicted = {}
    assert plan.telling(workload, plans, where) == {}
    assert "does not fit" in plan_report.telling(plan.Plan("tp", {}))
