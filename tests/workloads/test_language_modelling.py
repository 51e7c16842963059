"""Language models as workloads: layouts, micro-batches, the loss of the first step, evaluations; and through the door."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import mlperf_logging
import numpy as np
import pytest

from configs import llama31_8b as numbers
from mlperf_jax import config as configs
from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.events import read_events
from mlperf_jax.rounds import evaluation_schedule
from mlperf_jax.training import schedules
from mlperf_jax.workloads.language_modelling import Llama31
from models.decoder import DecoderConfig
from tests import agreement, door, pair, toys
from tests.toys_language import BATCH, NARROW, VOCABULARY, SmallLlama

CUTS = (
    *NARROW,
    "data.length=64",
    "loss_tile=32",
    "batch_size=4",
    "eval_batch_size=4",
    "eval_every_samples=64",
)


@pytest.fixture(scope="module", autouse=True)
def closed_run(tmp_path_factory):
    """A closed run of a narrow model on made-up tokens, started before the first test."""
    folder = tmp_path_factory.mktemp("llama31_8b")
    process = door.start_closed(folder, "llama31_8b", 1, *CUTS)
    yield folder, process
    process.kill()


LAYOUTS = agreement.Layouts(lambda strategy: toys.make(SmallLlama, "float64"))


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_tp", "sequence", "context"])
def test_ten_steps_agree_with_one_device(strategy):
    state = LAYOUTS.agree(strategy)
    losses, _ = LAYOUTS.trained(None)
    assert losses[-1] < losses[0]
    kernel = state["params"]["layers"]["attention"]["query"]["kernel"]
    split = {
        "fsdp": agreement.DEVICES,
        "fsdp_tp": agreement.DEVICES,
        "sequence": 2,
        "context": agreement.DEVICES // 2,
    }[strategy]
    assert kernel.addressable_shards[0].data.size * split == kernel.size


def test_the_loss_is_the_mean_over_all_tokens_also_in_micro_batches():
    with jax.enable_x64(True):
        workload = toys.make(SmallLlama, "float64")
        state = jax.jit(workload.init)(np.uint32(3))
        batch = workload.dataset.read_train(0, BATCH, seed=2)
        found = []
        for micro in (1, 4):
            workload.config.gradient_accumulation_steps = micro
            new, metrics = jax.jit(workload.train_step)(state, batch)
            found.append((metrics["loss"], new["opt_state"]))
        for a, b in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)

        def plain(state):
            logits = workload.model(state)(jnp.asarray(batch["tokens"][:, :-1]))
            log_p = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(log_p, batch["tokens"][:, 1:, None], -1).mean()

        np.testing.assert_allclose(found[0][0], jax.jit(plain)(state), rtol=1e-12)


def test_the_first_loss_is_that_of_logits_without_meaning():
    """ln V + D s^2 / 2, as states are normed and the last product is drawn with a deviation of s."""
    with jax.enable_x64(True):
        workload = toys.make(
            SmallLlama,
            "float64",
            model__width=256,
            model__vocab_size=512,
            model__initializer_range=0.05,
            model__tied=False,
        )
        state = jax.jit(workload.init)(np.uint32(3))
        tokens = np.random.default_rng(0).integers(512, size=(64, 17))
        total, weight = jax.jit(lambda s: workload.loss(workload.model(s), {"tokens": tokens}, None))(state)
    assert abs(float(total) / float(weight) - (np.log(512) + 256 * 0.05**2 / 2)) < 0.02


def test_log_perplexity_is_the_mean_of_all_rows():
    layouts = agreement.Layouts(
        lambda strategy: toys.make(SmallLlama, "float64", eval_batch_size=8),
        lambda strategy, engine: ("eval_init", "eval_step"),
    )
    engine = layouts.engine(None)
    with jax.enable_x64(True):
        state = jax.device_put(layouts.start)
        found = engine.workload.evaluate(engine, state)
        rows = engine.workload.dataset.read_eval(np.arange(engine.workload.num_eval), ["tokens"])["tokens"]
        logits = jax.jit(lambda s: engine.workload.model(s)(jnp.asarray(rows[:, :-1])))(state)
        log_p = np.asarray(jax.nn.log_softmax(logits))
        answers = jax.jit(lambda s: engine.workload.answer(engine.workload.model(s), {"tokens": rows}))(state)
    expected = -np.take_along_axis(log_p, rows[:, 1:, None], -1).mean()
    assert engine.workload.num_eval % 8 and found["count"] == engine.workload.num_eval
    assert found["quality"] == pytest.approx(expected, rel=1e-12)
    logged = [answer.tobytes() for answer in np.asarray(answers)]
    assert engine.workload.answered_figures(None, logged)["quality"] == pytest.approx(expected, rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(expected / np.log(2) / 2.0)


# The rules' numbers.


@pytest.mark.parametrize("batch", [16, 32, 96, 100])
def test_it_is_evaluated_when_the_rules_say(batch):
    config = numbers.get_config("closed")
    config.batch_size = batch
    workload = Llama31(config, POLICIES["float32"], data_dir=None, synthetic=True)
    (schedule,) = evaluation_schedule.find_schedules("llama31_8b", "v6.0", batch)
    blocks = workload.blocks()
    stops = [next(blocks).stop for _ in range(40)]
    # Of 96 rows 129 steps, as the evaluations of the reference points show: 12,288 is no multiple of the batch.
    assert stops == [n * -(-12_288 // batch) for n in range(1, 41)]
    done = [stop * batch for stop in stops]
    assert not evaluation_schedule.breaches((schedule,), done, lambda _: batch, batch)


def test_reference_points_are_those_of_mlperf():
    folder = Path(mlperf_logging.__file__).parent / "rcp_checker"
    (path,) = folder.rglob("training_6.1.0/rcps_llama31_8b.json")
    records = json.loads(path.read_text()).values()
    base = numbers.get_config("closed")
    assert set(base.reference_points) == {str(record["BS"]) for record in records}
    for record in records:
        config = configs.resolve(base, [f"--config.reference_point={record['BS']}"])
        workload = Llama31(config, POLICIES["float32"], data_dir=None, synthetic=True)
        found = workload.hyperparameters()
        theirs = record["Hyperparams"]
        assert config.batch_size == record["BS"]
        assert found["opt_base_learning_rate"] == theirs["opt_base_learning_rate"]
        samples = theirs["opt_learning_rate_warmup_samples"]
        assert found["opt_learning_rate_warmup_steps"] == round(samples / record["BS"])
        assert found["opt_end_learning_rate"] == pytest.approx(theirs["opt_base_learning_rate"] / 10)


def test_closed_is_the_reference():
    config = numbers.get_config("closed")
    workload = Llama31(config, POLICIES["float32"], data_dir=None, synthetic=True)
    assert workload.model_config == dataclasses.replace(DecoderConfig.llama31_8b(), remat=config.remat)
    assert config.optimizer.to_dict() == dict(
        name="adamw", base_lr=4e-4, beta1=0.9, beta2=0.95, epsilon=1e-5, weight_decay=0.1, clip_norm=1.0
    )
    assert (config.target, workload.num_eval, config.data.length) == (3.3, 1024, 8192)
    found = workload.hyperparameters()
    assert found["opt_learning_rate_decay_steps"] == 1_200_000 - 16 and found["max_steps"] == 1_200_000


def test_the_rate_is_nemos():
    """Transcribed: nemo/core/optim/lr_scheduler.py, CosineAnnealing._get_lr."""
    rate = schedules.cosine_after_warmup(4e-4, 4e-5, 16, 1000)
    for step in (0, 1, 15, 16, 17, 500, 999, 1000, 5000):
        if step <= 16:
            expected = 4e-4 * (step + 1) / 17
        elif step > 1000:
            expected = 4e-5
        else:
            expected = 4e-5 + (4e-4 - 4e-5) * 0.5 * (1 + np.cos(np.pi * (step - 16) / (1000 - 16)))
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5)
    # Of 1.2 million steps hardly any decays: by the 20,000th 0.06 %.
    assert float(schedules.cosine_after_warmup(1.0, 0.1, 16, 1_200_000)(20_000)) == pytest.approx(
        0.99938, abs=2e-5
    )
    with pytest.raises(ValueError, match="less than max_steps"):
        schedules.cosine_after_warmup(1.0, 0.1, 10, 10)


def test_a_model_that_does_not_know_a_token_is_refused():
    with pytest.raises(
        UserError, match=r"has 32 tokens and the model 31; give --config\.model\.vocab_size=32"
    ):
        toys.make(SmallLlama, model__vocab_size=VOCABULARY - 1).check_data()


# Through the door.


def test_two_processes_train_as_one(tmp_path):
    flags = ("tests.toys_language:SmallLlama", "--sharding=fsdp")
    alone, together = (pair.evaluations(tmp_path, *flags, processes=count) for count in (1, 2))
    assert len(alone) == 4 and together == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize(
    "preset, made_up, told", [("closed", False, True), ("closed", True, False), ("mini", False, False)]
)
def test_published_runs_stand_beside_closed_ones_on_real_data(monkeypatch, preset, made_up, told):
    monkeypatch.setattr(Llama31, "made_up_data", made_up)
    config = numbers.get_config(preset)
    config.batch_size, config.optimizer.base_lr = 16, 4e-4
    workload = Llama31(config, POLICIES["float32"], data_dir=Path("/nonexistent"))
    beside = workload.published_runs(12_288 // 16)
    assert (beside is not None) is told
    assert workload.published_runs(700) is None
    if told:
        assert (beside.samples, beside.point.median, beside.exact) == (12_288, 5.2338, True)


def test_a_closed_run_on_made_up_tokens_lacks_nothing_but_the_target(closed_run):
    folder, process = closed_run
    ended = door.finish(process)
    assert ended.returncode == 1, ended.stderr
    assert "made-up tokens, not MLPerf's data" in ended.stdout and "not reached" in ended.stdout
    (log,) = folder.rglob("result_0.txt")
    told = {event.key: event.value for event in read_events(log)}
    assert told["max_sequence_length"] == 64 and told["opt_learning_rate_decay_steps"] == 1_200_000 - 16
    # Of what was cut, and of the target.
    complaints = door.complaints(log, "6.1.0")
    wanted = ("max_sequence_length", "eval_samples", "eval_accuracy")
    assert len(complaints) == 3 and all(any(key in line for line in complaints) for key in wanted), complaints
