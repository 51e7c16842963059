"""OpenImages as MLPerf's script leaves it: preparing, objects, the truth, views, and what is told where it is not whole."""

import contextlib
import itertools
import json
import os
import shutil

import numpy as np
import pytest

import input_pipelines
from input_pipelines.image import coco_originals, flipped, openimages, preprocessing
from mlperf_jax.errors import UserError

COUNTS, NUM_FAKE = {"train": 5, "eval": 2}, 8
FOLDERS = {"train": "train", "eval": "validation"}
NAMES = {0: "Airplane", 4: "Zucchini", 2: "Antelope"}  # ids out of order, one of them 0
OPTIONS = dict(image_size=40, max_boxes=100, augmentation="flip")


def small_photograph(random, label, size):
    return random.integers(256, size=(*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A data directory, and the annotations of both splits; a train image has no boxes, and one holds a group."""
    data_dir = tmp_path_factory.mktemp("openimages")
    made_up = coco_originals.MadeUp(COUNTS, small_photograph, tuple(NAMES))
    contents = {}
    for split, folder in FOLDERS.items():
        root = data_dir / "openimages" / folder
        (root / "labels").mkdir(parents=True)
        (root / "data").mkdir()
        images, annotations = [], []
        for image in made_up.images(split)[::-1]:
            name = f"{image.id:016x}.jpg"
            (root / "data" / name).write_bytes(made_up.jpeg(split, image))
            images.append({"id": image.id, "height": image.height, "width": image.width, "file_name": name})
            if split == "train" and image.id == 3:
                continue
            for box, category in zip(image.boxes.tolist(), image.categories.tolist(), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image.id,
                        "category_id": category,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                        "IsGroupOf": 0,
                        "IsOccluded": 1,
                    }
                )
        annotations[0] |= {"iscrowd": 1, "IsGroupOf": 1}
        categories = [{"id": number, "name": name, "supercategory": None} for number, name in NAMES.items()]
        contents[split] = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        (root / "labels" / "openimages-mlperf.json").write_text(json.dumps(contents[split]))
    return data_dir, contents


@pytest.fixture
def small_counts(monkeypatch):
    for name, count in (("NUM_TRAIN", 5), ("NUM_EVAL", 2), ("NUM_CLASSES", 3)):
        monkeypatch.setattr(openimages, name, count)


@pytest.fixture
def copy(original, tmp_path, small_counts):
    shutil.copytree(original[0] / "openimages", tmp_path / "openimages")
    return tmp_path


def opened(data_dir, **options):
    return input_pipelines.open_dataset("openimages", data_dir, OPTIONS | options)


def take(iterator, count):
    with contextlib.closing(iterator):
        return list(itertools.islice(iterator, count))


def test_objects_are_those_of_the_annotations(original, small_counts):
    data_dir, contents = original
    phrase = input_pipelines.prepare("openimages", data_dir)
    assert phrase == (f"OpenImages-MLPerf, 5 train and 2 eval images, in {data_dir / 'openimages-mlperf'}")
    assert input_pipelines.prepare("openimages", data_dir, verify=True) == phrase
    data = opened(data_dir)
    assert data.category_ids == (0, 0, 2, 4) and not data.fake and data.num_train == 5
    pictures = sorted(contents["train"]["images"], key=lambda image: image["id"])
    for index, picture in enumerate(pictures):
        boxes, labels = data.source.objects(index)
        objects = [a for a in contents["train"]["annotations"] if a["image_id"] == picture["id"]]
        assert len(boxes) == len(objects) and (len(boxes) == 0) == (picture["id"] == 3)
        for box, label, a in zip(boxes, labels, objects, strict=True):
            x, y, w, h = a["bbox"]
            sides = [picture["width"], picture["height"]] * 2
            np.testing.assert_allclose(box, np.array([x, y, x + w, y + h]) / sides, atol=1e-6)
            assert data.category_ids[label] == a["category_id"]
        jpeg = data_dir / "openimages" / "train" / "data" / picture["file_name"]
        expected = preprocessing.decode(jpeg.read_bytes(), "")
        assert np.array_equal(data.source.image("train", index), expected)


def test_pycocotools_reads_the_truth(original, small_counts):
    from pycocotools.coco import COCO

    data_dir, contents = original
    input_pipelines.prepare("openimages", data_dir)
    truth = COCO(str(opened(data_dir).ground_truth))
    assert truth.getCatIds() == [0, 2, 4] and truth.loadCats(4)[0]["name"] == "Zucchini"
    assert len(truth.anns) == len(contents["eval"]["annotations"]) and len(truth.getAnnIds(iscrowd=True)) == 1


def test_views_are_whole_one_in_two_mirrored_and_resized_as_torch_does(original, small_counts):
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    data_dir, _ = original
    input_pipelines.prepare("openimages", data_dir)
    data = opened(data_dir)
    mirrored = set()
    batches = take(data.train_batches(seed=1, batch_size=5, start_step=0, rows=slice(0, 5)), 4)
    wholes = [data.source.image("train", index) for index in range(5)]
    small = [
        torch.nn.functional.interpolate(
            torch.tensor(x).permute(2, 0, 1)[None].float(), size=(40, 40), mode="bilinear"
        )
        for x in wholes
    ]
    small = [x[0].permute(1, 2, 0).numpy() for x in small]
    for batch in batches:
        for image, boxes, labels in zip(*batch.values(), strict=True):
            found = [
                (index, flip)
                for index in range(5)
                for flip in (False, True)
                if np.abs(image.astype(float) - (small[index][:, ::-1] if flip else small[index])).max() < 2.5
            ]
            ((index, flip),) = found
            mirrored.add(flip)
            expected, expected_labels = data.source.objects(index)
            if flip:
                expected = np.stack(
                    [1 - expected[:, 2], expected[:, 1], 1 - expected[:, 0], expected[:, 3]], 1
                )
            np.testing.assert_allclose(boxes[: len(expected)], expected, atol=1e-6)
            assert (
                np.array_equal(labels[: len(expected)], expected_labels) and not labels[len(expected) :].any()
            )
    assert mirrored == {False, True}
    (evaluated,) = data.eval_batches(batch_size=2, rows=slice(0, 2))
    assert np.array_equal(evaluated["image"][1], flipped.stretched(data.source.image("eval", 1), 40))


def test_made_up_set_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(openimages.fake_images, "photograph", small_photograph)
    assert "Fake OpenImages" in input_pipelines.prepare("openimages", tmp_path, fake=NUM_FAKE)
    data = opened(tmp_path, fake=NUM_FAKE)
    assert data.fake and (data.num_train, data.num_eval, data.num_classes) == (NUM_FAKE, 1, 265)
    synthetic = opened(tmp_path, synthetic=True)
    assert (synthetic.num_train, synthetic.num_eval, synthetic.num_classes) == (1_170_301, 24_781, 265)


def test_what_is_missing_is_named(original, tmp_path):
    for ask in (
        input_pipelines.prepare,
        lambda name, where: input_pipelines.open_dataset(name, where, OPTIONS),
    ):
        with pytest.raises(UserError, match="download_openimages_mlperf.sh.*--fake=N") as caught:
            ask("openimages", tmp_path)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    shutil.copytree(original[0] / "openimages" / "train", tmp_path / "train")
    with pytest.raises(
        UserError, match="lacks validation/data, validation/labels/openimages-mlperf.json; get it"
    ):
        input_pipelines.prepare("openimages", tmp_path)
    shutil.copytree(original[0] / "openimages" / "validation", tmp_path / "validation")
    with pytest.raises(UserError, match="has 3 classes where OpenImages-MLPerf has 264"):
        input_pipelines.prepare("openimages", tmp_path)
    assert not (tmp_path / "openimages-mlperf").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["images"].pop(), "has 1 eval images where OpenImages-MLPerf has 2"),
        (lambda c: c["categories"].pop(), "different classes"),
        (lambda c: c.pop("categories"), "names no classes"),
        (lambda c: c["categories"].append({"id": 2, "name": "again"}), "twice the same"),
        (lambda c: c["annotations"][0].update(category_id=7), "of a category that there is not"),
        (lambda c: c["images"][0].update(file_name="../x.jpg"), "has the name"),
    ],
)
def test_damaged_annotations_are_named(copy, change, said):
    path = copy / "openimages" / "validation" / "labels" / "openimages-mlperf.json"
    content = json.loads(path.read_text())
    if "eval images" in said:  # and what is in it
        gone = content["images"][-1]["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        input_pipelines.prepare("openimages", copy)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b"GIF89a"), "OpenImages's train image 1 is not a JPEG"),
        (lambda path: os.truncate(path, 2**29), "536,870,912 bytes are too many"),
    ],
)
def test_damaged_images_are_told_while_preparing(copy, damage, said):
    damage(copy / "openimages" / "train" / "data" / f"{1:016x}.jpg")
    with pytest.raises(UserError, match=said):
        input_pipelines.prepare("openimages", copy)
