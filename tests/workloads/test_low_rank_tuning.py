"""Low-rank changes: what is trained and what is not, where it lies, and what it begins with."""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import mlperf_logging
import numpy as np
import pytest

from configs import llama2_70b_lora as numbers
from mlperf_jax import config as configs
from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.events import read_events
from mlperf_jax.rounds import evaluation_schedule
from mlperf_jax.weights import files, safetensors_file
from mlperf_jax.workloads.low_rank_tuning import Llama2LowRank
from models.decoder import DecoderConfig
from tests import agreement, door, pair, toys
from tests.toys_language import NARROW, SmallTuning
from tests.weights.test_llama_weights import published

# Of layers 80 to 2, of widths 8,192 to 16, of rows 8,192 tokens to 64, of steps 1,024 to 8.
CUTS = (
    *NARROW,
    "data.length=64",
    "loss_tile=32",
    "batch_size=4",
    "eval_batch_size=4",
    "eval_every_samples=16",
    "eval_skipped=0",
    "schedule.max_steps=8",
)


@pytest.fixture(scope="module", autouse=True)
def closed_run(tmp_path_factory):
    """A closed run of a narrow model on made-up tokens, started before the first test."""
    folder = tmp_path_factory.mktemp("llama2_70b_lora")
    process = door.start_closed(folder, "llama2_70b_lora", 8, *CUTS)
    yield folder, process
    process.kill()


LAYOUTS = agreement.Layouts(lambda strategy: toys.make(SmallTuning, "float64"))


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_tp"])
def test_ten_steps_agree_with_one_device(strategy):
    """With dropout; what is frozen stays as it was."""
    state = LAYOUTS.agree(strategy)
    losses, _ = LAYOUTS.trained(None)
    assert losses[-1] < losses[0]
    for before, after in zip(*map(jax.tree.leaves, (LAYOUTS.start["frozen"], state["frozen"])), strict=True):
        np.testing.assert_array_equal(before, after)
    saved = LAYOUTS.engine(None).saved(state)
    assert "frozen" not in saved and "low_rank_in" in saved["params"]["layers"]["attention"]


def test_of_llama_2_70b_few_parameters_are_trained():
    """Gradients and the optimizer's state are of these alone, and the others are half as wide."""
    config = SmallTuning.get_config("mini")
    config.model = {
        name: value
        for name, value in vars(DecoderConfig.llama2_70b()).items()
        if name not in ("attention", "remat")
    }
    config.data.length = 8192
    workload = SmallTuning(config, POLICIES["bfloat16"], data_dir=None)
    state = jax.eval_shape(workload.init, jax.ShapeDtypeStruct((), np.uint32))
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in state.items()}
    assert sizes["params"] == 44_564_480 and sizes["frozen"] == 68_976_648_192
    assert 2 * sizes["params"] <= sizes["opt_state"] < 2 * sizes["params"] + 10
    assert {x.dtype for x in jax.tree.leaves(state["frozen"])} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(state["params"])} == {jnp.dtype(jnp.float32)}


@functools.cache
def base():
    """Frozen parameters of another seed, as published."""
    workload = toys.make(SmallTuning)
    return workload, jax.device_get(jax.jit(workload.init)(np.uint32(7)))["frozen"]


def test_it_begins_with_the_published_weights(tmp_path):
    workload, frozen = base()
    path = tmp_path / "base.safetensors"
    safetensors_file.write(path, published(frozen, workload.model_config))
    tuned = toys.make(SmallTuning, base_weights=str(path))
    struct = {"frozen": jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), frozen)}
    found = tuned.frozen_state(struct, seed=1)["frozen"]
    for ours, theirs in zip(*map(jax.tree.leaves, (found, frozen)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert tuned.frozen_source == str(path)


def test_a_folder_of_files_is_read_as_one(tmp_path):
    """As MLCommons gives out Llama 2 70B, queries, keys and values in one array."""
    workload, frozen = base()
    tensors = published(frozen, workload.model_config, fused=True)
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        path = tmp_path / f"model-0000{number}-of-00002.safetensors"
        safetensors_file.write(path, {name: tensors[name] for name in part})
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    tuned = toys.make(SmallTuning, base_weights=str(tmp_path))
    struct = {"frozen": jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), frozen)}
    found = tuned.frozen_state(struct, seed=1)["frozen"]
    for ours, theirs in zip(*map(jax.tree.leaves, (found, frozen)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    safetensors_file.write(tmp_path / "model-00002-of-00002.safetensors", {names[0]: tensors[names[0]]})
    with pytest.raises(UserError, match="two of its files have an array"):
        files.read_tensors(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.safetensors files in .*empty"):
        files.read_tensors(tmp_path / "empty")


def test_the_loss_of_a_row_is_that_of_what_is_asked_for():
    """Rows count alike in evaluation, tokens in training: against logits and plain means."""
    workload = toys.make(SmallTuning)
    batch = workload.dataset.read_eval(np.arange(6), ["tokens", "told"])
    batch["told"][0, 2:] = 0  # a row of which one token is asked for
    state = jax.jit(workload.init)(np.uint32(3))

    @jax.jit
    def run(state):
        model = workload.model(state)
        totals = workload.eval_update(workload.eval_totals(), model, batch | {"mask": np.ones(6)})
        loss = workload.loss(model, batch, None)
        return totals, loss, model(jnp.asarray(batch["tokens"][:, :-1])), workload.answer(model, batch)

    totals, (total, weight), logits, answers = jax.device_get(run(state))
    log_p = np.asarray(jax.nn.log_softmax(logits.astype(float)))
    losses = -np.take_along_axis(log_p, batch["tokens"][:, 1:, None], -1)[..., 0]
    told = batch["told"][:, 1:] > 0
    rows = [loss[asked].mean() for loss, asked in zip(losses, told, strict=True)]
    np.testing.assert_allclose(answers, rows, rtol=1e-4)
    assert workload.eval_result(totals)["quality"] == pytest.approx(np.mean(rows), rel=1e-5)
    assert weight == told.sum() and total / weight == pytest.approx(losses[told].mean(), rel=1e-5)


def test_real_data_asks_for_weights():
    class Real(SmallTuning):
        made_up_data = False

    for name, words in (
        ("", "no file of weights to tune"),
        ("llama.safetensors", r"no /nonexistent/weights/llama"),
    ):
        with pytest.raises(UserError, match=words):
            toys.make(Real, base_weights=name).check_data()


# The rules' numbers.


@pytest.mark.parametrize("batch", [8, 16, 32, 128, 100])
def test_it_is_evaluated_when_the_rules_say(batch):
    config = numbers.get_config("closed")
    config.batch_size = batch
    workload = Llama2LowRank(config, POLICIES["float32"], data_dir=None, synthetic=True)
    (schedule,) = evaluation_schedule.find_schedules("llama2_70b_lora", "v6.0", batch)
    stops = [block.stop for block in workload.blocks()]
    every = -(-384 // batch)
    first = math.floor(0.125 * batch + 2) + 1  # of batches of 8 after 1,536 rows, as published runs
    assert stops[:5] == [n * every for n in range(first, first + 5)] and stops[-1] == 1024
    done = [stop * batch for stop in stops[:-1]]
    assert not evaluation_schedule.breaches((schedule,), done, lambda _: batch, batch)


def test_reference_points_are_those_of_mlperf():
    folder = Path(mlperf_logging.__file__).parent / "rcp_checker"
    (path,) = folder.rglob("training_6.1.0/rcps_llama2_70b_lora.json")
    records = json.loads(path.read_text()).values()
    base = numbers.get_config("closed")
    assert set(base.reference_points) == {str(record["BS"]) for record in records}
    for record in records:
        config = configs.resolve(base, [f"--config.reference_point={record['BS']}"])
        workload = Llama2LowRank(config, POLICIES["float32"], data_dir=None, synthetic=True)
        found, theirs = workload.hyperparameters(), record["Hyperparams"]
        assert config.batch_size == record["BS"]
        for ours, key in (
            ("opt_base_learning_rate", "opt_base_learning_rate"),
            ("opt_gradient_clip_norm", "opt_max_grad_norm"),
            ("opt_learning_rate_warmup_steps", "opt_learning_rate_warmup_epochs"),
            ("opt_learning_rate_training_steps", "max_steps"),
            ("lora_rank", "lora_r"),
            ("lora_alpha", "lora_alpha"),
        ):
            assert found[ours] == theirs[key], key


def test_closed_is_the_reference():
    config = numbers.get_config("closed")
    workload = Llama2LowRank(config, POLICIES["float32"], data_dir=None, synthetic=True)
    published_sizes = vars(DecoderConfig.llama2_70b()) | {"remat": config.remat}
    assert vars(workload.model_config) == published_sizes
    assert config.optimizer.to_dict() == dict(
        name="adamw", base_lr=4e-4, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=1e-4, clip_norm=0.3
    )
    assert (config.target, workload.num_train, workload.num_eval) == (0.925, 3901, 173)
    assert workload.hyperparameters()["lora_dropout"] == 0.1
    mini = Llama2LowRank(numbers.get_config("mini"), POLICIES["float32"], data_dir=None, synthetic=True)
    sizes = {
        name: value
        for name, value in vars(DecoderConfig.smollm2_135m()).items()
        if name not in ("low_rank", "remat")
    }
    assert sizes.items() <= vars(mini.model_config).items() and mini.model_config.low_rank == 16


def test_the_rate_is_that_of_transformers():
    """Transcribed: transformers/optimization.py, get_cosine_schedule_with_warmup; without warm-up in the reference."""
    for warmup in (0, 4):
        workload = toys.make(
            SmallTuning, schedule__warmup_steps=warmup, schedule__max_steps=40, optimizer__base_lr=3e-4
        )
        for step in (0, 1, 3, 4, 5, 20, 39, 40):
            if step < warmup:
                share = step / warmup
            else:
                share = max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warmup) / (40 - warmup))))
            assert float(workload.schedule()(step)) == pytest.approx(3e-4 * share, rel=1e-5, abs=1e-11)


# Through the door.


def test_two_processes_agree_with_one(tmp_path):
    """Ten steps, and the state at their end as the two wrote it, in which nothing is that stays as it is."""
    small = "tests.toys_language:SmallTuning"
    step, found = pair.saved(tmp_path, small, LAYOUTS.engine("fsdp"), status=1, devices=1)
    _, expected = LAYOUTS.trained("fsdp")
    assert step == agreement.STEPS and "frozen" not in found
    agreement.assert_close(found, {part: tree for part, tree in expected.items() if part != "frozen"})


def test_a_closed_run_on_made_up_tokens_lacks_nothing_but_the_target(closed_run):
    folder, process = closed_run
    ended = door.finish(process)
    assert ended.returncode == 1, ended.stderr
    assert "made-up tokens, not MLPerf's data" in ended.stdout and "not reached" in ended.stdout
    (log,) = folder.rglob("result_0.txt")
    told = {event.key: event.value for event in read_events(log)}
    assert told["lora_rank"] == 16 and told["opt_learning_rate_training_steps"] == 8
    complaints = door.complaints(log, "6.1.0")
    assert len(complaints) == 1 and "eval_accuracy" in complaints[0], complaints
