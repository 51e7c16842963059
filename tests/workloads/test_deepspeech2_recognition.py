"""DeepSpeech2 as a workload: layouts agree, lengths do not matter, answers are what they claim, runs through the door.

Two processes are RNN-T's, the other recogniser of the task.
"""

import functools
import re

import jax
import numpy as np
import pytest

from configs import deepspeech2 as numbers
from mlperf_jax.decoding import ctc_search
from mlperf_jax.judging import official
from mlperf_jax.metrics.word_error_rate import mean_word_error_rate
from mlperf_jax.parallel.mesh import single_device_layout
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.events import read_events
from mlperf_jax.speech.ctc import ctc_loss
from mlperf_jax.training.engine import Engine
from mlperf_jax.workloads.speech_recognition import DeepSpeech2Recognition
from tests import door, serving, toys, toys_speech
from tests.agreement import DEVICES, Layouts
from tests.toys_speech import SmallDeepSpeech2

TOY = ("--workload=tests.toys_speech:SmallDeepSpeech2", "--platform=cpu", "--system=here")


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory):
    """A closed run of width 32, and the toy trained until it hears something, by folder."""
    closed, toy = (tmp_path_factory.mktemp(name) for name in ("closed", "toy"))
    cuts = (
        *(
            "model.width=32",
            "model.channels=(2,2)",
            "model.num_layers=2",
            "batch_size=2",
            "eval_batch_size=2",
        ),
        *("data.seconds=(6.0,)", "max_epochs=1"),
    )
    train = (*TOY, f"--results_dir={toy}", "--seed=2", "--config.max_epochs=30", "--visualize=2")
    started = {
        closed: door.start_closed(closed, "deepspeech2", 8, *cuts),
        toy: door.start(door.ROOT, *train, "--config.eval_every_epochs=15", **door.LIGHTLY),
    }
    yield started
    for process in started.values():
        process.kill()


# As RNN-T, the other recogniser, it has another optimizer and counts, and lacks what is RNN-T's own: LAMB, SpecAugment, an
# average, a limit of symbols.
AS_RNNT = (
    *("opt_name", "opt_weight_decay", "opt_gradient_clip_norm", "eval_samples", "eval_accuracy"),
    *("opt_lamb_epsilon", "opt_lamb_beta_1", "opt_lamb_beta_2", "opt_lamb_learning_rate_min"),
    *("opt_lamb_learning_rate_decay_poly_power", "opt_lamb_learning_rate_hold_epochs"),
    *(
        "opt_learning_rate_warmup_epochs",
        "opt_learning_rate_alt_decay_func",
        "opt_learning_rate_alt_warmup_func",
    ),
    *("data_train_max_duration", "data_train_num_buckets"),
    *(f"data_spec_augment_{kind}_{what}" for kind in ("freq", "time") for what in ("n", "min", "max")),
    *("model_eval_ema_factor", "eval_max_prediction_symbols"),
)


@pytest.fixture(scope="module")
def runs(running):
    """How they ended."""
    return {folder: door.finish(process) for folder, process in running.items()}


@functools.cache
def by_the_closed_optimizer():
    """With Nesterov's momentum, clipping and tempos; by Adam a gradient that is rounding would be its sign."""
    config = SmallDeepSpeech2.get_config("mini")
    config.optimizer = numbers.get_config("closed").optimizer
    config.optimizer.base_lr = 1e-3
    config.data.seconds = toys_speech.SECONDS[-1:]
    config.model.windows = ((3, 9), (3, 5))
    config.batch_size = 8
    return SmallDeepSpeech2(config, POLICIES["float64"], data_dir=None)


LAYOUTS = Layouts(lambda strategy: by_the_closed_optimizer(), bucket="8000")


@pytest.mark.parametrize("strategy", ["dp", "zero1", "fsdp", "tp", "fsdp_tp"])
def test_ten_steps_agree_with_one_device(strategy):
    """Of a bias before a norm the gradient is rounding, which the floor leaves out."""
    state = LAYOUTS.agree(strategy, floor=1e-3)
    losses, _ = LAYOUTS.trained(None)
    assert losses[-1] < losses[0]
    kernel = state["params"]["layers"][0]["directions"][0]["kernel"]
    split = {"fsdp": DEVICES, "tp": 2, "fsdp_tp": DEVICES}.get(strategy, 1)
    assert kernel.addressable_shards[0].data.size * split == kernel.size


@pytest.fixture(scope="module")
def evaluated(runs):
    """An engine, the toy's state and its figures."""
    _, (results, ended) = runs.items()
    assert ended.returncode == 1, ended.stderr
    engine = Engine(toys.make(SmallDeepSpeech2), single_device_layout())
    engine.compile(*(name for name in engine.programs if name.startswith("transcribe")))
    state = serving.state_of(engine, results)
    return engine, state, engine.workload.evaluate(engine, state)


def test_the_figure_is_that_of_recordings_heard_one_by_one(evaluated):
    """Each alone in the longest row, by batches of its own length, and as logged answers."""
    engine, state, figures = evaluated
    workload, evaluation = engine.workload, toys_speech.dataset().evaluation
    longest = toys_speech.dataset().buckets[-1].samples
    served = workload.served_state(state)
    predict = jax.jit(workload.predict)
    indices = np.arange(workload.num_samples)
    alone = []
    for index in indices:
        inputs = {
            "samples": evaluation.samples(np.array([index]), longest),
            "num_samples": evaluation.num_samples[[index]].astype(np.int32),
        }
        alone.append(workload.logged_answer(index, np.asarray(predict(served, inputs))[0]))
    buckets, answers = workload.sample_buckets(indices), {}
    for bucket, spec in workload.sample_specs().items():
        members = np.flatnonzero(np.array(buckets) == bucket)
        inputs = workload.read_samples(members)
        for name, (shape, dtype) in spec.items():
            assert inputs[name].shape == (len(members), *shape) and inputs[name].dtype == dtype
        rows = np.asarray(predict(served, inputs))
        answers |= {n: workload.logged_answer(n, row) for n, row in zip(members.tolist(), rows, strict=True)}
    logged = [answers[n] for n in indices.tolist()]
    assert logged == alone and len(set(logged)) > 3
    references = [evaluation.text(n) for n in indices.tolist()]
    expected = mean_word_error_rate([answer.decode() for answer in alone], references)
    assert figures["quality"] == pytest.approx(expected)
    assert workload.answered_figures(indices, logged)["quality"] == pytest.approx(expected)


def test_beams_find_likelier_texts(evaluated):
    """By the sum over all alignments of what was found with them and without."""
    engine, state, _ = evaluated
    workload = toys.make(SmallDeepSpeech2, decode__beams=4)
    inputs = workload.read_samples(np.arange(workload.num_samples))

    def costs(served):
        model = workload.model(served)
        logits, frames = workload._heard(model, inputs["samples"], inputs["num_samples"], None)
        found = [ctc_search.greedy(logits, frames), workload.answer(model, inputs)]
        return [ctc_loss(logits, frames, text, (text > 0).sum(1)) for text in found]

    greedy, beams = jax.jit(costs)(workload.served_state(state))
    assert (beams <= greedy + 1e-3).mean() > 0.9 and beams.sum() < greedy.sum()


def test_schedule_and_hyperparameters_are_the_references():
    workload = DeepSpeech2Recognition(
        numbers.get_config("closed"), POLICIES["float32"], data_dir=None, synthetic=True
    )
    steps_per_epoch = 281_241 / 8
    rates = [float(workload.schedule()(step)) for step in (0, 35_155, 35_156, 4 * 35_156, 400_000)]
    epochs = [int(step / steps_per_epoch) for step in (0, 35_155, 35_156, 4 * 35_156, 400_000)]
    np.testing.assert_allclose(rates, [1e-4 / 1.1**epoch for epoch in epochs], rtol=1e-5)
    found = workload.hyperparameters()
    assert (found["opt_name"], found["opt_momentum"], found["opt_gradient_clip_norm"]) == ("sgd", 0.9, 400.0)
    (goal,) = workload.goals
    assert goal.reached(0.23) and not goal.reached(0.2301)


def test_closed_on_made_up_data_lacks_only_what_is_another_benchmarks(runs):
    """There are no rules of this benchmark for a checker; what is asked of all of them is there."""
    (folder, ended), _ = runs.items()
    assert ended.returncode in (0, 1), ended.stderr
    assert "Fake LibriSpeech (noise, not MLPerf's data)" in ended.stdout
    (log,) = door.logs(folder / "results", "closed")
    assert official.find_ruleset("deepspeech2", "local") is None
    events = {event.key: event.value for event in read_events(log)}
    assert events["opt_learning_rate_decay_factor"] == 1.1 and events["global_batch_size"] == 2
    said = door.complaints_as(log, "rnnt", "3.1.0")
    assert not any("data_speed_perturbaton" in line for line in said)
    keys = [next((key for key in AS_RNNT if re.search(rf"\b{key}\b", line)), line) for line in said]
    assert sorted(keys) == sorted(AS_RNNT)


def test_the_trained_model_serves_in_four_scenarios(runs):
    _, (results, ended) = runs.items()
    assert ended.returncode == 1, ended.stderr  # it has no target that can be reached
    assert serving.serve_in_all_scenarios(TOY, results) < 0.9
