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


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_judged_as_pycocotools_does_by_itself(seed):
    """Its own reading of results without boxes; the truth has polygons, runs and a crowd."""
    from pycocotools import coco, cocoeval
    from pycocotools import mask as pycocotools_mask

    random = np.random.default_rng(seed)
    content = truth([(image, 18, 10 + 9 * n, 10, 40, 40, 0) for image in (1, 2) for n in range(3)])
    for i, annotation in enumerate(content["annotations"]):
        left, top, width, height = annotation["bbox"]
        right, bottom = left + width, top + height
        annotation["segmentation"] = [[left, top, right, top, right, bottom, left + width / 2, bottom]]
        if i == 2:
            annotation["segmentation"] = {"size": [100, 200], "counts": [2000, 4000, 14000]}
            annotation["iscrowd"] = 1
    rows, runs = [], []
    for image, category, left, top, width, height, _ in [
        (i % 2 + 1, 18, *b[2:]) for i, b in enumerate(8 * BOXES)
    ]:
        covered = np.zeros((100, 200), np.uint8, order="F")
        x, y = (int(v) for v in random.integers(0, 12, 2) + (left, top))
        covered[y : y + height, x : x + width] = (
            random.random((100, 200))[y : y + height, x : x + width] < 0.9
        )
        run = pycocotools_mask.encode(covered)
        runs.append({"size": run["size"], "counts": run["counts"].decode()})
        rows.append((image, x, y, width, height, random.random(), category))
    results = [
        {"image_id": row[0], "category_id": row[6], "score": row[5], "segmentation": dict(run)}
        for row, run in zip(rows, runs, strict=True)
    ]
    judge = coco.COCO()
    judge.dataset = json.loads(json.dumps(content))
    judge.createIndex()
    judge = cocoeval.COCOeval(judge, judge.loadRes(results), "segm")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    ground_truth = GroundTruth(content)
    for _ in range(2):  # what it makes of the truth's outlines stays
        figures = ground_truth.judge(found(*rows), masks=runs)
        assert list(figures.values()) == pytest.approx(judge.stats[:6].tolist())
    assert figures["mAP_50"] > 0 and figures != ground_truth.judge(found(*rows))
