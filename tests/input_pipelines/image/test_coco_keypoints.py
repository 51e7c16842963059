"""COCO's people and their keypoints: from its annotations to batches and the truth, and what is refused."""

import json
import zipfile

import numpy as np
import pytest

import input_pipelines
from input_pipelines import base
from input_pipelines.image import coco, coco_keypoints, coco_originals, keypoints
from mlperf_jax.errors import UserError

pytest.importorskip("pycocotools")

NUM_FAKE = 16
OPTIONS = {"shorter": 64, "longest": 96, "longer": (96,), "max_boxes": 100, "num_threads": 1}


def small_photograph(random, label, size):
    return np.full((*size, 3), random.integers(1, 256, size=3), np.uint8)


def person(image, points, crowd=0, **changed):
    labelled = int(np.count_nonzero(np.reshape(points, (-1, 3))[:, 2]))
    outline = {"size": [40, 60], "counts": [0, 2400]} if crowd else [[2, 2, 30, 2, 30, 38, 2, 38]]
    return {
        "image_id": image,
        "category_id": 1,
        "bbox": [2, 2, 28, 36],
        "area": 700,
        "iscrowd": crowd,
        "segmentation": outline,
        "keypoints": points,
        "num_keypoints": labelled,
    } | changed


NOBODYS = [0] * 51
SOMEBODYS = [3, 4, 2, *[0] * 45, 20, 30, 1]


def annotations(*people):
    images = [{"id": i, "height": 40, "width": 60, "file_name": f"{i}.jpg"} for i in (8, 5, 7)]
    return json.dumps({"images": images, "annotations": people}).encode()


def parsed(*people):
    return coco_originals.parse_annotations(
        annotations(*people), "x.json", coco_originals.PERSON, outlined=True, people=True
    )


def test_keypoints_lie_in_the_middle_of_their_pixels():
    first, second, third = parsed(person(7, SOMEBODYS), person(7, NOBODYS), person(5, NOBODYS, crowd=1))
    assert [image.id for image in (first, second, third)] == [5, 7, 8]
    assert second.points.shape == (2, 17, 3) and third.points.shape == (0, 17, 3)
    expected = np.zeros((2, 17, 3))
    expected[0, 0], expected[0, 16] = (3.5, 4.5, 2), (20.5, 30.5, 1)
    np.testing.assert_array_equal(second.points, expected)
    assert first.crowds.tolist() == [True]


@pytest.mark.parametrize(
    "bad",
    [
        person(7, SOMEBODYS[:-3]),
        person(7, [*SOMEBODYS[:-1], 3]),
        person(7, [*SOMEBODYS[:-1], True]),
        person(7, ["3", *SOMEBODYS[1:]]),
        person(7, [float("nan"), *SOMEBODYS[1:]]),
        person(7, [1e300, *SOMEBODYS[1:]]),
        person(7, SOMEBODYS, num_keypoints=3),
        person(7, SOMEBODYS, keypoints=None),
        person(7, SOMEBODYS, keypoints=7),
        {k: v for k, v in person(7, SOMEBODYS).items() if k != "keypoints"},
    ],
)
def test_what_are_no_keypoints_is_refused(bad):
    with pytest.raises(UserError, match=r"x\.json is not an annotation file of COCO"):
        parsed(person(7, SOMEBODYS), bad)


@pytest.fixture(scope="module")
def fake_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco_keypoints")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco.fake_images, "photograph", small_photograph)
        told = input_pipelines.prepare("coco_keypoints", folder, fake=NUM_FAKE)
    assert told.startswith("Fake COCO") and "people with keypoints" in told
    return folder


def test_batches_have_the_keypoints_of_people_who_are_no_crowd(fake_dir):
    dataset = input_pipelines.open_dataset("coco_keypoints", fake_dir, OPTIONS | {"fake": NUM_FAKE})
    made = coco_originals.MadeUp({"train": NUM_FAKE}, None, coco_originals.PERSON, outlined=True, people=True)
    images = [made._image("train", index) for index in range(NUM_FAKE)]
    images = [image for image in images if (image.points[..., 2] > 0).any()]
    assert dataset.num_train == len(images)
    batch = dataset.read_train(0, dataset.num_train, 4)
    examples = base.examples_at(np.arange(dataset.num_train), seed=4, num_examples=dataset.num_train)
    sides = set()
    for row, example in enumerate(examples.tolist()):
        image = images[example]
        single = ~image.crowds & (image.boxes[:, 2:] > 0).all(1)
        expected = image.points[single] / (image.width, image.height, 1)
        found = batch["keypoints"][row][batch["labels"][row] > 0]
        mirrored = not np.allclose(
            batch["boxes"][row][: len(found), 0], image.boxes[single, 0] / image.width, atol=1e-6
        )
        sides.add(mirrored)
        np.testing.assert_allclose(found, keypoints.mirrored(expected) if mirrored else expected, atol=1e-6)
    assert sides == {False, True}


def test_the_truth_has_keypoints(fake_dir):
    content = json.loads((fake_dir / f"coco_keypoints_fake_{NUM_FAKE}" / "eval.json").read_text())
    made = coco_originals.MadeUp({"eval": 2}, None, coco_originals.PERSON, outlined=True, people=True)
    made_points = np.concatenate([made._image("eval", index).points for index in range(2)])
    assert len(content["annotations"]) == len(made_points) > 0
    for annotation, points in zip(content["annotations"], made_points, strict=True):
        np.testing.assert_allclose(np.reshape(annotation["keypoints"], (17, 3)), points)
        assert annotation["num_keypoints"] == np.count_nonzero(points[:, 2])
    assert content["categories"][0]["keypoints"] == list(keypoints.NAMES)


def test_counts_are_checked(tmp_path):
    with zipfile.ZipFile(tmp_path / "annotations_trainval2017.zip", "w") as archive:
        for split in ("train2017", "val2017"):
            archive.writestr(
                f"annotations/person_keypoints_{split}.json",
                annotations(person(7, SOMEBODYS), person(5, NOBODYS)),
            )
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
    with pytest.raises(UserError, match="has 1 train images with keypoints where COCO 2017 has 56,599"):
        input_pipelines.prepare("coco_keypoints", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_keypoints, "NUM_TRAIN", 1)
        with pytest.raises(
            UserError, match="1 people with keypoints in train images where COCO 2017 has 149,813"
        ):
            input_pipelines.prepare("coco_keypoints", tmp_path)


def test_without_coco_there_is_a_sentence(tmp_path):
    for call in (
        lambda: input_pipelines.prepare("coco_keypoints", tmp_path),
        lambda: input_pipelines.open_dataset("coco_keypoints", tmp_path, OPTIONS),
    ):
        with pytest.raises(UserError, match="maskrcnn2go --fake=N"):
            call()
