"""Keypoint AP against the definition, written out; and the mean pose where it is the right answer."""

import json

import numpy as np
import pytest

from benchmarks import mean_pose
from mlperf_jax.errors import UserError

pytest.importorskip("pycocotools")

from mlperf_jax.metrics.keypoint_precision import KEYPOINT_FIGURES, KeypointTruth

# cocodataset.org, keypoint evaluation: how differently people place each, twice.
TWICE = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000 * 2


def truth_of(people):
    """Ground truth of images 200 pixels wide and high: (image, box, points [17, 3], area) each."""
    annotations = [
        {
            "id": i,
            "image_id": image,
            "category_id": 1,
            "bbox": list(box),
            "area": area,
            "iscrowd": 0,
            "keypoints": np.ravel(points).tolist(),
            "num_keypoints": int(np.count_nonzero(np.asarray(points)[:, 2])),
        }
        for i, (image, box, points, area) in enumerate(people, 1)
    ]
    images = [{"id": i, "width": 200, "height": 200} for i in sorted({image for image, *_ in people})]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def random_people(random, count):
    people = []
    for image in range(count):
        points = np.concatenate([random.uniform(0, 200, (17, 2)), random.integers(3, size=(17, 1))], 1)
        points[points[:, 2] == 0] = 0
        people.append((image, (0, 0, 200, 200), points, float(random.uniform(2000, 20000))))
    return people


def similarity(found, points, area):
    labelled = points[:, 2] > 0
    apart = np.square(found - points[:, :2]).sum(1)
    return np.exp(-apart / (2 * area * TWICE**2))[labelled].mean()


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_the_definition(seed):
    """One person and one detection an image: precision and recall from similarities written out here."""
    random = np.random.default_rng(seed)
    people = random_people(random, 30)
    found = np.array([p[:, :2] + random.normal(0, random.uniform(0, 25), (17, 2)) for _, _, p, _ in people])
    scores = random.permutation(30) / 30
    detections = np.array(
        [(image, 0, 0, 200, 200, score, 1) for (image, *_), score in zip(people, scores, strict=True)]
    )
    alike = np.array([similarity(f, p, area) for f, (_, _, p, area) in zip(found, people, strict=True)])
    real = np.array([np.count_nonzero(p[:, 2]) > 0 for _, _, p, _ in people])

    def average_precision(least):
        hits = (alike >= least)[np.argsort(-scores)]
        precision = np.cumsum(hits) / np.arange(1, 31)
        recall = np.cumsum(hits) / 30
        at = [precision[recall >= r - 1e-12].max(initial=0) for r in np.linspace(0, 1, 101)]
        return np.mean(at)

    assert real.all()
    figures = KeypointTruth(truth_of(people)).judge_keypoints(detections, found)
    assert tuple(figures) == KEYPOINT_FIGURES
    thresholds = np.linspace(0.5, 0.95, 10)
    assert figures["OKS_AP_50"] == pytest.approx(average_precision(0.5), abs=1e-9)
    assert figures["OKS_AP"] == pytest.approx(np.mean([average_precision(t) for t in thresholds]), abs=1e-9)


def test_images_can_be_chosen_and_a_set_without_answers_has_nothing():
    people = random_people(np.random.default_rng(3), 4)
    truth = KeypointTruth(truth_of(people))
    right = np.array([people[2][2][:, :2]])
    one = np.array([(2, 0, 0, 200, 200, 0.5, 1.0)])
    assert truth.judge_keypoints(one, right, [2])["OKS_AP"] == pytest.approx(1)
    assert truth.judge_keypoints(one, right)["OKS_AP"] < 0.5
    assert truth.judge_keypoints(np.zeros((0, 7)), np.zeros((0, 17, 2)))["OKS_AP"] == 0
    assert truth.size(2) == (200, 200)
    assert len(truth.keypoints(2)) == 1


def test_the_mean_pose_is_right_where_all_are_alike():
    random = np.random.default_rng(0)
    pose = random.random((17, 2))
    corners = np.concatenate([random.uniform(0, 50, (9, 2)), random.uniform(100, 200, (9, 2))], 1)
    sides = corners[:, None, 2:] - corners[:, None, :2]
    flags = random.integers(1, 3, (9, 17, 1))
    points = np.concatenate([corners[:, None, :2] + pose * sides, flags], -1)
    points[0, 3] = 0
    np.testing.assert_allclose(mean_pose.mean_pose(corners, points), pose)
    people = [
        (i, (*box[:2], *(box[2:] - box[:2])), p, 1000.0)
        for i, (box, p) in enumerate(zip(corners, points, strict=True))
    ]
    truth = KeypointTruth(truth_of(people))
    assert mean_pose.judged(truth, pose, np.arange(9))["OKS_AP"] == pytest.approx(1)
    assert mean_pose.judged(truth, 1 - pose, np.arange(9))["OKS_AP"] < 0.2


def test_damaged_truth_is_refused(tmp_path):
    content = truth_of(random_people(np.random.default_rng(0), 2))
    for points in (["x"] * 51, [1.0] * 50, None, 7):
        content["annotations"][1]["keypoints"] = points
        (tmp_path / "eval.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="no COCO file of true"):
            KeypointTruth(tmp_path / "eval.json")
