"""Mean average precision by pycocotools, against values worked out by hand."""

import json

import numpy as np
import pytest

from mlperf_jax.metrics.mean_average_precision import FIGURES, GroundTruth

pytest.importorskip("pycocotools", reason="the official package")


def truth(boxes, images=(1, 2), categories=(18, 44)):
    """boxes: (image, category, left, top, width, height, iscrowd)"""
    annotations = [
        {
            "id": i,
            "image_id": image,
            "category_id": category,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": crowd,
        }
        for i, (image, category, *box, crowd) in enumerate(boxes, 1)
    ]
    return {
        "images": [{"id": i, "width": 200, "height": 100} for i in images],
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in categories],
    }


def found(*rows):
    return np.array(rows, np.float64).reshape(-1, 7)


BOXES = [(1, 18, 10, 10, 40, 40, 0), (2, 18, 50, 20, 40, 40, 0), (2, 44, 0, 0, 20, 30, 0)]


def test_perfect_answers_score_one(tmp_path, capsys):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth(BOXES)))
    answers = [(image, *box[:4], 0.9, category) for image, category, *box in BOXES]
    for source in (path, truth(BOXES)):
        figures = GroundTruth(source).judge(found(*answers))
        assert tuple(figures) == FIGURES
        assert figures["mAP"] == figures["mAP_50"] == pytest.approx(1)
    assert capsys.readouterr() == ("", "")  # beside training it must be silent


def test_one_class_half_found():
    """Category 18: a hit, then a miss elsewhere: precision 1 up to recall .5, 51 of 101 points. 44: missed."""
    answers = found((1, 10, 10, 40, 40, 0.9, 18), (2, 150, 60, 40, 40, 0.8, 18))
    figures = GroundTruth(truth(BOXES)).judge(answers)
    assert figures["mAP_50"] == pytest.approx((51 / 101 + 0) / 2)


def test_overlap_decides_by_threshold():
    """A box shifted by a tenth of its width has IoU 36/44 = .818: right at .5 to .8, wrong from .85 on."""
    one = truth(BOXES[:1], categories=(18,))
    figures = GroundTruth(one).judge(found((1, 14, 10, 40, 40, 0.9, 18)))
    assert figures["mAP_50"] == pytest.approx(1)
    assert figures["mAP"] == pytest.approx(7 / 10)


def test_nothing_found_and_images_left_out():
    judge = GroundTruth(truth(BOXES))
    assert judge.judge(found())["mAP"] == 0
    only_first = judge.judge(found((1, 10, 10, 40, 40, 0.9, 18)), image_ids=[1])
    assert only_first["mAP"] == pytest.approx(1)  # of the classes that image 1 has


def test_a_crowd_neither_counts_nor_harms():
    crowd = [*BOXES[:1], (1, 18, 100, 0, 100, 100, 1)]
    judge = GroundTruth(truth(crowd, categories=(18,)))
    inside = found((1, 10, 10, 40, 40, 0.5, 18), (1, 120, 20, 30, 30, 0.9, 18))
    assert judge.judge(inside)["mAP_50"] == pytest.approx(1)
    assert judge.boxes(1) == [([10, 10, 40, 40], 18)] and judge.boxes(7) == []
