"""COCO in its forms, which prepare to the same set; the made-up set; and what becomes of damage."""

import contextlib
import functools
import itertools
import json
import os
import shutil
import zipfile

import numpy as np
import pytest

import input_pipelines
from input_pipelines.image import box_augmentation, coco, coco_originals, preprocessing
from mlperf_jax.errors import UserError

OPTIONS = {"image_size": 75, "max_boxes": 100, "crop_attempts": 1, "num_threads": 2}
COUNTS = {"train": 7, "eval": 4}
NUM_FAKE = 10
FOLDERS = {"train": "train2017", "eval": "val2017"}


def small_photograph(random, label, size):
    return np.full((*size, 3), random.integers(256, size=3), np.uint8)


@pytest.fixture(scope="module")
def fake_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("coco_fake")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco.fake_images, "photograph", small_photograph)
        input_pipelines.prepare("coco", data_dir, fake=NUM_FAKE)
    return data_dir


@pytest.fixture(scope="module")
def annotations():
    """Annotation files in which ids are out of order; with crowds, degenerate boxes and an empty train image."""
    made_up = coco_originals.MadeUp(COUNTS, small_photograph)
    contents = {}
    for split in COUNTS:
        pictures, objects = [], []
        for image in made_up.images(split)[::-1]:
            name = f"{image.id:012d}.jpg"
            pictures.append(
                {
                    "id": image.id,
                    "height": image.height,
                    "width": image.width,
                    "file_name": name,
                    "license": 3,
                }
            )
            for box, category, crowd, area in zip(
                image.boxes.tolist(), image.categories.tolist(), image.crowds, image.areas, strict=True
            ):
                objects.append(
                    {
                        "id": 7 + 3 * len(objects),
                        "image_id": image.id,
                        "category_id": category,
                        "bbox": box,
                        "area": area,
                        "iscrowd": int(crowd),
                        "segmentation": [[1, 2, 3, 4, 5, 6]],
                    }
                )
        contents[split] = {
            "images": pictures,
            "annotations": objects,
            "categories": [{"id": i, "name": f"c{i}"} for i in coco.CATEGORY_IDS],
        }
    train = contents["train"]
    empty = train["images"][2]["id"]
    train["annotations"] = [a for a in train["annotations"] if a["image_id"] != empty]
    flat = {"id": 1, "image_id": 1, "category_id": 90, "bbox": [5, 5, 0, 9], "area": 0, "iscrowd": 0}
    crowd = {"id": 2, "image_id": 1, "category_id": 1, "bbox": [-3, 5, 20, 9], "area": 9.5, "iscrowd": 1}
    train["annotations"] += [flat, crowd]
    contents["eval"]["annotations"].append(crowd | {"image_id": 1002, "bbox": [1, 5, 20, 9]})
    return contents


@pytest.fixture(scope="module")
def folders_dir(annotations, tmp_path_factory):
    """The original files, unpacked."""
    data_dir = tmp_path_factory.mktemp("coco_folders")
    (data_dir / "coco" / "annotations").mkdir(parents=True)
    made_up = coco_originals.MadeUp(COUNTS, small_photograph)
    for split, folder in FOLDERS.items():
        text = json.dumps(annotations[split])
        (data_dir / "coco" / "annotations" / f"instances_{folder}.json").write_text(text)
        (data_dir / "coco" / folder).mkdir()
        for image in made_up.images(split):
            path = data_dir / "coco" / folder / f"{image.id:012d}.jpg"
            path.write_bytes(made_up.jpeg(split, image))
    return data_dir


@pytest.fixture(scope="module")
def zips_dir(folders_dir, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("coco_zips")
    for name in ("annotations", *FOLDERS.values()):
        archive = "annotations_trainval2017.zip" if name == "annotations" else f"{name}.zip"
        with zipfile.ZipFile(data_dir / archive, "w") as file:
            for path in sorted((folders_dir / "coco" / name).iterdir()):
                file.write(path, f"{name}/{path.name}")
    return data_dir


@pytest.fixture(scope="module")
def tfds_dir(annotations, folders_dir, tmp_path_factory):
    import tensorflow_datasets as tfds

    class Coco(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.1.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2017")]

        def _info(self):
            one = {
                "id": np.int64,
                "area": np.int64,
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(num_classes=80),
                "is_crowd": np.bool_,
            }
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "objects": tfds.features.Sequence(one),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples("train"), "validation": self._generate_examples("eval")}

        def _generate_examples(self, split):
            for image in annotations[split]["images"]:
                height, width, name = image["height"], image["width"], image["file_name"]
                objects = []
                for a in annotations[split]["annotations"]:
                    if a["image_id"] == image["id"]:
                        x, y, w, h = a["bbox"]
                        x0, x1, y0, y1 = x / width, (x + w) / width, y / height, (y + h) / height
                        x0, x1, y0, y1 = (min(max(edge, 0.0), 1.0) for edge in (x0, x1, y0, y1))
                        box = tfds.features.BBox(ymin=y0, xmin=x0, ymax=y1, xmax=x1)
                        objects.append(
                            {
                                "id": a["id"],
                                "area": int(a["area"]),
                                "bbox": box,
                                "label": coco.CATEGORY_IDS.index(a["category_id"]),
                                "is_crowd": bool(a["iscrowd"]),
                            }
                        )
                jpeg = (folders_dir / "coco" / FOLDERS[split] / name).read_bytes()
                example = {"image": jpeg, "image/filename": name, "image/id": image["id"], "objects": objects}
                yield name, example

    data_dir = tmp_path_factory.mktemp("coco_tfds")
    Coco(config="2017", data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


@pytest.fixture
def small_counts(monkeypatch):
    monkeypatch.setattr(coco, "NUM_TRAIN", COUNTS["train"] - 1)
    monkeypatch.setattr(coco, "NUM_TRAIN_WITH_EMPTY", COUNTS["train"])
    monkeypatch.setattr(coco, "NUM_EVAL", COUNTS["eval"])


@pytest.fixture
def copy(folders_dir, tmp_path, small_counts):
    """Original files to damage."""
    shutil.copytree(folders_dir / "coco", tmp_path / "coco")
    return tmp_path


def opened(data_dir, **options):
    return input_pipelines.open_dataset("coco", data_dir, OPTIONS | options)


def take(iterator, count):
    with contextlib.closing(iterator):
        return list(itertools.islice(iterator, count))


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_folders_archives_and_tfds_prepare_to_the_same(folders_dir, zips_dir, tfds_dir, small_counts):
    sets = []
    for data_dir in (folders_dir, zips_dir, tfds_dir):
        phrase = input_pipelines.prepare("coco", data_dir, verify=True)
        assert phrase == f"COCO 2017, 6 train and 4 eval images, in {data_dir / 'coco2017'}"
        assert input_pipelines.prepare("coco", data_dir, verify=True) == phrase
        sets.append(opened(data_dir))
    assert not sets[0].fake and sets[0].num_classes == 81 and sets[0].category_ids[80] == 90
    for data in sets[1:]:
        for split, count in data.source.counts.items():
            for index in range(count):
                assert np.array_equal(sets[0].source.image(split, index), data.source.image(split, index))
        for index in range(data.num_train):
            for one, other in zip(sets[0].source.objects(index), data.source.objects(index), strict=True):
                np.testing.assert_allclose(one, other, atol=1e-6)
        assert np.array_equal(data.source.image_ids, sets[0].source.image_ids)
        assert np.array_equal(data.source.sizes, sets[0].source.sizes)
        truths = [json.loads(s.ground_truth.read_text()) for s in (sets[0], data)]
        assert truths[0]["images"] == truths[1]["images"]
        for one, other in zip(truths[0]["annotations"], truths[1]["annotations"], strict=True):
            np.testing.assert_allclose(one.pop("bbox"), other.pop("bbox"), atol=1e-3)
            assert abs(one.pop("area") - other.pop("area")) < 1  # TFDS keeps whole numbers
            drawn = [a.pop("segmentation", None) for a in (one, other)]
            assert drawn[0] == drawn[1] or data is sets[2] and drawn[1] is None  # and no outlines
            assert one == other


def test_objects_are_those_of_the_annotations(folders_dir, annotations, small_counts):
    input_pipelines.prepare("coco", folders_dir)
    source = opened(folders_dir).source
    pictures = {image["id"]: image for image in annotations["train"]["images"]}
    by_image = {}
    for a in annotations["train"]["annotations"]:
        by_image.setdefault(a["image_id"], []).append(a)
    assert len(by_image) == source.counts["train"] == 6
    for index, image_id in enumerate(sorted(by_image)):
        boxes, labels = source.objects(index)
        height, width = pictures[image_id]["height"], pictures[image_id]["width"]
        expected = []
        for a in by_image[image_id]:
            x, y, w, h = a["bbox"]
            if w > 0 and h > 0:
                label = 1 + sorted(coco.CATEGORY_IDS).index(a["category_id"])
                expected.append([max(x, 0) / width, y / height, (x + w) / width, (y + h) / height, label])
        found = np.concatenate([boxes, labels[:, None]], 1)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        jpeg = (folders_dir / "coco" / "train2017" / f"{image_id:012d}.jpg").read_bytes()
        assert np.array_equal(source.image("train", index), preprocessing.decode(jpeg, ""))


def test_pycocotools_reads_the_truth(folders_dir, annotations, small_counts):
    from pycocotools import coco as pycoco

    input_pipelines.prepare("coco", folders_dir)
    truth = pycoco.COCO(str(opened(folders_dir).ground_truth))
    assert sorted(truth.getImgIds()) == [1001, 1002, 1003, 1004]
    assert tuple(truth.getCatIds()) == coco.CATEGORY_IDS
    assert len(truth.anns) == len(annotations["eval"]["annotations"])
    assert len(truth.getAnnIds(iscrowd=True)) >= 1


def test_train_stream_is_the_same_for_any_processes_threads_workers_and_start(fake_dir):
    def batches(start, rows, **options):
        data = opened(fake_dir, fake=NUM_FAKE, **options)
        return data.train_batches(seed=5, batch_size=6, start_step=start, rows=rows)

    whole = take(batches(0, slice(0, 6)), 6)
    for start, rows, options in (
        (3, slice(0, 6), {"num_threads": 4}),
        (4, slice(2, 5), {}),
        (1, slice(0, 3), {"num_workers": 1}),
    ):
        for one, other in zip(take(batches(start, rows, **options), 2), whole[start:], strict=False):
            assert_equal(one, {name: value[rows] for name, value in other.items()})
    assert {n: (v.shape[1:], v.dtype) for n, v in whole[0].items()} == opened(
        fake_dir, fake=NUM_FAKE
    ).train_spec


def test_made_up_set_says_so_and_is_written_once(fake_dir):
    before = (fake_dir / f"coco_fake_{NUM_FAKE}" / "manifest.json").stat().st_mtime_ns
    assert "Fake COCO" in input_pipelines.prepare("coco", fake_dir, fake=NUM_FAKE, verify=True)
    assert (fake_dir / f"coco_fake_{NUM_FAKE}" / "manifest.json").stat().st_mtime_ns == before
    data = opened(fake_dir, fake=NUM_FAKE)
    assert data.fake and (data.num_train, data.num_eval) == (NUM_FAKE, 1)


def test_eval_images_are_whole_and_resized(folders_dir, annotations, small_counts):
    input_pipelines.prepare("coco", folders_dir)
    data = opened(folders_dir, image_size=120)
    parts = [list(data.eval_batches(batch_size=6, rows=rows)) for rows in (slice(0, 1), slice(1, 6))]
    both = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    assert both["mask"].tolist() == [1, 1, 1, 1, 0, 0] and both["image_id"].tolist()[:4] == [
        1001,
        1002,
        1003,
        1004,
    ]
    for row in range(4):
        (image,) = (i for i in annotations["eval"]["images"] if i["id"] == both["image_id"][row])
        assert both["size"][row].tolist() == [image["height"], image["width"]]
        jpeg = (folders_dir / "coco" / "val2017" / image["file_name"]).read_bytes()
        assert np.array_equal(
            both["image"][row], box_augmentation.resized(preprocessing.decode(jpeg, ""), 120)
        )
    assert np.array_equal(data.read_eval(np.array([3, 1]), ("image",))["image"], both["image"][[3, 1]])


def test_max_boxes_too_small_is_told(fake_dir):
    with pytest.raises(UserError, match="objects, more than --config.data.max_boxes=1;"):
        opened(fake_dir, fake=NUM_FAKE, max_boxes=1)


def test_absent_coco_tells_the_mend(tmp_path):
    for ask in (
        input_pipelines.prepare,
        lambda name, where: input_pipelines.open_dataset(name, where, OPTIONS),
    ):
        with pytest.raises(UserError, match="cocodataset.org.*--fake=N") as caught:
            ask("coco", tmp_path)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    with pytest.raises(UserError, match="no prepared data set in .*coco_fake_7"):
        input_pipelines.open_dataset("coco", tmp_path, OPTIONS | {"fake": 7})


def test_partial_coco_is_refused(folders_dir, tmp_path):
    shutil.copytree(folders_dir / "coco", tmp_path / "coco")
    with pytest.raises(UserError, match="has 7 train images where COCO 2017 has 118,287"):
        input_pipelines.prepare("coco", tmp_path)
    assert not (tmp_path / "coco2017").exists()


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("images"),
        lambda c: c.update(annotations=[7]),
        lambda c: c["images"][0].update(file_name="../../etc/passwd"),
        lambda c: c["images"][0].update(file_name="/etc/passwd"),
        lambda c: c["images"][0].update(file_name=None),
        lambda c: c["images"][0].update(id="1"),
        lambda c: c["images"][0].update(id=2**40),
        lambda c: c["images"][0].update(height=0),
        lambda c: c["images"][0].update(width=-5),
        lambda c: c["images"].append(c["images"][0]),
        lambda c: c["annotations"][0].update(image_id=77),
        lambda c: c["annotations"][0].update(category_id=12),
        lambda c: c["annotations"][0].update(category_id="dog"),
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]),
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "x"]),
        lambda c: c["images"][0].update(id=True),
        lambda c: c["images"][0].update(width=80.5),
        *(
            functools.partial(lambda change, c: c["annotations"][0].update(change), change)
            for change in (
                {"category_id": 1.5},
                {"category_id": True},
                {"category_id": "1"},
                {"category_id": float("nan")},
                {"category_id": 10**400},
                {"image_id": True},
                {"image_id": 1.5},
                {"bbox": [1, 2, 3, "4"]},
                {"bbox": [1, 2, 3, True]},
                {"bbox": [1, 2, -3, 4]},
                {"bbox": [1, 2, 3, -4]},
                {"bbox": [1, 2, float("inf"), 4]},
                {"area": float("nan")},
                {"area": -1},
                {"area": "1"},
                {"iscrowd": 2},
                {"iscrowd": "0"},
                {"iscrowd": None},
            )
        ),
    ],
)
def test_damaged_annotations_are_named(copy, change):
    path = copy / "coco" / "annotations" / "instances_train2017.json"
    edit(path, change)
    with pytest.raises(UserError, match=f"{path} is not an annotation file of COCO") as caught:
        input_pipelines.prepare("coco", copy)
    assert "\n" not in str(caught.value) and not (copy / "coco2017").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [-1]}, "a class that COCO lacks"),
        ({"label": [80]}, "a class that COCO lacks"),
        ({"bbox": [[0, 0, np.nan, 1]]}, "a box that is not a number"),
        ({"bbox": [[0.5, 0.5, 0.4, 1]]}, "a box of a negative size"),
        ({"area": [-1]}, "a box of a negative size"),
    ],
)
def test_damaged_objects_of_tfds_are_named(tfds_dir, small_counts, monkeypatch, change, message):
    read = coco_originals._TfdsRecords._example

    def damaged(records, split, row):
        example = read(records, split, row)
        if (split, row) == ("eval", 2):
            one = {"label": [0], "bbox": [[0, 0, 1, 1]], "area": [1], "is_crowd": [False]}
            example = example | {"objects": one | change}
        return example

    monkeypatch.setattr(coco_originals._TfdsRecords, "_example", damaged)
    original = coco_originals.find(tfds_dir)
    assert len(original.images("train")) == COUNTS["train"]
    with pytest.raises(
        UserError, match=f"eval record 2, is damaged .*{message}.*; prepare it again with TFDS"
    ):
        original.images("eval")


def test_boxes_of_no_size_or_that_reach_out_of_their_image_are_taken(copy):
    path = copy / "coco" / "annotations" / "instances_train2017.json"
    edit(path, lambda c: c["annotations"][0].update(bbox=[-3, 0.0, 10_000.5, 0], category_id=1.0))
    assert "6 train" in input_pipelines.prepare("coco", copy)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_named(copy, text):
    path = copy / "coco" / "annotations" / "instances_val2017.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=f"{path} is not an annotation file of COCO"):
        input_pipelines.prepare("coco", copy)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "000000000001.jpg cannot be read"),
        (lambda path: path.write_bytes(b"GIF89a"), "train image 1 is not a JPEG"),
        (lambda path: os.truncate(path, 2**27), "134,217,728 bytes are too many"),
    ],
)
def test_damaged_images_are_told_while_preparing(copy, damage, message):
    damage(copy / "coco" / "train2017" / "000000000001.jpg")
    with pytest.raises(UserError, match=message):
        input_pipelines.prepare("coco", copy)
    assert not (copy / "coco2017").exists()


def test_image_of_another_size_than_annotated_is_told(copy):
    path = copy / "coco" / "annotations" / "instances_train2017.json"
    edit(path, lambda c: next(i for i in c["images"] if i["id"] == 1).update(height=77))
    with pytest.raises(UserError, match="train image 1 is .* where its annotations say .*x77"):
        input_pipelines.prepare("coco", copy)


def test_hostile_archives_are_refused(zips_dir, tmp_path, small_counts):
    shutil.copytree(zips_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("coco2017", ".*"))
    archive = tmp_path / "copy" / "train2017.zip"
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="train2017.zip.*cannot be read"):
        input_pipelines.prepare("coco", tmp_path / "copy")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train2017/000000000001.jpg", bytes(2**26 + 1))
    with pytest.raises(UserError, match="67,108,865 bytes are too many"):
        input_pipelines.prepare("coco", tmp_path / "copy")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../train2017/000000000001.jpg", b"")
    with pytest.raises(UserError, match="cannot be read"):
        input_pipelines.prepare("coco", tmp_path / "copy")


def test_damaged_jpeg_is_named_when_its_batch_comes(copy):
    path = copy / "coco" / "val2017" / "000000001003.jpg"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    input_pipelines.prepare("coco", copy)
    with pytest.raises(UserError, match="coco2017, eval image 1003, is not a whole image"):
        list(opened(copy).eval_batches(batch_size=4, rows=slice(0, 4)))


def test_damage_to_the_prepared_set_is_told(fake_dir, tmp_path):
    folder = tmp_path / f"coco_fake_{NUM_FAKE}"
    shutil.copytree(fake_dir / folder.name, folder)
    (shard,) = folder.glob("train-*")
    with open(shard, "r+b") as file:
        file.write(bytes(5000))
    with pytest.raises(UserError, match="coco_fake_10") as caught:
        take(
            opened(tmp_path, fake=NUM_FAKE).train_batches(
                seed=0, batch_size=10, start_step=0, rows=slice(0, 10)
            ),
            1,
        )
    assert "\n" not in str(caught.value)
    (folder / "train_ends.npy").unlink()
    np.save(folder / "train_ends.npy", np.zeros(3))
    with pytest.raises(UserError, match="train_ends.npy has"):
        opened(tmp_path, fake=NUM_FAKE)


def test_synthetic_data_has_coco_s_shapes_and_counts(tmp_path):
    data = opened(tmp_path, synthetic=True)
    assert (data.num_train, data.num_eval, data.num_classes) == (117_266, 5_000, 81)
    (batch,) = take(data.train_batches(seed=0, batch_size=4, start_step=0, rows=slice(0, 4)), 1)
    assert {name: (v.shape[1:], v.dtype) for name, v in batch.items()} == data.train_spec
    assert {a["category_id"] for a in data.ground_truth["annotations"]} <= set(coco.CATEGORY_IDS)
