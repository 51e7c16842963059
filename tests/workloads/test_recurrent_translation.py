"""GNMT as a workload: layouts, continuing where it was, evaluation, its schedule; and through the door."""

import functools

import jax
import numpy as np
import pytest

from configs import gnmt as numbers
from loadgen_py import TestMode, TestScenario
from mlperf_jax.inference.settings import Asked, Timing, make_settings
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.events import read_events
from mlperf_jax.workloads.translation import GNMTTranslation
from tests import door, serving, toys_translation
from tests.agreement import DEVICES, Layouts, train
from tests.toys_translation import RecurrentWordByWord

TOY = ("--workload=tests.toys_translation:RecurrentWordByWord", "--platform=cpu", "--system=here")


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory):
    """A closed run of a model of width 32, and the toy trained until it translates something, by folder."""
    closed, toy = (tmp_path_factory.mktemp(name) for name in ("closed", "toy"))
    cuts = (
        *("model.width=32", "model.num_layers=2", "batch_size=2", "eval_batch_size=4"),
        *("decode.source_lengths=(32,)", "decode.extra_length=5", "max_epochs=1"),
    )
    started = {
        closed: door.start_closed(closed, "gnmt", 24, *cuts),
        toy: door.start(
            door.ROOT,
            *TOY,
            f"--results_dir={toy}",
            "--seed=2",
            "--config.max_epochs=12",
            "--config.eval_every_epochs=12",
            "--visualize=2",
            **door.LIGHTLY,
        ),
    }
    yield started
    for process in started.values():
        process.kill()


@pytest.fixture(scope="module")
def runs(running):
    """How they ended."""
    return {folder: door.finish(process) for folder, process in running.items()}


SMALL = functools.cache(lambda: toys_translation.make("float64", RecurrentWordByWord, model__num_layers=2))
LAYOUTS = Layouts(lambda strategy: SMALL())
engine_of = LAYOUTS.engine


@pytest.mark.parametrize("strategy", ["dp", "zero1", "fsdp", "tp", "fsdp_tp"])
def test_ten_steps_agree_with_one_device(strategy):
    """With dropout: its masks do not depend on the layout."""
    state = LAYOUTS.agree(strategy)
    losses, _ = LAYOUTS.trained(None)
    assert losses[-1] < losses[0]
    kernel = state["params"]["decoder"][1]["directions"][0]["kernel"]
    split = {"tp": 2, "fsdp": DEVICES, "fsdp_tp": DEVICES}.get(strategy, 1)
    assert kernel.addressable_shards[0].data.size * split == kernel.size


def test_it_continues_where_it_was():
    """Eight steps, and five and three more from what the checkpoint of the fifth holds: the same bits."""
    engine = engine_of(None)
    with jax.enable_x64(True):
        losses, whole = train(engine, engine.init(3), 0, 8)
        first, state = train(engine, engine.init(3), 0, 5)
        rest, state = train(engine, jax.device_put(jax.device_get(state)), 5, 8)
    np.testing.assert_array_equal(losses, [*first, *rest])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_schedule_and_hyperparameters_are_the_references():
    """Against WarmupMultiStepLR written out, of 8 epochs and of a submission's numbers."""
    workload = GNMTTranslation(
        numbers.get_config("closed"), POLICIES["float32"], data_dir=None, synthetic=True
    )
    found = workload.hyperparameters()
    total = 8 * 800_000 // 32
    remain = int(0.666 * total)
    assert found["opt_learning_rate_remain_steps"] == remain
    assert found["opt_learning_rate_decay_interval"] == (total - remain) // 4
    assert (found["opt_name"], found["max_sequence_length"]) == ("adam", 75)

    def reference(count):
        if count <= 200:
            return 1e-3 * 0.01 ** ((200 - count) / 200)
        falls = (count - remain) // ((total - remain) // 4) + 1 if count >= remain else 0
        return 1e-3 * 0.5 ** min(falls, 4)

    steps = [0, 99, 198, 199, 200, remain - 2, remain - 1, remain + 20_000, total - 2, total, 2 * total]
    rates = [float(workload.schedule()(step)) for step in steps]
    np.testing.assert_allclose(rates, [reference(step + 1) for step in steps], rtol=1e-5)


def test_server_is_bound_as_in_the_rounds_that_had_it():
    settings = make_settings(
        TestScenario.Server,
        TestMode.PerformanceOnly,
        numbers.get_config("closed").inference,
        Asked(qps=50),
        [Timing(1.0, {1: 1e-3})],
        1,
    )
    assert settings.server_target_latency_ns == 250_000_000
    assert settings.server_target_latency_percentile == 0.97


def test_evaluation_translates_every_sentence_once_whatever_the_batches():
    """By buckets on eight devices, and one by one through `answer`: the same translations, the same BLEU."""
    engine = engine_of("dp")
    workload, indices = engine.workload, np.arange(engine.workload.num_eval)
    with jax.enable_x64(True):
        engine.compile("translate_8", "translate_16")
        start = jax.device_put(LAYOUTS.start, jax.tree.map(lambda x: x.sharding, engine.state))
        _, state = train(engine, start, 0, 60)
        quality = workload.evaluate(engine, state)["quality"]
        variables = jax.device_put(jax.device_get(workload.served_state(state)), jax.devices()[0])
        answers = np.asarray(jax.jit(workload.predict)(variables, workload.read_samples(indices)))
    assert 0 < quality < 1
    logged = [answer.tobytes() for answer in answers]
    assert workload.answered_figures(indices, logged)["quality"] == pytest.approx(quality, abs=1e-12)


def test_closed_on_made_up_data_lacks_nothing_but_the_target(runs):
    """MLPerf's vocabulary and rows; GNMT stood in the rounds up to v0.7."""
    (closed, ended), _ = runs.items()
    assert ended.returncode == 1, ended.stderr
    assert "Fake WMT16 en-de (random words, not MLPerf's data)" in ended.stdout
    (log,) = door.logs(closed / "results", "closed")
    complaints = door.complaints(log, "0.7.0")
    assert len(complaints) == 1 and "eval_accuracy" in complaints[0] and "0.240" in complaints[0], complaints
    events = {event.key: event for event in read_events(log)}
    assert events["max_sequence_length"].value == 75 and events["opt_learning_rate_warmup_steps"].value >= 0


def test_the_trained_model_serves_in_four_scenarios(runs):
    _, (results, ended) = runs.items()
    assert ended.returncode == 1, ended.stderr  # it has no target that can be reached
    assert serving.serve_in_all_scenarios(TOY, results) > 0
