"""Drawn figures: their keypoints are where their limbs are, their masks are exact, and flips keep left and right apart."""

import dataclasses
import itertools
import json
import pickle

import numpy as np
import pytest

import input_pipelines
from input_pipelines import base
from input_pipelines.image import articulated, box_augmentation, composites, figures, keypoints, outlines
from mlperf_jax.errors import UserError
from tests.input_pipelines.image import test_composites
from tests.input_pipelines.image.test_composites import data_dir  # noqa: F401  a fixture

OPTIONS = {"shorter": 64, "longest": 64, "longer": (64,), "max_boxes": 3, "num_threads": 1}
GREY = np.full((140, 150, 3), 7, np.uint8)
LIMBS = [
    ("left_shoulder", "left_elbow", "left_wrist", articulated._UPPER_ARM, articulated._LOWER_ARM),
    ("right_shoulder", "right_elbow", "right_wrist", articulated._UPPER_ARM, articulated._LOWER_ARM),
    ("left_hip", "left_knee", "left_ankle", articulated._THIGH, articulated._SHANK),
    ("right_hip", "right_knee", "right_ankle", articulated._THIGH, articulated._SHANK),
]


def of(points, name):
    return points[keypoints.NAMES.index(name)]


def degrees(vector):
    """From straight down, towards the right of the image."""
    return float(np.degrees(np.arctan2(vector[0], vector[1])))


def within(angle, limits):
    low, high = limits
    return (angle - low + 180) % 360 - 180 >= -1e-6 and (high - angle + 180) % 360 - 180 >= -1e-6


@pytest.mark.parametrize("seed", range(20))
def test_joints_keep_to_their_ranges(seed):
    """Angles and lengths of a pose, measured on its keypoints."""
    joints = figures.JOINTS
    body = articulated.pose(joints, box_augmentation.stream(seed, 0))
    neck = (of(body.points, "left_shoulder") + of(body.points, "right_shoulder")) / 2
    pelvis = (of(body.points, "left_hip") + of(body.points, "right_hip")) / 2
    lean = degrees(pelvis - neck)
    assert within(lean, joints.lean) and np.hypot(*(neck - pelvis)) == pytest.approx(articulated._TORSO)
    for first, middle, last, upper, lower in LIMBS:
        sign = 1 if first.startswith("left") else -1
        ends = (
            of(body.points, middle) - of(body.points, first),
            of(body.points, last) - of(body.points, middle),
        )
        angles = [sign * degrees(end) for end in ends]
        arm = "shoulder" in first
        hanging = sign * lean if arm else 0
        bend = angles[1] - angles[0] if arm else angles[0] - angles[1]
        assert within(angles[0] - hanging, joints.shoulder if arm else joints.hip), first
        assert within(bend, joints.elbow if arm else joints.knee), first
        for end, whole in zip(ends, (upper, lower), strict=True):
            assert joints.shown[0] - 1e-9 <= np.hypot(*end) / whole <= joints.shown[1] + 1e-9


def test_a_figure_that_faces_us_has_its_left_at_the_right():
    still = articulated.JointRanges(**{f.name: (0, 0) for f in dataclasses.fields(articulated.JointRanges)})
    body = articulated.pose(dataclasses.replace(still, shown=(1, 1)), itertools.repeat(0.5))
    for name in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"):
        left, right = of(body.points, f"left_{name}"), of(body.points, f"right_{name}")
        assert left[0] > right[0] and left[1] == pytest.approx(right[1])
        np.testing.assert_allclose(left[0], -right[0])
    order = [
        of(body.points, name)[1] for name in ("nose", "left_shoulder", "left_hip", "left_knee", "left_ankle")
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("seed", range(3))
def test_a_capsule_covers_what_is_near_its_axis(seed):
    """Against the distance of every pixel from many points of the axis."""
    random = np.random.default_rng(seed)
    ends, radii = random.uniform(5, 35, (2, 2)), random.uniform(2, 6, 2)
    image = np.full((40, 44, 3), 9, np.uint8)
    cover = articulated.Cover((np.full(3, 200.0),) * 2, "plain", 1.0)
    body = articulated.Body([articulated.Part(ends, tuple(radii), "shirt")], np.zeros((17, 2)))
    covered = articulated.draw(image, body, {"shirt": cover}, np.zeros(2), 1.0)
    shares = np.linspace(0, 1, 301)
    axis = ends[0] + shares[:, None] * (ends[1] - ends[0])
    pixels = np.stack(np.meshgrid(np.arange(44), np.arange(40)), -1)[..., None, :] + 0.5
    apart = np.sqrt(np.square(pixels - axis).sum(-1))
    nearest = apart.argmin(-1)
    beyond = apart.min(-1) - (radii[0] + shares[nearest] * (radii[1] - radii[0]))
    assert covered[beyond < -0.1].all() and not covered[beyond > 0.1].any()
    assert ((image == 9).all(-1) == (beyond >= 0.5))[np.abs(beyond - 0.5) > 0.1].mean() > 0.999


def things(count=3):
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        pixels = random.integers(256, size=(*random.integers(30, 60, 2), 4), dtype=np.uint8)
        pixels[..., 3] = 255
        found.append(composites.CutOut(1, pixels))
    return found


@pytest.fixture(scope="module")
def scenes():
    return [figures.scene(things(), [GREY], box_augmentation.stream(5, i)) for i in range(30)]


def test_scenes_depend_on_their_stream_alone(scenes):
    again = figures.scene(things(), [GREY], box_augmentation.stream(5, 3))
    for one, other in zip(
        (*again.picture, again.points), (*scenes[3].picture, scenes[3].points), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_keypoints_lie_on_their_figures_or_behind_something(scenes):
    counts = np.zeros(3, int)
    for (_, boxes, labels, masks), points in scenes:
        assert 1 <= len(masks) <= figures.MAX_FIGURES and (labels == 1).all()
        assert not (masks.sum(0) > 1).any()
        for mask, box, placed in zip(masks, boxes, points, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            for x, y, flag in placed:
                counts[int(flag)] += 1
                if flag:
                    assert mask[int(y), int(x)] == (flag == keypoints.VISIBLE)
                else:
                    assert x == y == 0
    assert counts[keypoints.VISIBLE] > 5 * counts[keypoints.HIDDEN] > 0


def test_mirroring_twice_changes_nothing_and_sides_swap():
    random = np.random.default_rng(0)
    flags = random.integers(3, size=(4, 17, 1))
    points = np.where(flags > 0, np.concatenate([random.random((4, 17, 2)), flags], -1), 0)
    swapped = keypoints.mirrored(points)
    np.testing.assert_allclose(keypoints.mirrored(swapped), points)
    for name in keypoints.NAMES:
        other = {"left": "right", "righ": "left"}.get(name[:4])
        twin = name if other is None else f"{other}{name[name.index('_') :]}"
        x, y, flag = points[0, keypoints.NAMES.index(name)]
        assert swapped[0, keypoints.NAMES.index(twin)] == pytest.approx([1 - x if flag else 0, y, flag])


@pytest.fixture(scope="module")
def prepared(data_dir, tmp_path_factory):  # noqa: F811  the composites' pictures
    folder = tmp_path_factory.mktemp("figures")
    (folder / "manual").symlink_to(data_dir / "manual")
    stamps, places = (folder / "manual" / name for name in ("tuxpaint-stamps-default", "gcompris-qt-data"))
    with pytest.MonkeyPatch.context() as patch:
        test_composites.pin_to(patch, stamps, places)
        patch.setattr(figures, "NUM_TRAIN", 8)
        patch.setattr(figures, "NUM_EVAL", 4)
        assert input_pipelines.prepare("figures", folder).startswith("drawn figures")
    return folder


def test_a_train_batch_has_its_images_keypoints_mirrored_with_them(prepared):
    dataset = input_pipelines.open_dataset("figures", prepared, OPTIONS)
    batch = pickle.loads(pickle.dumps(dataset)).read_train(0, 8, 3)
    assert {name: (value.shape[1:], value.dtype) for name, value in batch.items()} | {
        "image": dataset.train_spec["image"]
    } == dict(dataset.train_spec)
    examples = base.examples_at(np.arange(8), seed=3, num_examples=8)
    mirrored = 0
    for row, example in enumerate(examples.tolist()):
        there = batch["labels"][row] > 0
        boxes, _, masks = dataset.source.masked_objects(example)
        points = dataset.source.keypoints(example)
        if not np.allclose(batch["boxes"][row][there], boxes):
            mirrored += 1
            boxes, masks = box_augmentation.flipped(boxes), outlines.mirrored(masks)
            points = keypoints.mirrored(points)
        np.testing.assert_array_equal(batch["boxes"][row][there], boxes)
        np.testing.assert_array_equal(batch["masks"][row][there], masks)
        np.testing.assert_array_equal(batch["keypoints"][row][there], points)
        assert not batch["keypoints"][row][~there].any()
    assert 0 < mirrored < 8


def test_the_truth_is_as_coco_has_it(prepared):
    pycocotools_mask = pytest.importorskip("pycocotools.mask")
    content = json.loads((prepared / "figures/eval.json").read_text())
    (person,) = content["categories"]
    assert person["name"] == "person" and len(person["keypoints"]) == 17 and person["skeleton"][0] == [16, 14]
    assert len(content["images"]) == 4
    for annotation in content["annotations"]:
        points = np.reshape(annotation["keypoints"], (17, 3))
        assert annotation["num_keypoints"] == np.count_nonzero(points[:, 2])
        mask = pycocotools_mask.decode(annotation["segmentation"]).astype(bool)
        assert annotation["area"] == mask.sum()
        for x, y, flag in points[points[:, 2] > 0]:
            assert mask[int(y), int(x)] == (flag == keypoints.VISIBLE)


def test_made_up_keypoints_lie_in_their_boxes():
    dataset = input_pipelines.open_dataset(
        "figures", None, OPTIONS | {"max_boxes": 8, "synthetic": True, "num_train": 20, "num_eval": 5}
    )
    batch = dataset.read_train(0, 20, 1)
    low, high = batch["boxes"][..., None, :2], batch["boxes"][..., None, 2:]
    labelled = batch["keypoints"][..., 2] > 0
    assert 0.3 < labelled[batch["labels"] > 0].mean() < 0.9 and not labelled[batch["labels"] == 0].any()
    inside = ((batch["keypoints"][..., :2] >= low - 1e-6) & (batch["keypoints"][..., :2] <= high + 1e-6)).all(
        -1
    )
    assert inside[labelled].all()


def test_there_is_no_fake_set(tmp_path):
    with pytest.raises(UserError, match="no --fake set"):
        input_pipelines.prepare("figures", tmp_path, fake=5)
