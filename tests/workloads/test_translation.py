"""The translation workload: its loss, layouts and evaluation, continuing where it was; and through the door."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen_py import TestScenario
from mlperf_jax import prepare
from mlperf_jax.metrics.bleu import bleu
from mlperf_jax.results.events import read_events
from mlperf_jax.results.folders import read_json
from mlperf_jax.workloads.translation import smoothed_cross_entropy
from tests import door, toys_translation
from tests.agreement import DEVICES, Layouts, train

TOY = ("--workload=tests.toys_translation:WordByWord", "--platform=cpu", "--system=here")


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory):
    """A closed run of a model cut to a layer of width 64, and the toy trained until it translates something.

    They start before the first test, beside which they have a core of their own; by folder.
    """
    closed, toy = (tmp_path_factory.mktemp(name) for name in ("closed", "toy"))
    assert prepare.main(["--workload=transformer", "--fake=24", f"--data_dir={closed}"]) == 0
    started = {
        closed: door.start(
            closed,
            "--workload=transformer",
            "--platform=cpu",
            "--preset=closed",
            f"--data_dir={closed}",
            "--seed=1",
            "--config.data.fake=24",
            "--config.model.width=64",
            "--config.model.mlp_width=64",
            "--config.model.num_layers=1",
            "--config.batch_size=2",
            "--config.eval_batch_size=4",
            "--config.decode.source_lengths=(32,)",
            "--config.max_epochs=1",
            **door.LIGHTLY,
        ),
        toy: door.start(
            door.ROOT, *TOY, f"--results_dir={toy}", "--seed=2", "--config.max_epochs=8", **door.LIGHTLY
        ),
    }
    yield started
    for process in started.values():
        process.kill()


@pytest.fixture(scope="module")
def runs(running):
    """How they ended."""
    return {folder: door.finish(process) for folder, process in running.items()}


@given(seed=st.integers(0, 10**6), vocab_size=st.sampled_from((2, 3, 17, 40)), smoothing=st.floats(0.0, 0.9))
@settings(max_examples=50, deadline=None)
def test_the_loss_is_the_references(seed, vocab_size, smoothing):
    """Soft targets written out, as padded_cross_entropy_loss has them."""
    random = np.random.default_rng(seed)
    logits, labels = 5 * random.normal(size=(6, vocab_size)), random.integers(vocab_size, size=6)
    low = smoothing / (vocab_size - 1)
    soft = np.full_like(logits, low)
    soft[np.arange(6), labels] = 1 - smoothing
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    least = -((1 - smoothing) * np.log(1 - smoothing) + (vocab_size - 1) * low * np.log(low + 1e-20))
    with jax.enable_x64(True):
        ours = smoothed_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(ours, -(soft * log_probs).sum(1) - least, rtol=1e-9, atol=1e-9)


LAYOUTS = Layouts(lambda strategy: toys_translation.make("float64"))
engine_of = LAYOUTS.engine


@pytest.mark.parametrize("strategy", ["dp", "zero1", "fsdp", "tp", "fsdp_tp", "sequence"])
def test_ten_steps_agree_with_one_device(strategy):
    """With dropout: its masks do not depend on the layout."""
    state = LAYOUTS.agree(strategy)
    losses, _ = LAYOUTS.trained(None)
    assert losses[-1] < losses[0]
    layers = state["params"]["decoder"]["attention"]["query_key_value"]
    split = {"tp": 2, "sequence": 2, "fsdp": DEVICES, "fsdp_tp": DEVICES}.get(strategy, 1)
    assert layers.addressable_shards[0].data.size * split == layers.size


def test_sequence_parallelism_splits_activations_by_position():
    text = {name: engine_of(name).compiled("train_step").as_text() for name in ("tp", "sequence")}
    # [B / 2, L / 2, D] on each device, instead of [B / 2, L, D].
    assert "f64[8,8,32]" in text["sequence"]
    assert text["sequence"].count("f64[8,16,32]") < text["tp"].count("f64[8,16,32]")


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
    assert answers.dtype == np.int32 and answers.shape == (workload.num_eval, 18)
    logged = [answer.tobytes() for answer in answers]
    assert workload.answered_figures(indices, logged)["quality"] == pytest.approx(quality, abs=1e-12)
    references = workload.dataset.read_eval(indices, ("target",))["target"]
    decode = workload.dataset.vocabulary.decode
    assert quality == pytest.approx(
        bleu([decode(a.tolist()) for a in answers], [decode(r.tolist()) for r in references])
    )
    with pytest.raises(ValueError):
        workload.answered_figures(indices[:1], [b"abc"])["quality"]


def test_hyperparameters_are_those_of_the_ruleset():
    from configs.transformer import get_config
    from mlperf_jax.precision import POLICIES
    from mlperf_jax.workloads.translation import TransformerTranslation

    workload = TransformerTranslation(get_config("closed"), POLICIES["float32"], data_dir=None)
    found = workload.hyperparameters()
    assert found["opt_adam_epsilon"] == 1e-9 and found["opt_name"] in ("adam", "lazy_adam")
    assert found["max_sequence_length"] == (256, {"method": "discard"})
    # By the reference: 2 / sqrt(1024) / sqrt(16000) at the end of the warm-up, half of it half-way and at 4 x 16,000.
    peak = 2 / np.sqrt(1024 * 16000)
    rates = [float(workload.schedule()(step)) for step in (0, 8000, 16000, 64000)]
    np.testing.assert_allclose(rates, [0, peak / 2, peak, peak / 2], rtol=1e-6)


# Through the door.


def test_closed_on_made_up_data_lacks_nothing_but_the_target(runs):
    """MLPerf's vocabulary and rows of 256 tokens."""
    (closed, ended), _ = runs.items()
    assert ended.returncode == 1, ended.stderr
    assert (
        "Fake WMT17 en-de (random words, not MLPerf's data)" in ended.stdout and "not reached" in ended.stdout
    )
    (log,) = door.logs(closed / "results", "closed")
    complaints = door.complaints(log, "0.7.0")
    assert len(complaints) == 1 and "eval_accuracy" in complaints[0] and "0.2500" in complaints[0], complaints
    events = {event.key: event for event in read_events(log)}
    assert events["max_sequence_length"].value == 256
    assert events["max_sequence_length"].metadata["method"] == "discard"


def test_padding_is_no_part_of_an_answer_that_was_cut_at_its_limit():
    workload = toys_translation.make("float32")
    answers = [np.pad(np.full(6, 8, np.int32), (0, zeros)) for zeros in (0, 2, 10)]
    assert len({workload._text(answer) for answer in answers}) == 1


def test_the_trained_model_serves_in_four_scenarios(runs):
    _, (results, ended) = runs.items()
    assert ended.returncode == 1, ended.stderr  # it has no target that can be reached
    trained = read_json(door.run_folder(results) / "status.json")["quality"]
    assert trained > 0
    ended = door.run(
        door.ROOT,
        *TOY,
        f"--results_dir={results}",
        "--scenario=all",
        "--qps=600",
        "--max_latency=2",
        "--time=0.3",
        **door.LIGHTLY,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    root = results / "mini/inference/here/tests.toys_translation.WordByWord"
    for scenario in TestScenario.__members__:
        performance, accuracy = (
            read_json(root / scenario / kind / "result.json") for kind in ("performance/run_1", "accuracy")
        )
        assert performance["valid"] and performance["passed"] and accuracy["passed"]
        assert accuracy["metric"] == "BLEU" and accuracy["quality"] == pytest.approx(trained, abs=1e-9)
