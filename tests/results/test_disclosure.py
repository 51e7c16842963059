"""What ruleset 6.1.0 wants disclosed, by policy and layout, and from the door to the official checker."""

from __future__ import annotations

import json
import re

import jax
import pytest

from mlperf_jax.judging.tree import judge_tree
from mlperf_jax.parallel.layout import STRATEGIES, Strategy
from mlperf_jax.parallel.mesh import make_layout, single_device_layout
from mlperf_jax.precision import POLICIES, Policy
from mlperf_jax.registry import config_file, find, names
from mlperf_jax.results.disclosure import disclosed
from mlperf_jax.results.summary import end_message, summarize
from mlperf_jax.rounds.collect import Reader
from mlperf_jax.workload import Workload
from tests import door, toys, toys_text

KEYS = (
    *(f"lowest_numerical_precision_in_{where}" for where in ("linear", "attn", "comm")),
    *(f"{what}_parallelism" for what in ("tensor", "pipeline", "context", "expert")),
    "micro_batch_size",
    "config_filename",
)


def told(layout, policy=POLICIES["float32"], batch_size=64, accumulation=2):
    facts = disclosed(
        policy, layout, batch_size=batch_size, accumulation=accumulation, config_file="configs/x.py"
    )
    assert tuple(facts) == KEYS
    return facts


@pytest.mark.parametrize(
    ("policy", "linear", "comm"),
    [
        (POLICIES["float32"], "fp32", "fp32"),
        (POLICIES["tensorfloat32"], "tf32", "fp32"),
        (POLICIES["bfloat16"], "bfloat16", "bfloat16"),
        (POLICIES["float64"], "fp64", "fp64"),
        (Policy(compute="float16", reduce="float16"), "fp16", "fp16"),
        (Policy(reduce="bfloat16"), "fp32", "bfloat16"),
        (Policy(matmul="bfloat16"), "bfloat16", "fp32"),
        (Policy(matmul="default"), "fp32", "fp32"),
    ],
)
def test_precision_is_that_of_products_and_of_sums(policy, linear, comm):
    facts = told(single_device_layout(), policy)
    assert [facts[key] for key in KEYS[:3]] == [linear, linear, comm]


@pytest.mark.parametrize(
    ("strategy", "tensor", "context", "micro"),
    [
        ("dp", 1, 1, 4),
        ("zero1", 1, 1, 4),
        ("fsdp", 1, 1, 4),
        ("tp", 2, 1, 8),
        ("fsdp_tp", 2, 1, 8),
        ("sequence", 2, 1, 8),
        ("spatial", 1, 2, 8),
        ("row_wise", 1, 1, 4),
    ],
)
def test_parallelism_is_that_of_the_mesh(strategy, tensor, context, micro):
    assert jax.device_count() == 8
    facts = told(make_layout(STRATEGIES[strategy]))
    assert (facts["tensor_parallelism"], facts["context_parallelism"]) == (tensor, context)
    assert (facts["pipeline_parallelism"], facts["expert_parallelism"]) == (1, 1)
    assert facts["micro_batch_size"] == micro


def test_one_device_takes_the_whole_micro_batch():
    assert told(single_device_layout())["micro_batch_size"] == 32


def test_experts_share_the_axis_of_the_batch():
    moe = Strategy(
        "moe", {"data": 4, "model": 2}, {"batch": ("data",), "mlp": ("model",), "expert": ("data",)}
    )
    facts = told(make_layout(moe))
    assert (facts["tensor_parallelism"], facts["expert_parallelism"], facts["micro_batch_size"]) == (2, 4, 8)


def test_the_config_is_named_by_its_file():
    for name in names():
        assert config_file(find(name, Workload)) == f"configs/{name}.py"
    assert config_file(toys_text.Tagger) == "tests/toys_text.py"
    assert config_file(toys.RecordingResNet) == "tests/toys.py"


# Through the door.


@pytest.fixture(scope="module")
def loss_run(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("loss")
    arguments = ("--workload=tests.results.falling:Loss", "--seed=1", "--results_dir=results")
    shape = ("--cpu_devices=4", "--sharding=tp", "--config.gradient_accumulation_steps=2")
    ended = door.run(cwd, *arguments, *shape, **door.LIGHTLY)
    assert ended.returncode == 0, ended.stderr
    return cwd / "results", ended


def test_the_official_checker_accepts_what_is_disclosed(loss_run):
    results, _ = loss_run
    (log,) = door.logs(results)
    events = door.events_of(results)
    assert [door.values(events, key) for key in KEYS] == [
        ["fp32"], ["fp32"], ["fp32"], [2], [1], [1], [1], [8], ["tests/toys_text.py"]
    ]  # fmt: skip
    assert door.complaints(log, "6.1.0") == []
    assert door.complaints(log, "6.0.0") == []


def test_check_by_ruleset_610_wants_them_all(loss_run, tmp_path):
    results, _ = loss_run
    official = [f for f in judge_tree(results, "6.1.0").findings if f.rule == "official-6.1.0"]
    assert official == []
    (log,) = door.logs(results)
    bare = tmp_path / "results" / "box" / "llama31_8b" / "result_0.txt"
    bare.parent.mkdir(parents=True)
    lines = log.read_text().splitlines(keepends=True)
    bare.write_text("".join(line for line in lines if json.loads(line.split(" ", 1)[1])["key"] not in KEYS))
    found = [f.text for f in judge_tree(tmp_path, "6.1.0").findings if f.rule == "official-6.1.0"]
    assert {re.search(r"'(\w+)'", text)[1] for text in found} == set(KEYS)
    found = [f for f in judge_tree(tmp_path, "6.0.0").findings if f.rule == "official-6.0.0"]
    assert found == []


def test_a_loss_that_falls_is_told_as_such_everywhere(loss_run):
    results, ended = loss_run
    assert re.search(r"quality +log perplexity 0\.\d+, target 0\.8000: reached", ended.stdout)
    ((result,), _) = Reader().read([results])
    assert (result.score.converged, result.score.reason) == (1, "1 of 10 runs")
    assert [f.rule for f in judge_tree(results).findings] == ["runs"]


def test_an_error_rate_of_95_percent_is_no_success_of_5(tmp_path):
    arguments = ("--workload=tests.results.falling:Hopeless", "--config.target.error=0.05")
    more = ("--config.max_epochs=2", "--results_dir=results")
    ended = door.run(tmp_path, *arguments, *more, **door.LIGHTLY)
    assert ended.returncode == 1, ended.stderr
    assert "word error rate 0.9500, target 0.0500: not reached" in ended.stdout
    results = tmp_path / "results"
    ((result,), _) = Reader().read([results])
    assert result.score.converged == 0 and result.score.mean_minutes is None
    rules = {f.rule for f in judge_tree(results).findings}
    assert rules == {"not-converged", "benchmark", "runs"}
    # The same log, had it claimed the success.
    (log,) = door.logs(results)
    log.write_text(log.read_text().replace('"status": "aborted"', '"status": "success"'))
    assert "under-target" in {f.rule for f in judge_tree(results).findings}
    assert Reader().read([results])[0][0].score.converged == 0
    assert "not reached" in end_message([summarize(log)])
