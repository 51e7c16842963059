"""SSD-MobileNet as a workload: every layout, its classes and answers, its weights, its log."""

import jax
import numpy as np
import pytest

from configs.ssd_mobilenet import get_config
from mlperf_jax.config import resolve
from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.mined_sigmoid import match
from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.events import read_events
from mlperf_jax.workloads.ssd_mobilenet import SSDMobileNet
from tests import door, pair, toys
from tests.agreement import Layouts, assert_close
from tests.workloads.small_ssd_mobilenet import SmallSSDMobileNet

BATCH, EPOCH = 8, 12
CUTS = (
    "backbone_weights=",
    "batch_size=2",
    "eval_batch_size=1",
    "model.bn_span=2",
    "model.stem=8",
    "model.blocks=((16,1),(16,2),(32,2),(32,2),(32,1),(64,2),(64,1))",
    "model.taken_after=(5,7)",
    "eval_every_epochs=1",
    "max_epochs=1",
)


@pytest.fixture(scope="module", autouse=True)
def closed_run(tmp_path_factory):
    """A short, narrow network on made-up images, beside the other tests: a folder and a process."""
    folder = tmp_path_factory.mktemp("closed")
    process = door.start_closed(folder, "ssd_mobilenet", 4, *CUTS)
    yield folder, process
    process.kill()


LAYOUTS = Layouts(
    lambda strategy: toys.make(SmallSSDMobileNet, "float64", batch_size=BATCH),
    lambda strategy, engine: ("eval_init", "eval_step") if strategy in (None, "spatial") else (),
)
engine_of, trained = LAYOUTS.engine, LAYOUTS.trained


@pytest.mark.parametrize("strategy", ["dp", "zero1", "fsdp", "tp", "fsdp_tp", "spatial"])
def test_every_strategy_agrees_with_one_device_in_float64(strategy):
    LAYOUTS.agree(strategy, floor=1e-6)


def test_two_processes_agree_with_one(tmp_path):
    """An epoch, and the state at its end as the two wrote it."""
    small = "tests.workloads.small_ssd_mobilenet:SmallSSDMobileNet"
    flags = (f"--config.batch_size={BATCH}", "--config.target=0.0")
    step, found = pair.saved(tmp_path, small, engine_of("fsdp"), *flags)
    losses, expected = trained("fsdp", EPOCH)
    assert step == EPOCH == len(losses)
    assert_close(found, expected, floor=1e-6)


def test_evaluation_is_the_same_in_another_layout():
    found = []
    with jax.enable_x64(True):
        for strategy in (None, "spatial"):
            engine = engine_of(strategy)
            found.append(engine.workload.evaluate(engine, trained(strategy)[1]).result(timeout=60))
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_answers_are_judged_as_the_evaluation_was():
    with jax.enable_x64(True):
        engine = engine_of(None)
        workload, state = engine.workload, trained(None)[1]
        indices = np.arange(workload.num_eval)
        part = workload.served_state(state)
        answers = np.asarray(jax.jit(workload.predict)(part, workload.read_samples(indices)))
        evaluated = workload.evaluate(engine, state).result()["quality"]
    assert answers.shape == (12, 10, 7) and answers.dtype == np.float32
    assert (answers[..., 1:5] >= 0).all() and (answers[..., 1:5] <= 1).all()
    assert set(np.unique(answers[..., 6])) <= {0, 1, 2}  # the data's labels, of ten classes
    quality = workload.answered_figures(indices, [row.tobytes() for row in answers])["quality"]
    assert quality == pytest.approx(evaluated, rel=1e-6)


def test_classes_are_the_ids_of_the_categories():
    """Perfect predictions of classes 7 and 9 cost nothing, and are answered as the data's labels 1 and 2."""
    workload = toys.make(SmallSSDMobileNet)
    batch = workload.dataset.read_train(0, 12, seed=0)
    boxes, labels = batch["boxes"], batch["labels"]
    anchors = jax.numpy.asarray(workload.anchors, np.float32)
    rows, targets = map(np.asarray, jax.jit(jax.vmap(match, (0, 0, None)))(boxes, labels, anchors))
    matched = targets[..., None] > 0
    mine = np.where(matched, np.take_along_axis(boxes, rows[..., None], 1), [0.1, 0.1, 0.9, 0.9])
    codes = np.where(matched, jax.jit(box.encode)(mine.astype(np.float32), anchors), 0)
    classes = np.array([0, 7, 9])[targets]
    logits = np.where(np.arange(10) == classes[..., None], 20.0, -20.0).astype(np.float32)
    total, _ = jax.jit(workload.box_loss)(codes, logits, boxes, labels)
    assert float(total) < 1e-2
    for found, true, names in zip(
        np.asarray(jax.jit(lambda *args: workload.detect(*args).rows())(codes, logits)),
        boxes,
        labels,
        strict=True,
    ):
        found = found[found[:, 4] > 0.5]
        assert len(found) or not names.any()
        for *corners, _, label in found.tolist():
            assert np.isclose(true[names == label], corners, atol=1e-4).all(1).any()


def closed(*overrides):
    config = resolve(
        get_config("closed"), ["--config.data.num_train=8", "--config.data.num_eval=4", *overrides]
    )
    return SSDMobileNet(config, POLICIES["float32"], data_dir=door.ROOT / "nowhere", synthetic=True)


def test_closed_wants_a_backbone_and_room_for_the_classes(monkeypatch):
    with pytest.raises(UserError, match=r"mobilenet_v1_1.0_224.ckpt.index; put TensorFlow's"):
        closed().check_data()
    made_up = closed("--config.backbone_weights=")
    made_up.check_data()
    monkeypatch.setattr(made_up.dataset, "fake", False)
    with pytest.raises(UserError, match="The rules want a backbone"):
        made_up.check_data()
    with pytest.raises(UserError, match="categories up to 90 .* --config.model.num_classes=91"):
        closed("--config.backbone_weights=", "--config.model.num_classes=85").check_data()


def test_the_checker_has_no_complaint_of_a_closed_run_on_made_up_data(closed_run):
    """Training never had this benchmark, and no ruleset has its name: its runs are of the open division, and are judged
    as those of `ssd`, whose data and phases they share, by the last ruleset in which that was a detector on COCO.
    """
    folder, process = closed_run
    ended = door.finish(process)
    assert ended.returncode == 1 and "not reached" in ended.stdout, ended.stderr
    (log,) = door.logs(folder / "results", "closed")
    events = read_events(log)
    assert door.values(events, "submission_benchmark") == ["ssd-mobilenet"]
    assert door.values(events, "submission_division") == ["open"]
    assert door.values(events, "opt_name") == ["rmsprop"]
    assert door.values(events, "quality_target") == [0.22]
    told = log.read_text().replace('"value": "ssd-mobilenet"', '"value": "ssd"')
    (folder / "judged.txt").write_text(told)
    assert door.complaints(folder / "judged.txt", "1.1.0") == []
