"""The best constant boxes: found where there is one answer, and better than answers drawn at random."""

import contextlib
import io

import numpy as np
import pytest

from benchmarks import constant_boxes


def truth_of(boxes):
    """Ground truth of 100x80 images, one object each: (left, top, right, bottom) in parts, category."""
    images = [{"id": i, "width": 100, "height": 80} for i in range(len(boxes))]
    annotations = []
    for i, ((left, top, right, bottom), category) in enumerate(boxes):
        box = [left * 100, top * 80, (right - left) * 100, (bottom - top) * 80]
        annotations.append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
        )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in (1, 2)],
    }


def score(truth, answer):
    """mAP at .5 of (box, category, score) for every image."""
    from pycocotools import coco, cocoeval

    with contextlib.redirect_stdout(io.StringIO()):
        judge = coco.COCO()
        judge.dataset = truth
        judge.createIndex()
        found = [
            [i["id"], l * 100, t * 80, (r - l) * 100, (b - t) * 80, s, c]
            for i in truth["images"]
            for (l, t, r, b), c, s in answer  # noqa: E741
        ]
        evaluation = cocoeval.COCOeval(judge, judge.loadRes(np.array(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[1]


@pytest.fixture
def coarse(monkeypatch):
    monkeypatch.setattr(constant_boxes, "_STEPS", np.arange(1, 8) / 8)
    monkeypatch.setattr(constant_boxes, "_SIDES", np.arange(2, 9) / 8)


def test_objects_that_never_move_are_all_found(coarse):
    boxes = [((0.25, 0.25, 0.5, 0.5), 1 + i % 2) for i in range(4)]
    # Equal scores are taken in the images' order: right, wrong, right, wrong for one category, and the
    # reverse for the other. Precision is 1 up to a recall of .5, then 2/3; and 1/2 throughout.
    expected = ((51 * 1 + 50 * 2 / 3) / 101 + 1 / 2) / 2
    assert constant_boxes.measure(truth_of(boxes))["map_50"] == pytest.approx(expected)
    assert constant_boxes.measure(truth_of([(box, 1) for box, _ in boxes]))["map_50"] == pytest.approx(1)


def test_no_answer_drawn_at_random_is_better(coarse):
    random = np.random.default_rng(0)

    def drawn():
        corners = np.sort(random.random((2, 2)) * 0.7, axis=0)
        return [*corners[0], *(corners[1] + 0.2)]

    truth = truth_of([(drawn(), int(random.integers(1, 3))) for _ in range(12)])
    best = constant_boxes.measure(truth)["map_50"]
    assert best > 0.1
    for _ in range(20):
        answer = [(drawn(), category, random.random()) for category in (1, 2) for _ in range(5)]
        assert score(truth, answer) <= best
