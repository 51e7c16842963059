"""A mixture of experts as a workload: layouts, the first step's loss, its experts' load, the rules' numbers; through the door."""

import dataclasses
import json
from pathlib import Path

import jax
import mlperf_logging
import numpy as np
import pytest

from configs import gpt_oss_20b as numbers
from configs import llama31_8b
from mlperf_jax import config as configs
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.events import read_events
from mlperf_jax.rounds import evaluation_schedule
from mlperf_jax.workloads.language_modelling import GptOss
from models.decoder import DecoderConfig
from tests import agreement, door, toys
from tests.toys_language import NARROW, SmallExperts

# Of the closed model 1/180 of the width, 1/16 of heads, 1/12 of layers, 1/8 of experts; 1/128 of a row. All tokens.
CUTS = (
    *NARROW,
    "model.num_experts=4",
    "model.num_chosen=2",
    "model.window=9",
    "data.length=64",
    "loss_tile=8",
    "batch_size=16",
    "eval_batch_size=16",
    "eval_every_samples=128",
)


@pytest.fixture(scope="module", autouse=True)
def closed_run(tmp_path_factory):
    """A closed run of a narrow model on made-up tokens, started before the first test."""
    folder = tmp_path_factory.mktemp("gpt_oss_20b")
    process = door.start_closed(folder, "gpt_oss_20b", 1, *CUTS)
    yield folder, process
    process.kill()


LAYOUTS = agreement.Layouts(lambda strategy: toys.make(SmallExperts, "float64"))


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_tp", "expert"])
def test_ten_steps_agree_with_one_device(strategy):
    state = LAYOUTS.agree(strategy)
    losses, _ = LAYOUTS.trained(None)
    assert losses[-1] < losses[0]
    gate = state["params"]["layers"]["mlp"]["gate"]
    assert gate.addressable_shards[0].data.size * agreement.DEVICES == gate.size
    if strategy == "expert":
        assert gate.addressable_shards[0].data.shape[1] == gate.shape[1] // 2


def test_the_first_loss_is_that_of_logits_without_meaning():
    """ln V + D s^2 / 2 at the closed model's width and deviation: 11.85 of its 128,256 tokens, less of fewer."""
    config = numbers.get_config("closed")
    config.model.update(
        dict(vocab_size=512, num_layers=2, num_heads=4, num_key_heads=1, mlp_width=16, num_experts=8)
    )
    workload = GptOss(config, POLICIES["float32"], data_dir=None, synthetic=True)
    tokens = np.random.default_rng(0).integers(512, size=(32, 129))

    @jax.jit
    def first(seed):
        total, weight = workload.loss(workload.model(workload.init(seed)), {"tokens": tokens}, None)
        return total / weight

    assert np.log(128_256) + 2880 * 0.008**2 / 2 == pytest.approx(11.85, abs=0.005)
    assert abs(float(first(np.uint32(3))) - (np.log(512) + 2880 * 0.008**2 / 2)) < 0.02


def test_the_load_of_experts_is_told():
    workload = toys.make(SmallExperts)
    rows = workload.dataset.read_eval(np.arange(8), ["tokens"])
    batch = rows | {"mask": (np.arange(8) < 6).astype(np.float32)}
    state = jax.jit(workload.init)(np.uint32(1))
    run = jax.jit(lambda state: workload.eval_update(workload.eval_totals(), workload.model(state), batch))
    totals = jax.device_get(run(state))
    # Two of four experts for each of the 16 tokens of six rows, in each of two layers.
    assert totals["load"].sum(1).tolist() == [2 * 16 * 6] * 2
    found = workload.eval_result(totals)
    assert found["least_load"] < 1 < found["most_load"] <= 2


# The rules' numbers.


def made(*overrides):
    config = configs.resolve(numbers.get_config("closed"), [f"--config.{change}" for change in overrides])
    return GptOss(config, POLICIES["float32"], data_dir=None, synthetic=True)


def test_closed_is_the_reference():
    workload = made()
    config = workload.config
    assert workload.model_config == dataclasses.replace(DecoderConfig.gpt_oss_20b(), remat=config.remat)
    assert config.optimizer.to_dict() == dict(
        name="adamw", base_lr=4e-4, beta1=0.9, beta2=0.95, epsilon=1e-5, weight_decay=0.1, clip_norm=1.0
    )
    assert (config.target, workload.num_eval, config.data.length) == (3.34, 1024, 8192)
    found = workload.hyperparameters()
    assert found["opt_learning_rate_decay_steps"] == 1_200_000 - 128 and found["max_steps"] == 1_200_000
    assert workload.train_flops_per_example() / 1e12 == pytest.approx(187.4, abs=0.05)


def test_reference_points_are_those_of_mlperf():
    folder = Path(mlperf_logging.__file__).parent / "rcp_checker"
    (path,) = folder.rglob("training_6.1.0/rcps_gpt_oss_20b.json")
    records = json.loads(path.read_text()).values()
    assert set(numbers.get_config("closed").reference_points) == {str(record["BS"]) for record in records}
    for record in records:
        workload, theirs = made(f"reference_point={record['BS']}"), record["Hyperparams"]
        found = workload.hyperparameters()
        assert workload.batch_size == record["BS"]
        assert found["opt_base_learning_rate"] == theirs["opt_base_learning_rate"]
        samples = theirs["opt_learning_rate_warmup_samples"]
        assert found["opt_learning_rate_warmup_steps"] == samples / record["BS"]
        assert found["opt_end_learning_rate"] == pytest.approx(theirs["opt_base_learning_rate"] / 10)


@pytest.mark.parametrize("batch", [16, 64, 100])
def test_it_is_evaluated_when_the_rules_say(batch):
    workload = made(f"batch_size={batch}")
    (schedule,) = evaluation_schedule.find_schedules("gpt_oss_20b", "v6.0", batch)
    blocks = workload.blocks()
    done = [next(blocks).stop * batch for _ in range(40)]
    assert not evaluation_schedule.breaches((schedule,), done, lambda _: batch, batch)


def test_the_rate_is_megatrons():
    """Transcribed: megatron/core/optimizer_param_scheduler.py, get_lr; it is asked before the first update, at 0 steps."""
    workload = made("schedule.warmup_steps=16", "schedule.max_steps=1000", "schedule.end_lr=4e-5")
    rate, decay = workload.schedule(), 1000 - 16
    for step in (0, 1, 15, 16, 17, 500, decay - 1, decay, 5000):
        if step <= 16:
            expected = 4e-4 * step / 16
        elif step > decay:
            expected = 4e-5
        else:
            expected = 4e-5 + 0.5 * (np.cos(np.pi * (step - 16) / (decay - 16)) + 1) * (4e-4 - 4e-5)
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5)


def test_the_mini_is_trained_as_the_dense_one():
    """So that the two compare at equal tokens, with as many products a token."""
    ours, dense = (which.get_config("mini").to_dict() for which in (numbers, llama31_8b))
    assert ours["model"].pop("mlp_width") * ours["model"].pop("num_chosen") == dense["model"].pop("mlp_width")
    more = {"window", "window_every", "query_key_norm", "num_experts"}
    assert set(ours["model"]) - set(dense["model"]) == more
    assert {key: value for key, value in ours["model"].items() if key not in more} == dense["model"]
    for name in (
        "workload",
        "benchmark",
        "model",
        "inference",
    ):  # the dense one tells tokens where it is served
        del ours[name], dense[name]
    assert ours == dense


# Through the door.


def test_a_closed_run_on_made_up_tokens_lacks_nothing_but_the_target(closed_run):
    folder, process = closed_run
    ended = door.finish(process)
    assert ended.returncode == 1, ended.stderr
    assert "made-up tokens, not MLPerf's data" in ended.stdout and "not reached" in ended.stdout
    (log,) = folder.rglob("result_0.txt")
    events = read_events(log)
    told = {event.key: event.value for event in events}
    assert told["max_sequence_length"] == 64 and told["opt_learning_rate_decay_steps"] == 1_200_000 - 128
    # With every evaluation, of each of two layers, the part of the tokens that chose each of four experts.
    loads = np.array(door.values(events, "expert_load"))
    assert loads.shape == (len(door.values(events, "eval_accuracy")), 2, 4)
    np.testing.assert_allclose(loads.sum(-1), 2, atol=1e-4)
    # Of what was cut, and of the target.
    complaints = door.complaints(log, "6.1.0")
    wanted = ("max_sequence_length", "eval_samples", "eval_accuracy")
    assert len(complaints) == 3 and all(any(key in line for line in complaints) for key in wanted), complaints
