"""BERT's pre-training as a workload: layouts, packed rows, what it begins with, its evaluations; and through the door."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import mlperf_logging
import numpy as np
import pytest

from configs import bert as numbers
from mlperf_jax import config as configs
from mlperf_jax.errors import UserError
from mlperf_jax.parallel.mesh import single_device_layout
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.events import read_events
from mlperf_jax.rounds import evaluation_schedule
from mlperf_jax.training.engine import Engine
from mlperf_jax.weights import safetensors_file
from mlperf_jax.workload import NO_NOTES
from mlperf_jax.workloads.bert_pretraining import BertPretraining
from tests import agreement, door, pair, toys
from tests.agreement import DEVICES, layout_of
from tests.toys_bert import BATCH, SmallBert

STEPS = 10
WITHOUT_DROPOUT = dict(model__dropout=0.0, model__attention_dropout=0.0)
CUTS = (
    "model.width=16",
    "model.mlp_width=16",
    "model.num_heads=2",
    "model.num_layers=2",
    "batch_size=4",
    "eval_batch_size=2",
    "eval_every_samples=8",
    "schedule.training_steps=2",
)


@pytest.fixture(scope="module", autouse=True)
def closed_run(tmp_path_factory):
    """A closed run of a narrow model on made-up sequences, started before the first test."""
    folder = tmp_path_factory.mktemp("bert")
    process = door.start_closed(folder, "bert", 16, *CUTS)
    yield folder, process
    process.kill()


@functools.cache
def engine_of(strategy):
    """One for all tests: it takes seconds to compile."""
    with jax.enable_x64(True):
        engine = Engine(toys.make(SmallBert, "float64"), layout_of(strategy))
        engine.compile("train_step[packed]", *(() if strategy else ("init",)))
        return engine


def train(engine, state, start, stop):
    """Steps [start, stop); returns the losses and the state."""
    workload = engine.workload
    batches = workload.dataset.train_batches(seed=1, batch_size=BATCH, start_step=start, rows=slice(0, BATCH))
    losses = []
    for _ in range(start, stop):
        bucket, batch = workload._packed(next(batches), workload.packed_rows(engine.layout))
        placed = engine.place(batch, engine.buckets[bucket])
        state, metrics = engine.train(state, placed, steps=1, bucket=bucket)
        losses.append(float(metrics["loss"]))
    batches.close()
    return np.array(losses), state


@functools.cache
def one_device():
    """The initial state, and losses and state after ten steps, as numpy arrays."""
    with jax.enable_x64(True):
        engine = engine_of(None)
        start = jax.device_get(engine.init(1))
        losses, state = train(engine, jax.device_put(start), 0, STEPS)
        return start, losses, jax.device_get(state)


@pytest.mark.parametrize("strategy", ["dp", "zero1", "fsdp", "tp", "fsdp_tp", "sequence"])
def test_ten_steps_agree_with_one_device(strategy):
    """With dropout, in packed rows: masks do not depend on the layout."""
    start, expected_losses, expected = one_device()
    with jax.enable_x64(True):
        engine = engine_of(strategy)
        state = jax.device_put(start, jax.tree.map(lambda x: x.sharding, engine.state))
        losses, state = train(engine, state, 0, STEPS)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
        for part in ("params", "opt_state"):
            found = jax.tree.leaves(state[part])
            for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(expected[part]), found, strict=True):
                a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
                # A softmax does not see what all keys have in common: their biases move by rounding alone.
                least = 1e-3 if "['key']['bias']" in jax.tree_util.keystr(path) else 1e-30
                assert np.abs(a - b).max() <= 1e-9 * max(np.abs(a).max(), least), path
    assert expected_losses[-1] < expected_losses[0]
    kernel = state["params"]["encoder"]["layers"]["mlp_in"]["kernel"]
    split = {"tp": 2, "sequence": 2, "fsdp": DEVICES, "fsdp_tp": DEVICES}.get(strategy, 1)
    assert kernel.addressable_shards[0].data.size * split == kernel.size


def test_packed_rows_and_micro_batches_have_the_loss_of_sequences_apart():
    """Of sequences with 2 words to be told, or 3: loss and gradients in float64."""
    with jax.enable_x64(True):
        sizes = dict(model__num_layers=1, next_sentence_weight=0.25)
        workload = toys.make(SmallBert, "float64", **WITHOUT_DROPOUT, **sizes)
        state = jax.jit(workload.init)(np.uint32(3))
        batch = workload.dataset.read_train(0, BATCH, seed=2)
        assert len(set(batch["word_weight"].sum(1).tolist())) > 1
        found = []
        for micro, rows in ((1, 0), (4, 24)):
            workload.config.gradient_accumulation_steps = micro
            given = workload._packed(batch, rows).batch if rows else batch
            assert len(given["tokens"]) == (rows or BATCH)
            new, metrics = jax.jit(workload.train_step)(state, given)
            found.append((metrics["loss"], new["opt_state"]))
        np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-12)
        for a, b in zip(*(jax.tree.leaves(opt_state) for _, opt_state in found), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-14)
        # And it is what the reference adds up: the mean over words, and, here with a weight, that over sequences.
        words, follows = workload._logits(workload.model(state), batch)
        log_words, log_follows = jax.nn.log_softmax(words), jax.nn.log_softmax(follows)
        told = jnp.take_along_axis(log_words, batch["word"][..., None].astype(int), -1)[..., 0]
        follow = jnp.take_along_axis(log_follows, batch["is_random"][..., None].astype(int), -1)
        weight = batch["word_weight"]
        expected = -(told * weight).sum() / weight.sum() - 0.25 * follow.mean()
        np.testing.assert_allclose(found[0][0], expected, rtol=1e-12)


def test_a_batch_that_does_not_fit_is_trained_apart():
    workload = toys.make(SmallBert)
    batch = workload.dataset.read_train(0, BATCH, seed=2)
    assert workload._packed(batch, 24).bucket == "packed"
    assert workload._packed(batch, 15).bucket == "apart"
    layout = single_device_layout()
    assert workload.packed_rows(layout) == 24
    assert toys.make(SmallBert, data__packing=0.0).packed_rows(layout) == 0
    assert toys.make(SmallBert, gradient_accumulation_steps=16).packed_rows(layout) == 0
    structs = workload.batch_struct(layout)
    for bucket, given in (("packed", workload._packed(batch, 24).batch), ("apart", batch)):
        assert {n: (x.shape, x.dtype) for n, x in structs[bucket].items()} == {
            n: (x.shape, x.dtype) for n, x in given.items()
        }


@functools.cache
def evaluated():
    engine = Engine(toys.make(SmallBert), single_device_layout())
    engine.compile("init", "eval_init", "eval_step")
    state = engine.init(1)
    return engine, state, engine.workload.evaluate(engine, state)


def test_accuracy_is_that_of_all_words_told_one_by_one():
    engine, state, found = evaluated()
    workload, indices = engine.workload, np.arange(44)
    answers = np.asarray(
        jax.jit(workload.predict)(workload.served_state(state), workload.read_samples(indices))
    )
    right = workload.dataset.read_eval(indices, ("word", "word_weight"))
    pairs = [
        (answers[i, p], right["word"][i, p])
        for i in range(44)
        for p in range(answers.shape[1])
        if right["word_weight"][i, p]
    ]
    assert found["count"] == 44 and 0 < found["quality"] == np.mean([a == b for a, b in pairs])
    assert 0 <= found["next_sentence"] <= 1
    logged = [answer.tobytes() for answer in answers]
    assert workload.answered_figures(indices, logged)["quality"] == pytest.approx(found["quality"])


# The rules' numbers.


@pytest.mark.parametrize("batch", [256, 448, 2048, 3072, 4096, 8192, 16384])
def test_it_is_evaluated_when_the_rules_say(batch):
    config = numbers.get_config("closed")
    config.batch_size = batch
    workload = BertPretraining(config, POLICIES["float32"], data_dir=None, synthetic=True)
    (schedule,) = evaluation_schedule.find_schedules("bert", "v5.0", batch)
    expected = {256: 150_000, 448: 150_000, 2048: 150_000, 3072: 175_000, 4096: 175_000, 8192: 225_000}
    assert schedule.interval == expected.get(batch, 325_000)
    stops = [block.stop for block in workload.blocks()]
    assert stops[:3] == [-(-n * int(schedule.interval) // batch) for n in (1, 2, 3)]
    assert stops[-1] == config.schedule.training_steps


def test_reference_points_are_those_of_mlperf():
    folder = Path(mlperf_logging.__file__).parent / "rcp_checker"
    (path,) = folder.rglob("training_5.1.0/rcps_bert.json")
    records = json.loads(path.read_text()).values()
    names = {
        "opt_base_learning_rate": "opt_base_learning_rate",
        "opt_epsilon": "opt_lamb_epsilon",
        "opt_learning_rate_training_steps": "opt_learning_rate_training_steps",
        "num_warmup_steps": "num_warmup_steps",
        "start_warmup_step": "start_warmup_step",
        "opt_lamb_beta_1": "opt_lamb_beta_1",
        "opt_lamb_beta_2": "opt_lamb_beta_2",
        "opt_lamb_weight_decay_rate": "opt_lamb_weight_decay_rate",
    }
    base = numbers.get_config("closed")
    assert set(base.reference_points) == {str(record["BS"]) for record in records}
    for record in records:
        config = configs.resolve(base, [f"--config.reference_point={record['BS']}"])
        workload = BertPretraining(config, POLICIES["float32"], data_dir=None, synthetic=True)
        found = workload.hyperparameters()
        assert config.batch_size == record["BS"] and config.optimizer.clip_norm == 1
        for theirs, ours in names.items():
            assert float(record["Hyperparams"][theirs]) == pytest.approx(found[ours]), (record["BS"], theirs)
    assert base.next_sentence_weight == 1
    assert (base.target, workload.num_eval, workload.dataset.eval_spec["masked"][0]) == (0.72, 10_000, (76,))


# What it begins with.


def torchs(params):
    """Our parameters by PyTorch's names."""
    encoder, found = params["encoder"], {}

    def dense(name, layer, shape):
        found[f"{name}.weight"] = np.asarray(layer["kernel"]).reshape(shape).T.copy()
        found[f"{name}.bias"] = np.asarray(layer["bias"]).reshape(-1)

    def norm(name, layer):
        found[f"{name}.weight"], found[f"{name}.bias"] = np.asarray(layer["scale"]), np.asarray(layer["bias"])

    for name, ours in (
        ("word", "embedding"),
        ("position", "position_embedding"),
        ("token_type", "type_embedding"),
    ):
        found[f"bert.embeddings.{name}_embeddings.weight"] = np.asarray(encoder[ours])
    norm("bert.embeddings.LayerNorm", encoder["embedding_norm"])
    for n in range(2):
        layer, at = jax.tree.map(lambda x: x[n], encoder["layers"]), f"bert.encoder.layer.{n}"  # noqa: B023
        for part in ("query", "key", "value"):
            dense(f"{at}.attention.self.{part}", layer["attention"][part], (16, 16))
        dense(f"{at}.attention.output.dense", layer["attention"]["out"], (16, 16))
        norm(f"{at}.attention.output.LayerNorm", layer["attention_norm"])
        dense(f"{at}.intermediate.dense", layer["mlp_in"], (16, 32))
        dense(f"{at}.output.dense", layer["mlp_out"], (32, 16))
        norm(f"{at}.output.LayerNorm", layer["mlp_norm"])
    dense("bert.pooler.dense", params["pooler"], (16, 16))
    dense("cls.seq_relationship", params["next_sentence"], (16, 2))
    dense("cls.predictions.transform.dense", params["transform"], (16, 16))
    norm("cls.predictions.transform.LayerNorm", params["transform_norm"])
    found["cls.predictions.bias"] = np.asarray(params["bias_vocab"])
    return found


class Published(SmallBert):
    """On data that counts as real."""

    made_up_data = False


def test_training_begins_with_the_published_weights_if_they_are_as_good_as_they_were(tmp_path):
    engine, state, figures = evaluated()
    safetensors_file.write(tmp_path / "bert.safetensors", torchs(jax.device_get(state["params"])))
    workload = toys.make(Published, start_weights=str(tmp_path / "bert.safetensors"))
    for name, accuracy in (("right", figures["quality"]), ("wrong", figures["quality"] + 0.01)):
        workload.config.start_accuracy = accuracy
        engine.workload = workload
        try:
            begun = workload.initial_state(engine, seed=5)
            for a, b in zip(jax.tree.leaves(begun["params"]), jax.tree.leaves(state["params"]), strict=True):
                np.testing.assert_array_equal(a, b)
            if name == "right":
                workload.require_start(engine, begun, NO_NOTES)
                continue
            with pytest.raises(UserError, match=r"begins with a masked-LM accuracy of 0\.\d+ where MLPerf's"):
                workload.require_start(engine, begun, NO_NOTES)
        finally:
            engine.workload = evaluated()[0].workload


def test_closed_asks_for_the_checkpoint():
    for weights, words in (
        ("", "The rules want MLPerf's checkpoint"),
        ("model.ckpt-28252.index", "put MLPerf's"),
    ):
        workload = toys.make(Published, start_weights=weights)
        workload.config.preset = "closed"
        with pytest.raises(UserError, match=words):
            workload.check_data()


# Through the door.


def test_two_processes_train_as_one(tmp_path):
    """An epoch, the state at its end as the two wrote it, and how it was judged. Two do not pack; nor does this one."""
    unpacked = "--config.data.packing=0.0"
    with jax.enable_x64(True):
        engine = Engine(toys.make(SmallBert, "float64", data__packing=0.0), single_device_layout())
        engine.compile()
    step, found = pair.saved(tmp_path, "tests.toys_bert:SmallBert", engine, unpacked, status=1)
    with jax.enable_x64(True):
        _, expected = agreement.train(engine, engine.init(1), 0, step)
        quality = engine.workload.evaluate(engine, expected)["quality"]
    assert step == 256 // BATCH
    agreement.assert_close(found, jax.device_get(expected), floor=1e-3)
    (logged,) = door.values(door.events_of(tmp_path / "results"), "eval_accuracy")
    assert logged == pytest.approx(quality, rel=1e-9)


def test_a_closed_run_on_made_up_sequences_lacks_nothing_but_the_target(closed_run):
    folder, process = closed_run
    ended = door.finish(process)
    assert ended.returncode == 1, ended.stderr
    assert "made-up sequences, not MLPerf's data" in ended.stdout and "not reached" in ended.stdout
    (log,) = door.logs(folder / "results", "closed")
    complaints = door.complaints(log, "5.0.0")
    assert len(complaints) == 1 and "eval_accuracy" in complaints[0] and "0.720" in complaints[0], complaints
    evaluations = [event for event in read_events(log) if event.key == "eval_accuracy"]
    assert [event.metadata["samples_count"] for event in evaluations] == [8]
    assert evaluations[0].metadata["epoch_num"] == 8
