"""RNN-T as a workload: layouts agree, lengths do not matter, numbers are the references', runs through the door."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import rnnt as numbers
from mlperf_jax import config as configs
from mlperf_jax.errors import UserError
from mlperf_jax.metrics.word_error_rate import word_error_rate
from mlperf_jax.parallel.mesh import single_device_layout
from mlperf_jax.precision import POLICIES
from mlperf_jax.training.engine import Engine, named
from mlperf_jax.weights import rnnt as weights
from mlperf_jax.workloads.rnnt_recognition import RNNTRecognition
from tests import door, serving, toys
from tests.agreement import DEVICES, Layouts
from tests.toys_speech import SmallDeepSpeech2, SmallRNNT

TOY = ("--workload=tests.toys_speech:SmallRNNT", "--platform=cpu", "--system=here")


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory):
    """A closed run of width 16, and the toy trained until it hears something, by folder."""
    closed, toy = (tmp_path_factory.mktemp(name) for name in ("closed", "toy"))
    cuts = (
        *("model.encoder_width=16", "model.prediction_width=8", "model.joint_width=8", "batch_size=2"),
        *("eval_batch_size=2", "data.seconds=(6.0,)", "max_epochs=1"),
        *("model.layers_before=1", "model.layers_after=2", "model.prediction_layers=1"),
    )
    train = (*TOY, f"--results_dir={toy}", "--seed=2", "--config.batch_size=4", "--visualize=2")
    started = {
        closed: door.start_closed(closed, "rnnt", 4, *cuts),
        toy: door.start(
            door.ROOT, *train, "--config.max_epochs=3", "--config.eval_every_epochs=3", **door.LIGHTLY
        ),
    }
    yield started
    for process in started.values():
        process.kill()


@pytest.fixture(scope="module")
def runs(running):
    """How they ended."""
    return {folder: door.finish(process) for folder, process in running.items()}


BUCKET = "8000"
TRANSCRIBE = named("transcribe", BUCKET)
SMALL = functools.cache(lambda: toys.make(SmallRNNT, "float64", batch_size=DEVICES))
LAYOUTS = Layouts(lambda strategy: SMALL(), bucket=BUCKET)


@pytest.mark.parametrize("strategy", ["dp", "zero1", "fsdp", "tp", "fsdp_tp"])
def test_ten_steps_agree_with_one_device(strategy):
    """With dropout, noise, masks and changes of speed: none of them depends on the layout."""
    LAYOUTS.agree(strategy, floor=1e-6)
    losses, _ = LAYOUTS.trained(None)
    assert losses[-1] < losses[0]


def test_the_figure_is_that_of_recordings_heard_one_by_one(runs):
    """Each alone in a longer row, and in batches as evaluation has them: the same answers, the same figure."""
    _, (results, ended) = runs.items()
    assert ended.returncode == 1, ended.stderr
    engine = Engine(toys.make(SmallRNNT), single_device_layout())
    engine.compile(TRANSCRIBE)
    workload, dataset, state = engine.workload, engine.workload.dataset, serving.state_of(engine, results)
    served, predict = workload.served_state(state), jax.jit(workload.predict)
    alone = []
    for index in np.arange(workload.num_samples):
        inputs = {
            "samples": dataset.evaluation.samples(np.array([index]), int(BUCKET) + 960),
            "num_samples": dataset.evaluation.num_samples[[index]].astype(np.int32),
        }
        alone.append(workload.logged_answer(index, np.asarray(predict(served, inputs))[0]))
    assert len(set(alone)) > 3
    references = [dataset.evaluation.text(n) for n in range(len(alone))]
    expected = word_error_rate([answer.decode() for answer in alone], references)
    assert workload.evaluate(engine, state)["quality"] == pytest.approx(expected)
    assert workload.answered_figures(np.arange(len(alone)), alone)["quality"] == pytest.approx(expected)


def closed(*overrides):
    config = configs.resolve(numbers.get_config("closed"), overrides)
    return RNNTRecognition(config, POLICIES["float32"], data_dir=None, synthetic=True)


def test_the_schedule_is_the_references():
    """Against lr_policy written out, of the batch of 1,024."""
    workload = closed()
    per_epoch = 281_241 / 1024

    def reference(step, epoch):  # both counted from 1
        if step < 3 * per_epoch:
            share = (step + 1) / (3 * per_epoch + 1)
        elif step < 20 * per_epoch:
            share = 1.0
        else:
            share = 0.9037 ** (epoch - 20)
        return max(share * 0.007447, 1e-5)

    steps = [0, 100, 822, 823, 824, 5491, 5492, 5493, 5768, 8000, 16_000, 30_000]
    expected = [reference(step + 1, math.floor(step / per_epoch) + 1) for step in steps]
    np.testing.assert_allclose([float(workload.schedule()(s)) for s in steps], expected, rtol=1e-5)


def test_every_parameter_decays_as_lamb_has_it():
    """Two steps against NumPy, biases among them: none is spared, as in the reference's FusedLAMB."""
    workload = closed()
    random = np.random.default_rng(0)
    params = {"kernel": random.normal(size=(4, 3)), "bias": random.normal(size=3)}
    with jax.enable_x64(True):
        optimizer = workload.make_optimizer(params)
        state, ours = optimizer.init(params), params
        mean, square = ({name: np.zeros_like(x) for name, x in params.items()} for _ in range(2))
        expected = {name: x.copy() for name, x in params.items()}
        for step in range(2):
            grads = {name: random.normal(size=x.shape) for name, x in params.items()}
            updates, state = optimizer.update(grads, state, ours)
            ours = jax.tree.map(jnp.add, ours, updates)
            norm = math.sqrt(sum(np.square(g).sum() for g in grads.values()))
            rate = float(workload.schedule()(step))
            for name, w in expected.items():
                g = grads[name] / max(norm, 1)
                mean[name] = 0.9 * mean[name] + 0.1 * g
                square[name] = 0.999 * square[name] + 0.001 * g * g
                u = mean[name] / (1 - 0.9 ** (step + 1))
                u = u / (np.sqrt(square[name] / (1 - 0.999 ** (step + 1))) + 1e-9) + 1e-3 * w
                expected[name] = w - rate * np.linalg.norm(w) / np.linalg.norm(u) * u
    for name, w in expected.items():
        np.testing.assert_allclose(ours[name], w, rtol=1e-6)


def test_numbers_are_those_of_the_reference_points():
    found = closed().hyperparameters()
    assert (found["opt_base_learning_rate"], found["model_eval_ema_factor"]) == (0.007447, 0.992)
    assert found["model_weights_initialization_scale"] == 0.5
    for batch, point in numbers.get_config("closed").reference_points.items():
        assert int(batch) == point.batch_size
    large = closed("--config.reference_point=3072")
    assert (large.batch_size, large.model_config.init_scale, large.model_config.classes) == (3072, 0.35, 1024)
    (goal,) = closed().goals
    assert goal.reached(0.058) and not goal.reached(0.0581)


def torch_names(config, of_characters):
    """A state dict of random numbers under the names of a published checkpoint."""
    random, found = np.random.default_rng(0), {}
    width, predicted, joint = config["encoder_width"], config["prediction_width"], config["joint_width"]

    def put(name, *shape):
        found[name] = random.normal(size=shape).astype(np.float32)

    for name, first, size, count in (
        ("encoder.pre_rnn", config["features"], width, config["layers_before"]),
        ("encoder.post_rnn", 2 * width, width, config["layers_after"]),
        ("prediction.dec_rnn", predicted, predicted, config["prediction_layers"]),
    ):
        for n in range(count):
            for kind, features in (("ih", size if n else first), ("hh", size)):
                put(f"{name}.lstm.weight_{kind}_l{n}", 4 * size, features)
                put(f"{name}.lstm.bias_{kind}_l{n}", 4 * size)
    put("prediction.embed.weight", config["classes"] - 1, predicted)
    layers = {"joint_enc": (joint, width), "joint_pred": (joint, predicted)}
    last = "joint_net.2"
    if of_characters:
        layers, last = {"joint_net.0": (joint, width + predicted)}, "joint_net.3"
        put("audio_preprocessor.featurizer.window", 320)
        put("audio_preprocessor.featurizer.fb", 1, 80, 257)
    for name, shape in (layers | {last: (config["classes"], joint)}).items():
        put(f"{name}.weight", *shape)
        put(f"{name}.bias", shape[0])
    return found


@pytest.mark.parametrize("of_characters", [False, True])
def test_published_weights_are_taken_by_name(of_characters):
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    from flax import nnx

    from models.rnnt import RNNT, RNNTConfig

    sizes = dict(
        features=6, encoder_width=8, layers_before=1, layers_after=2, prediction_layers=1, joint_width=7
    )
    sizes |= dict(classes=29, prediction_width=320) if of_characters else dict(classes=9, prediction_width=5)
    tensors = torch_names(sizes | {"stack": 2}, of_characters)
    state, config = weights.from_state_dict(tensors, RNNTConfig(**sizes))
    assert config.get("data.symbols", "pieces") == ("characters" if of_characters else "pieces")
    abstract = nnx.eval_shape(lambda: RNNT(RNNTConfig(**sizes), policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    graph, params = nnx.split(abstract, nnx.Param)
    shapes = jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(params))
    assert jax.tree.map(np.shape, state["params"]) == shapes
    params = jax.tree.map(np.asarray, state["params"])
    random = np.random.default_rng(1)
    frame, predicted = random.normal(size=(3, 8)), random.normal(size=(3, sizes["prediction_width"]))
    t = {name: torch.tensor(x) for name, x in tensors.items()}
    both = (torch.tensor(x, dtype=torch.float32) for x in (frame, predicted))
    if of_characters:
        first = torch.nn.functional.linear(
            torch.cat(list(both), 1), t["joint_net.0.weight"], t["joint_net.0.bias"]
        )
        last = "joint_net.3"
    else:
        names = zip(("joint_enc", "joint_pred"), both, strict=True)
        first = sum(torch.nn.functional.linear(x, t[f"{n}.weight"], t[f"{n}.bias"]) for n, x in names)
        last = "joint_net.2"
    expected = torch.nn.functional.linear(first.relu(), t[f"{last}.weight"], t[f"{last}.bias"])
    model = nnx.merge(graph, params)
    with jax.default_matmul_precision("highest"):
        logits = model.joint(model.of_encoder(frame), model.of_prediction(predicted))
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-3)


def test_closed_on_made_up_data_lacks_only_the_quality_and_the_examples(runs):
    (folder, ended), _ = runs.items()
    assert ended.returncode in (0, 1), ended.stderr
    assert "Fake LibriSpeech (noise, not MLPerf's data)" in ended.stdout
    (log,) = door.logs(folder / "results", "closed")
    said = door.complaints(log, "3.1.0")
    assert all(any(w in line for w in ("eval_samples", "eval_accuracy", "2703")) for line in said), said
    assert len(said) == 2


def test_the_trained_model_serves_in_four_scenarios(runs):
    _, (results, ended) = runs.items()
    assert ended.returncode == 1, ended.stderr  # it has no target that can be reached
    assert serving.serve_in_all_scenarios(TOY, results) < 0.9


def test_symbols_that_the_model_has_not_are_told():
    toys.make(SmallRNNT).check_data()
    known = len(toys.make(SmallRNNT).dataset.symbols)
    with pytest.raises(UserError, match=f"use --config.model.classes={known + 1}"):
        toys.make(SmallRNNT, model__classes=known).check_data()
    with pytest.raises(UserError, match=f"use --config.model.vocab_size={known + 1}"):
        toys.make(SmallDeepSpeech2, model__vocab_size=known).check_data()
