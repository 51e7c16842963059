"""BERT's answers: a trunk that was pre-trained is tuned, judged and served, each by its own command."""

import functools

import jax
import numpy as np
import pytest

from configs import bert_qa
from loadgen_py import TestMode, TestScenario
from mlperf_jax import registry
from mlperf_jax.errors import UserError
from mlperf_jax.inference.settings import Asked, Timing, make_settings
from mlperf_jax.judging import official
from mlperf_jax.metrics import answers
from mlperf_jax.parallel.mesh import single_device_layout
from mlperf_jax.results.folders import read_json
from mlperf_jax.training.checkpoints import Checkpoints
from mlperf_jax.training.engine import Engine
from tests import door, toys
from tests.agreement import layout_of
from tests.toys_bert import BATCH, LENGTH, SmallAnswers, SmallBert, questions

STEPS = 10
ANSWERS = "--workload=tests.toys_bert:SmallAnswers"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Results of the small pre-training and of the tuning that began with it."""
    results = tmp_path_factory.mktemp("answers")
    common = ("--platform=cpu", "--system=here", "--seed=1", f"--results_dir={results}")
    ended = [
        door.run(door.ROOT, f"--workload=tests.toys_bert:{name}", *common, *more, **door.LIGHTLY)
        for name, *more in (("SmallBert", "--config.data.packing=0.0"), ("SmallAnswers", "--visualize=2"))
    ]
    # Their targets are out of reach.
    assert all(one.returncode == 1 and "not reached" in one.stdout for one in ended), [
        one.stderr for one in ended
    ]
    return results


@functools.cache
def trained(strategy):
    """Losses of ten steps, and the last state."""
    with jax.enable_x64(True):
        engine = Engine(toys.make(SmallAnswers, "float64", model__num_layers=1), layout_of(strategy))
        engine.compile("init", "train_step")
        state, losses = engine.init(1), []
        batches = engine.workload.dataset.train_batches(
            seed=1, batch_size=BATCH, start_step=0, rows=slice(0, BATCH)
        )
        for _ in range(STEPS):
            state, metrics = engine.train(state, engine.place(next(batches), engine.batch), steps=1)
            losses.append(float(metrics["loss"]))
        batches.close()
        return np.array(losses), jax.device_get(state)


@pytest.mark.parametrize("strategy", ["fsdp_tp"])
def test_ten_steps_agree_with_one_device(strategy):
    """The trunk's other layouts are pre-training's to test."""
    expected_losses, expected = trained(None)
    losses, state = trained(strategy)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    assert losses[-1] < losses[0]
    for part in ("params", "opt_state"):
        found = jax.tree.leaves(state[part])
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(expected[part]), found, strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            # A softmax does not see what all keys, or all places, have in common: some biases move by rounding alone.
            least = 1e-3 if "['bias']" in jax.tree_util.keystr(path) else 1e-30
            assert np.abs(a - b).max() <= 1e-9 * max(np.abs(a).max(), least), path


def test_f1_is_that_of_answers_found_one_by_one():
    engine = Engine(toys.make(SmallAnswers), single_device_layout())
    engine.compile("init", "span_logits")
    state, workload = engine.init(1), engine.workload
    found = workload.evaluate(engine, state)
    indices = np.arange(workload.num_samples)
    assert workload.num_samples > BATCH / 2 and workload.num_samples % BATCH  # the last batch is not full
    logits = np.asarray(
        jax.jit(workload.predict)(workload.served_state(state), workload.read_samples(indices))
    )
    assert logits.shape == (len(indices), LENGTH, 2) and logits.dtype == np.float32
    dataset, scores = questions(), []
    for number, question in enumerate(dataset.questions):
        rows = np.flatnonzero(dataset.read_eval(indices, ["question"])["question"] == number)
        told = dataset.best_answers(rows, logits[rows])[number]
        scores.append(answers.f1(told, [text for text, _ in question.answers]))
    assert found["count"] == 12 and found["quality"] == pytest.approx(np.mean(scores))
    logged = [row.tobytes() for row in logits]
    assert workload.answered_figures(indices, logged)["quality"] == pytest.approx(found["quality"])
    with pytest.raises(ValueError):
        workload.answered_figures(indices, [logged[0][:-1], *logged[1:]])


def test_tuning_begins_with_the_trunk_that_pre_training_left(tuned):
    engine = Engine(toys.make(SmallAnswers), single_device_layout())
    engine.compile("init")
    workload = engine.workload
    workload.look_for_start(tuned / "mini")
    begun = workload.initial_state(engine, seed=3)
    pretraining = Engine(toys.make(SmallBert), single_device_layout())
    run = tuned / "mini" / "runs" / "here" / "bert" / "run_0"
    params = Checkpoints(run / "checkpoints", read_only=True).restore_part(
        {"params": pretraining.state["params"]}
    )["params"]
    for a, b in zip(
        jax.tree.leaves(begun["params"]["encoder"]), jax.tree.leaves(params["encoder"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert np.asarray(begun["params"]["span"]["kernel"]).any()


def test_questions_and_answers_are_drawn(tuned):
    drawn = sorted((tuned / "mini/runs/here/bert_qa/run_0/pictures").iterdir())
    assert [path.name for path in drawn] == ["000.png", "001.png"]


def test_without_a_trunk_it_says_how_to_train_one(tmp_path):
    workload = toys.make(SmallAnswers)
    with pytest.raises(UserError, match=r"no trained model of bert in .* --workload=bert"):
        workload.look_for_start(tmp_path)
    workload = toys.make(SmallAnswers, start_weights="nowhere.index")
    with pytest.raises(UserError, match=r"There is no .*nowhere.index; put published weights"):
        workload.look_for_start(tmp_path)


def test_what_is_served_of_bert_are_its_answers():
    assert registry.served("bert") == "bert_qa" and registry.served("resnet50") == "resnet50"
    config = bert_qa.get_config("closed")
    settings = make_settings(
        TestScenario.Server,
        TestMode.PerformanceOnly,
        config.inference,
        Asked(qps=50),
        [Timing(1.0, {1: 1e-3})],
        1,
    )
    assert settings.server_target_latency_ns == 130_000_000
    assert config.inference.published_quality == config.target == 0.90874


def test_the_tuned_model_serves_in_four_scenarios(tuned):
    trained = read_json(tuned / "mini/runs/here/bert_qa/run_0/status.json")["quality"]
    ended = door.run(
        door.ROOT,
        ANSWERS,
        "--platform=cpu",
        "--system=here",
        f"--results_dir={tuned}",
        "--scenario=all",
        "--qps=300",
        "--max_latency=2",
        "--time=0.3",
        **door.LIGHTLY,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    root = tuned / "mini/inference/here/tests.toys_bert.SmallAnswers"
    for scenario in TestScenario.__members__:
        performance, accuracy = (
            read_json(root / scenario / kind / "result.json") for kind in ("performance/run_1", "accuracy")
        )
        assert performance["valid"] and performance["passed"] and accuracy["passed"]
        assert accuracy["metric"] == "F1" and accuracy["quality"] == pytest.approx(trained, abs=1e-6)


def test_a_closed_run_on_made_up_questions(tmp_path):
    """There are no rules of this benchmark for a checker: as BERT's, in the open division, it has what is asked of all."""
    cuts = ("model.width=16", "model.mlp_width=16", "model.num_heads=2", "model.num_layers=1", "batch_size=8")
    process = door.start_closed(tmp_path, "bert_qa", 16, *cuts, "eval_batch_size=2", "max_epochs=1")
    ended = door.finish(process)
    assert ended.returncode == 1, ended.stderr
    assert "made-up questions, not MLPerf's data" in ended.stdout
    (log,) = door.logs(tmp_path / "results", "closed")
    assert official.find_ruleset("bert_qa", "local") is None
    assert door.complaints_as(log, "bert", "5.0.0") == []
