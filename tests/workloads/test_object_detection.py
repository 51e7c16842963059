"""SSD as a workload: every layout, its evaluation beside training, its answers, its weights, its log."""

import subprocess
import sys
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from configs.ssd_resnet34 import get_config
from mlperf_jax.config import resolve
from mlperf_jax.errors import UserError
from mlperf_jax.inference.trained import Trained, model_config
from mlperf_jax.metrics.mean_average_precision import GroundTruth
from mlperf_jax.precision import POLICIES
from mlperf_jax.workloads.object_detection import SSDResNet34
from tests import door, toys
from tests.agreement import Layouts
from tests.weights.test_ssd_weights import drawn, reference_shapes, torchvision_shapes
from tests.workloads.small_ssd import SmallSSD

BATCH = 8


@pytest.fixture(scope="module", autouse=True)
def closed_run(tmp_path_factory):
    """A narrow trunk with one block a stage, at 300 x 300 on made-up images: a folder and a process.

    It starts before the first test, beside which it has a core of its own.
    """
    folder = tmp_path_factory.mktemp("closed")
    cuts = (
        "backbone_weights=",
        "batch_size=2",
        "eval_batch_size=1",
        "model.bn_span=2",
        "model.width=8",
        "model.stages=(1,1,1)",
        "eval_every_epochs=1",
        "max_epochs=1",
    )
    process = door.start_closed(folder, "ssd_resnet34", 4, *cuts)
    yield folder, process
    process.kill()


LAYOUTS = Layouts(
    lambda strategy: toys.make(SmallSSD, "float64", batch_size=BATCH),
    lambda strategy, engine: ("eval_init", "eval_step") if strategy in (None, "spatial") else (),
)
engine_of, trained = LAYOUTS.engine, LAYOUTS.trained


@pytest.mark.parametrize("strategy", ["dp", "zero1", "fsdp", "tp", "fsdp_tp", "spatial"])
def test_every_strategy_agrees_with_one_device_in_float64(strategy):
    """Spatial partitioning among them: rows of images lie on different devices."""
    LAYOUTS.agree(strategy)


def test_images_are_split_over_height():
    engine = engine_of("spatial")
    assert tuple(engine.batch["image"].sharding.spec) == ("data", "space")
    assert "collective-permute" in engine.compiled("train_step").as_text()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_evaluation_is_over_later_and_the_same_in_another_layout(x64):
    found = []
    for strategy in (None, "spatial"):
        engine = engine_of(strategy)
        future = engine.workload.evaluate(engine, trained(strategy)[1])
        assert isinstance(future, Future)
        found.append(future.result(timeout=60))
    assert found[0]["quality"] == found[0]["mAP_50"]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_answers_are_judged_as_the_evaluation_was(x64):
    """Twelve examples in batches of eight: the last one is padded, and not counted."""
    engine = engine_of(None)
    workload, state = engine.workload, trained(None)[1]
    assert set(workload.sample_spec()) == {"image", "index"}
    indices = np.arange(workload.num_eval)
    inputs = workload.read_samples(indices)
    part = workload.served_state(state)
    answers = np.asarray(jax.jit(workload.predict)(part, inputs))
    assert answers.shape == (12, 10, 7) and answers.dtype == np.float32
    assert (answers[:, :, 0] == indices[:, None]).all()
    top, left, bottom, right, score, label = np.moveaxis(answers[..., 1:], -1, 0)
    there = label > 0
    assert there.any() and (bottom[there] > top[there]).all() and (right[there] > left[there]).all()
    assert (score[there] > 0.05).all() and not answers[~there][:, 1:].any()
    evaluated = workload.evaluate(engine, state).result()["quality"]
    quality = workload.answered_figures(indices, [row.tobytes() for row in answers])["quality"]
    assert quality == pytest.approx(evaluated, rel=1e-6)
    with pytest.raises(ValueError, match="other samples"):
        workload.answered_figures(indices[::-1], [row.tobytes() for row in answers])["quality"]


def test_perfect_answers_score_one():
    workload = toys.make(SmallSSD)
    data, indices = workload.dataset, np.arange(workload.num_eval)
    answers = np.zeros((12, 10, 7), np.float32)
    answers[:, :, 0] = indices[:, None]
    truth = GroundTruth(data.ground_truth)
    for i in indices:
        for slot, ((x, y, w, h), category) in enumerate(truth.boxes(100 + i)):
            box = (y / 40, x / 80, (y + h) / 40, (x + w) / 80)
            answers[i, slot, 1:] = (*box, 0.9, data.category_ids.index(category))
    quality = workload.answered_figures(indices, [row.tobytes() for row in answers])["quality"]
    assert quality == pytest.approx(1, abs=1e-6)


# The backbone's weights.


def test_a_run_starts_from_the_published_backbone(tmp_path):
    path = tmp_path / "weights" / "resnet34.npz"
    path.parent.mkdir()
    workload = toys.make(SmallSSD, backbone_weights="resnet34.npz")
    workload.data_dir = tmp_path
    with pytest.raises(UserError, match=r"no .*weights/resnet34.npz; put torchvision's"):
        workload.check_data()
    tensors = drawn(torchvision_shapes(workload.model_config))
    np.savez(path, **tensors)
    workload.check_data()
    engine = engine_of(None)
    with jax.enable_x64(True):
        plain, state = engine.init(5), workload.initial_state(engine, 5)
    kernel = state["params"]["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0))
    assert kernel.dtype == np.float64
    np.testing.assert_array_equal(
        state["model_state"]["backbone"]["norm"]["mean"], tensors["bn1.running_mean"]
    )
    for entry in ("extras", "heads"):
        for a, b in zip(
            jax.tree.leaves(state["params"][entry]), jax.tree.leaves(plain["params"][entry]), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert workload.hyperparameters()["backbone_weights"] == "resnet34.npz"


def closed(*overrides, synthetic=True):
    config = resolve(
        get_config("closed"), ["--config.data.num_train=8", "--config.data.num_eval=4", *overrides]
    )
    return SSDResNet34(config, POLICIES["float32"], data_dir=door.ROOT / "nowhere", synthetic=synthetic)


def test_closed_without_a_backbone_stops(monkeypatch):
    with pytest.raises(UserError, match="resnet34-333f7ec4.pth; put torchvision's"):
        closed().check_data()
    made_up = closed("--config.backbone_weights=")
    made_up.check_data()
    monkeypatch.setattr(made_up.dataset, "fake", False)
    with pytest.raises(UserError, match="The rules want a backbone"):
        made_up.check_data()
    with pytest.raises(UserError, match="has 81 classes .* --config.model.num_classes=81"):
        closed("--config.backbone_weights=", "--config.model.num_classes=21").check_data()


def test_the_variant_of_mlperf_inference_is_imported_and_answers():
    """Its weights have the shapes of the closed model's; that they are for 1200 pixels comes with them."""
    workload = closed("--config.variant=1200", "--config.backbone_weights=")
    state, changes = workload.import_weights(drawn(reference_shapes(workload.model_config)))
    trained = Trained("a file", changes, None, lambda struct: struct)
    config = model_config(get_config("closed"), trained, [])
    assert (config.model.image_size, config.data.image_size, config.model.head_stride) == (1200, 1200, 3)
    assert model_config(get_config("closed"), Trained("", {}, None, None), []).model.image_size == 300
    inputs = {
        name: jax.ShapeDtypeStruct((2, *shape), dtype)
        for name, (shape, dtype) in workload.sample_spec().items()
    }
    assert inputs["image"].shape == (2, 1200, 1200, 3)
    assert jax.eval_shape(workload.predict, state, inputs).shape == (2, 200, 7)


# Through the door.


def test_killed_and_continued_it_ends_with_the_same_figures(tmp_path):
    """Through the door, drawn too: evaluations of a whole run and of one that was told to stop."""
    run = ("--workload=tests.workloads.small_ssd:SmallSSD", "--platform=cpu", "--seed=3", "--visualize=2")
    whole = door.start(tmp_path, *run, "--results_dir=whole", **door.LIGHTLY)
    process = door.start(tmp_path, *run, "--results_dir=pieces", **door.LIGHTLY)

    def evaluating():
        logs = door.logs(tmp_path / "pieces")
        return bool(logs) and b'"eval_start"' in logs[0].read_bytes()

    door.wait_for(process, evaluating)
    process.kill()
    process.communicate()
    again = door.run(tmp_path, *run, "--results_dir=pieces", **door.LIGHTLY)
    assert again.returncode == 1, again.stderr
    whole = door.finish(whole)
    assert whole.returncode == 1, whole.stderr
    figures = [
        [
            (e.metadata["epoch_num"], e.value)
            for e in door.events_of(tmp_path / name)
            if e.key == "eval_accuracy"
        ]
        for name in ("whole", "pieces")
    ]
    assert len(figures[0]) == 3 and figures[0] == figures[1]
    pictures = sorted((door.run_folder(tmp_path / "whole") / "pictures").iterdir())
    assert [p.name for p in pictures] == ["000.png", "001.png"]
    report = [sys.executable, "-m", "mlperf_jax.report", "whole", "--html=page.html"]
    done = subprocess.run(report, cwd=tmp_path, env=door.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().count("data:image/png;base64,iVBOR") == 2


def test_closed_on_made_up_data_lacks_nothing_but_the_target(closed_run):
    """Judged by the official checker under ruleset 1.1.0."""
    folder, process = closed_run
    ended = door.finish(process)
    assert ended.returncode == 1 and "not reached" in ended.stdout, ended.stderr
    (log,) = door.logs(folder / "results", "closed")
    complaints = door.complaints(log, "1.1.0")
    assert len(complaints) == 1 and "eval_accuracy" in complaints[0] and "0.230" in complaints[0], complaints
