"""Mask R-CNN2Go as a workload: its losses in boxes, every layout, its answers, pictures and log."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.maskrcnn2go import get_config
from input_pipelines.image import keypoints
from mlperf_jax.config import resolve
from mlperf_jax.detection.regions import Regions
from mlperf_jax.detection.roi_align import roi_align
from mlperf_jax.errors import UserError
from mlperf_jax.parallel.mesh import single_device_layout
from mlperf_jax.precision import POLICIES
from mlperf_jax.training.engine import Engine, named, tracing
from mlperf_jax.workloads.pose_estimation import PoseEstimation
from tests import door, toys
from tests.workloads.small_maskrcnn import SIZE
from tests.workloads.small_maskrcnn2go import SmallPoses

pytest.importorskip("pycocotools")

BATCH, SHAPE = 8, f"{SIZE}x{SIZE}"


# Its losses in boxes.


def bilinear_twice(maps):
    """Maps [h, w, K] twice as large, in the middle of whose cells the old ones are told: four weights a cell."""
    for axis in (0, 1):
        count = maps.shape[axis]
        at = (np.arange(2 * count) + 0.5) / 2 - 0.5
        low = np.clip(np.floor(at).astype(int), 0, count - 1)
        high = np.clip(np.floor(at).astype(int) + 1, 0, count - 1)
        shape = [1] * maps.ndim
        shape[axis] = -1
        beyond = np.clip(at - low, 0, 1).reshape(shape)
        maps = (1 - beyond) * np.take(maps, low, axis) + beyond * np.take(maps, high, axis)
    return maps


def test_keypoints_are_learnt_where_they_are():
    """Against cross-entropies written out, of the network's own maps and of keypoints in pixels of images with margins."""
    with jax.enable_x64(True):
        workload = toys.make(SmallPoses, "float64")
        random = np.random.default_rng(1)
        window, channels = workload.model_config.mask_window, workload.model_config.channels
        sides = [SIZE // stride for stride in workload.model_config.strides[:-1]]
        levels = [jnp.asarray(random.normal(size=(2, side, side, channels))) for side in sides]
        extent = np.array([[32, 20], [24, 32]], np.int32)
        corners = np.array([[[2, 3, 15, 25], [0, 0, 20, 32]], [[4, 4, 30, 20], [6, 2, 12, 9]]], float)
        regions = Regions(jnp.asarray(corners), jnp.asarray([[1, 1], [1, 0]]), jnp.asarray([[0, 1], [1, 0]]))
        flags = random.integers(3, size=(2, 2, 17, 1))
        points = np.concatenate([random.random((2, 2, 17, 2)), flags], -1)
        batch = {"extent": extent, "keypoints": points, "masks": np.zeros((2, 2, 112, 14), np.uint8)}
        layout = single_device_layout()

        @jax.jit
        def losses(state):
            with tracing(layout, workload.policy):
                model = workload.model(state)
                boxes = jnp.asarray(corners)
                found = workload.losses_in_boxes(model, levels, regions, boxes, batch)
                held = roi_align(levels, workload.model_config.strides[:-1], regions.corners, window)
                return found, model.keypoints(held)

        struct = workload.served_struct(layout)
        state = jax.tree.map(lambda x: random.normal(size=x.shape, scale=0.3).astype(x.dtype), struct)
        (_, found), maps = jax.device_get(losses(state))
    expected = []
    for image, row, keypoint in np.ndindex(2, 2, 17):
        own = points[image, int(regions.rows[image, row]), keypoint]
        place = own[:2] * extent[image, ::-1]
        left, top, right, bottom = corners[image, row]
        inside = left <= place[0] <= right and top <= place[1] <= bottom
        if not (own[2] and inside and regions.labels[image, row] > 0):
            continue
        logits = bilinear_twice(maps[image, row])[..., keypoint]
        x = int((place[0] - left) / (right - left) * len(logits))
        y = int((place[1] - top) / (bottom - top) * len(logits))
        expected.append(np.log(np.exp(logits).sum()) - logits[y, x])
    assert len(expected) > 5
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-9)


# Its answers.


@functools.cache
def answered():
    """Drawn parameters that find something, in float32, and the answers to all samples, as they are logged."""
    workload = toys.make(SmallPoses, detection__score=0.0, batch_size=BATCH)
    engine = Engine(workload, single_device_layout())
    engine.compile("init", named("detect", SHAPE))
    state = engine.init(3)
    (batch,) = [b for b in workload.measured_batches(engine, state)][:1]
    answers = batch["answer"]
    assert answers.shape == (8, 6, 28 + 8 * 8 + 136) and answers.dtype == np.uint8
    return engine, state


def test_answers_are_judged_as_the_evaluation_was():
    engine, state = answered()
    workload = engine.workload
    evaluated = workload.evaluate(engine, state).result(timeout=60)
    assert evaluated["quality"] == evaluated["OKS_AP_50"] and {"box_mAP_50", "mask_mAP_50"} < set(evaluated)
    answers = []
    for batch in workload.measured_batches(engine, state):
        for answer in batch["answer"][batch["mask"] > 0]:
            numbers = np.ascontiguousarray(answer[:, :4]).view("<f4")
            numbers[:] = len(answers)  # the sample's number, which evaluation does not know
            answer = np.concatenate([numbers.view(np.uint8), answer[:, 4:]], 1)
            answers.append(workload.logged_answer(len(answers), answer).tobytes())
    indices = np.arange(workload.num_samples)
    assert workload.answered_figures(indices, answers) == pytest.approx(evaluated, rel=1e-5)
    with pytest.raises(ValueError, match="other samples"):
        workload.answered_figures(indices[::-1], answers)
    with pytest.raises(ValueError, match="no number of detections of 228 bytes"):
        workload.answered_figures(indices, [answers[0][:-1], *answers[1:]])
    assert workload.answered_figures(indices, [b""] * len(indices))["quality"] == 0


def test_perfect_answers_score_one():
    """In the form that the accuracy log has: the seven columns, the mask over the box, 17 places in parts of the image."""
    workload = toys.make(SmallPoses)
    source, answers = workload.dataset.source, []
    for index in range(workload.num_samples):
        _, _, masks = source._drawn["eval"][index]
        height, width = source.sizes[index]
        rows = b""
        for mask, points in zip(masks, source._points(masks), strict=True):
            left, top, right, bottom = source._boxes([mask])[0].astype(int).tolist()
            box = np.array([index, top / height, left / width, bottom / height, right / width, 0.9, 1], "<f4")
            seen = mask[top:bottom, left:right].astype(np.uint8)
            y, x = ((np.arange(8) + 0.5) * side / 8 for side in seen.shape)
            places = (points[:, :2] / [width, height]).astype("<f4")
            rows += box.tobytes() + (255 * seen[np.ix_(y.astype(int), x.astype(int))]).tobytes()
            rows += places.tobytes()
        answers.append(rows)
    figures = workload.answered_figures(np.arange(workload.num_samples), answers)
    assert figures["quality"] == figures["OKS_AP"] == pytest.approx(1, abs=1e-6)
    assert figures["box_mAP"] == pytest.approx(1, abs=1e-6)


def test_pictures_show_keypoints():
    engine, state = answered()
    workload = engine.workload
    pictures = workload.pictures(engine, state, 2)
    assert len(pictures) == 2 and all(picture.startswith(b"\x89PNG") for picture in pictures)
    rows = np.zeros((1, 136), np.uint8)
    places = rows.view("<f4").reshape(1, 17, 2)
    places[0, :, 0] = np.arange(17) / 17
    (lines,) = workload.lines(rows)
    assert lines.shape == (len(keypoints.SKELETON), 2, 2)
    np.testing.assert_allclose(lines[:, :, 0] * 17, keypoints.SKELETON, rtol=1e-6)


# Closed.


def closed(*overrides):
    config = resolve(
        get_config("closed"), ["--config.data.num_train=8", "--config.data.num_eval=4", *overrides]
    )
    return PoseEstimation(config, POLICIES["float32"], data_dir=door.ROOT / "nowhere", synthetic=True)


def test_closed_without_a_backbone_stops():
    with pytest.raises(UserError, match=r"no .*weights/mobilenet_v2-b0353104.pth; put torchvision's"):
        closed().check_data()
    closed("--config.backbone_weights=").check_data()


def test_closed_answers_have_one_form():
    workload = closed("--config.backbone_weights=")
    assert list(workload.sample_specs()) == ["224x320", "320x224", "224x448", "448x224"]
    struct = workload.served_struct(single_device_layout())
    spec = workload.sample_specs()["224x320"]
    inputs = {name: jax.ShapeDtypeStruct((2, *shape), dtype) for name, (shape, dtype) in spec.items()}
    assert jax.eval_shape(workload.predict, struct, inputs).shape == (2, 20, 28 + 28 * 28 + 136)
