"""Composites from made-up stamps whose colours tell them apart, and Qt's bundles against hand-made ones."""

import contextlib
import hashlib
import io
import itertools
import json
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import input_pipelines
from input_pipelines import fetch
from input_pipelines.image import box_augmentation, composites, qt_resources
from mlperf_jax.errors import UserError

OPTIONS = {"image_size": 96, "max_boxes": 8, "crop_attempts": 1, "num_threads": 1}
PER_CLASS = 5


def encoded(pixels, file_format):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, file_format, lossless=True)
    return stream.getvalue()


def qt_bundle(files):
    """A version 3 bundle: the root holds folder "a", which holds the files, name -> (flags, content)."""
    names, data, nodes = b"", b"", []

    def name(text):
        nonlocal names
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return len(names) - 6 - 2 * len(text)

    nodes.append(struct.pack(">IHIIQ", 0, 2, 1, 1, 0))
    nodes.append(struct.pack(">IHIIQ", name("a"), 2, len(files), 2, 0))
    for text, (flags, content) in files.items():
        nodes.append(struct.pack(">IHIIQ", name(text), flags, 0, len(data), 0))
        data += struct.pack(">I", len(content)) + content
    start = 24
    tree = b"".join(nodes)
    header = b"qres" + struct.pack(">5I", 3, start, start + len(tree), start + len(tree) + len(data), 0)
    return header + tree + data + names


def test_bundles_are_read_and_compressed_files_passed_over():
    files = {"x.webp": (0, b"XX"), "y.txt": (1, zlib.compress(b"text")), "ü.webp": (0, b"")}
    assert qt_resources.parse(qt_bundle(files)) == {"/a/x.webp": b"XX", "/a/ü.webp": b""}


def test_damaged_bundles_are_refused():
    good = qt_bundle({"x": (0, b"content")})
    looped = bytearray(good)
    looped[24 + 22 + 10 : 24 + 22 + 14] = struct.pack(">I", 0)  # the folder's first file is the root
    huge = bytearray(good)
    huge[24 + 6 : 24 + 10] = struct.pack(">I", 2**32 - 1)
    for bad in (b"", b"qres", b"PK" + good, good[:40], good[:-1], bytes(looped), bytes(huge)):
        with pytest.raises(ValueError, match="Qt resource bundle"):
            qt_resources.parse(bad)
    for cut in range(len(good)):
        with contextlib.suppress(ValueError):
            qt_resources.parse(good[:cut])


def colour(label, index):
    """Of an object; no two are alike, and all are far from the places' greys."""
    return np.array([[40 * label, 255 - 40 * label, 20 + 30 * index]], np.uint8)[0]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A prepared set of 40 + 12 scenes: each object is an ellipse of its own colour, each place one grey."""
    data_dir = tmp_path_factory.mktemp("composites")
    stamps, places = data_dir / "manual/tuxpaint-stamps-default", data_dir / "manual/gcompris-qt-data"
    for label, folders in enumerate(composites.CLASSES.values(), 1):
        for index in range(PER_CLASS):
            y, x = np.mgrid[-1:1:50j, -1 : 1 : 1j * (40 + 10 * index)]
            alpha = (255 * (y**2 + x**2 < 1)).astype(np.uint8)
            pixels = np.dstack([np.full((*alpha.shape, 3), colour(label, index)), alpha]).astype(np.uint8)
            path = stamps / folders[0] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(pixels, "PNG"))
            if index == 0:
                path.with_name("0_mirror.png").write_bytes(encoded(pixels[:, ::-1], "PNG"))
    places.mkdir(parents=True)
    for part, name in enumerate(composites._BUNDLES):
        greys = [10 * (3 * part + index) for index in range(3)]
        files = {
            f"{grey}.webp": (0, encoded(np.full((150, 200, 3), grey, np.uint8), "WEBP")) for grey in greys
        }
        files["clear.webp"] = (0, encoded(np.zeros((150, 200, 4), np.uint8), "WEBP"))
        files["small.webp"] = (0, encoded(np.zeros((90, 200, 3), np.uint8), "WEBP"))
        (places / f"{name}.rcc").write_bytes(qt_bundle(files))
    with pytest.MonkeyPatch.context() as patch:
        pin_to(patch, stamps, places)
        assert composites.prepare(data_dir).startswith("composites of 6 classes, 40 train and 12 eval")
    return data_dir


def pin_to(patch, stamps, places):
    for name, folder in (("STAMPS", stamps), ("PLACES", places)):
        tree = getattr(composites, name)
        files = dict(sorted(fetch.folder_tree(folder).read(tree.patterns, folder).items()))
        patch.setattr(composites, name, fetch.PinnedTree(tree.patterns, len(files), digest(files)))
    patch.setattr(composites, "NUM_TRAIN", 40)
    patch.setattr(composites, "NUM_EVAL", 12)


def digest(files):
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in files.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def arrays(data_dir, split):
    fields = ("image", "boxes", "labels")
    return [np.load(data_dir / "composites" / f"{split}_{field}.npy") for field in fields]


def objects_in(image, label):
    """The objects of a class whose colour some pixels have: index -> mask."""
    masks = {index: (image == colour(label, index)).all(-1) for index in range(PER_CLASS)}
    return {index: mask for index, mask in masks.items() if mask.sum() > 5}


def test_boxes_enclose_what_is_seen_of_their_objects(data_dir):
    for split in ("train", "eval"):
        for image, boxes, labels in zip(*arrays(data_dir, split), strict=True):
            assert 1 <= (labels > 0).sum() <= composites.MAX_OBJECTS
            for box, label in zip(boxes, labels, strict=True):
                if not label:
                    assert not box.any()
                    continue
                extents = []
                for mask in objects_in(image, label).values():
                    rows, columns = np.nonzero(mask)
                    extents.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                # The rim is blended with what is behind it; two of the same object may show as one.
                distances = np.abs(np.array(extents) - box * composites.SIZE).max(1)
                same = sum(labels == label) > 1
                assert same or distances.min() <= 4


def test_held_out_objects_and_places_are_never_trained_on(data_dir):
    seen = {split: set() for split in ("train", "eval")}
    places = {split: set() for split in ("train", "eval")}
    for split in seen:
        for image in arrays(data_dir, split)[0]:
            places[split].add(int(image[..., 0][(image == image[..., :1]).all(-1)].min()))
            for label in range(1, len(composites.CLASSES) + 1):
                seen[split] |= {(label, index) for index in objects_in(image, label)}
    assert seen["train"] and seen["eval"] and not seen["train"] & seen["eval"]
    assert {index for _, index in seen["eval"]} <= {0, 4}
    assert not places["train"] & places["eval"]


def test_pycocotools_reads_the_truth_and_finds_the_boxes_perfect(data_dir, capsys):
    from pycocotools import coco, cocoeval

    data = input_pipelines.open_dataset("composites", data_dir, OPTIONS)
    assert data.num_classes == 7 and data.category_ids == (0, 1, 2, 3, 4, 5, 6)
    truth = coco.COCO(str(data.ground_truth))
    batches = list(data.eval_batches(batch_size=5, rows=slice(0, 5)))
    ids = np.concatenate([b["image_id"] for b in batches])[:12]
    sizes = np.concatenate([b["size"] for b in batches])[:12]
    assert sorted(truth.getImgIds()) == ids.tolist() == list(range(12))
    assert all(
        (truth.imgs[i]["height"], truth.imgs[i]["width"]) == tuple(s) for i, s in zip(ids, sizes, strict=True)
    )
    _, boxes, labels = arrays(data_dir, "eval")
    results = [
        [i, *(box[:2] * 128), *((box[2:] - box[:2]) * 128), 0.9, data.category_ids[label]]
        for i, some, classes in zip(ids, boxes, labels, strict=True)
        for box, label in zip(some, classes, strict=True)
        if label
    ]
    judge = cocoeval.COCOeval(truth, truth.loadRes(np.array(results)), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judge.stats[0] == 1.0


def take(iterator, count):
    with contextlib.closing(iterator):
        return list(itertools.islice(iterator, count))


def test_train_stream_is_the_same_for_any_processes_threads_and_start(data_dir):
    def batches(start, rows, **options):
        data = input_pipelines.open_dataset("composites", data_dir, OPTIONS | options)
        return data.train_batches(seed=5, batch_size=6, start_step=start, rows=rows)

    whole = take(batches(0, slice(0, 6)), 9)
    for start, rows, options in (
        (3, slice(0, 6), {"num_threads": 3}),
        (7, slice(2, 5), {}),
    ):
        for one, other in zip(take(batches(start, rows, **options), 2), whole[start:], strict=False):
            assert all(np.array_equal(one[name], other[name][rows]) for name in other)
    assert {name: (v.shape[1:], v.dtype) for name, v in whole[0].items()} == input_pipelines.open_dataset(
        "composites", data_dir, OPTIONS
    ).train_spec


def test_a_worker_s_copy_of_the_source_maps_the_files_anew(data_dir):
    source = input_pipelines.open_dataset("composites", data_dir, OPTIONS).source
    small = pickle.dumps(source)
    assert len(small) < 1000
    for split, index in (("train", 3), ("eval", 11)):
        assert np.array_equal(pickle.loads(small).image(split, index), source.image(split, index))


def test_train_rows_are_augmented_scenes_and_padding_is_zero(data_dir):
    data = input_pipelines.open_dataset("composites", data_dir, OPTIONS)
    (batch,) = take(data.train_batches(seed=1, batch_size=40, start_step=0, rows=slice(0, 40)), 1)
    images, boxes, labels = arrays(data_dir, "train")
    order = input_pipelines.base.examples_at(np.arange(40), seed=1, num_examples=40)
    assert sorted(order) == list(range(40))
    for row, example in enumerate(order):
        out = np.zeros((96, 96, 3), np.uint8)
        real = labels[example] > 0
        some, classes = box_augmentation.train_image(
            images[example],
            boxes[example][real],
            labels[example][real],
            size=96,
            seed=1,
            position=row,
            attempts=1,
            out=out,
        )
        assert np.array_equal(batch["image"][row], out)
        assert (
            np.array_equal(batch["boxes"][row][: len(some)], some)
            and not batch["boxes"][row][len(some) :].any()
        )
        assert batch["labels"][row].tolist() == classes.tolist() + [0] * (8 - len(classes))


def test_eval_examples_are_read_one_by_one_as_in_batches(data_dir):
    data = input_pipelines.open_dataset("composites", data_dir, OPTIONS)
    (whole,) = list(data.eval_batches(batch_size=12, rows=slice(0, 12)))
    read = data.read_eval(np.array([7, 0, 7]), ("image", "size", "image_id"))
    assert all(np.array_equal(read[name], whole[name][[7, 0, 7]]) for name in read) and len(read) == 3
    assert set(data.read_eval(np.array([1]), ("size",))) == {"size"}


def test_options_that_make_no_sense_are_refused(data_dir, tmp_path):
    for wrong in ({"image_size": 0}, {"max_boxes": -1}, {"crop_attempts": 0}):
        with pytest.raises(UserError, match=f"--config.data.{next(iter(wrong))}="):
            input_pipelines.open_dataset("composites", data_dir, OPTIONS | wrong)
    with pytest.raises(UserError, match="4 objects, more than --config.data.max_boxes=3"):
        input_pipelines.open_dataset("composites", data_dir, OPTIONS | {"max_boxes": 3})
    with pytest.raises(UserError, match="no prepared data set"):
        input_pipelines.open_dataset("composites", tmp_path, OPTIONS)
    with pytest.raises(UserError, match="leave --fake out"):
        input_pipelines.prepare("composites", tmp_path, fake=4)


def test_synthetic_data_has_the_same_shapes_and_a_truth_of_its_own(tmp_path):
    from pycocotools import coco

    options = OPTIONS | {"synthetic": True, "num_eval": 100}
    data = input_pipelines.open_dataset("composites", tmp_path, options)
    assert data.fake and data.num_train == 6000 and data.num_eval == 100
    (batch,) = take(data.train_batches(seed=0, batch_size=70, start_step=0, rows=slice(0, 70)), 1)
    assert {name: (v.shape[1:], v.dtype) for name, v in batch.items()} == data.train_spec
    real = batch["labels"] > 0
    assert real.any() and batch["labels"].max() < data.num_classes
    assert ((batch["boxes"][..., 2:] > batch["boxes"][..., :2]).all(-1) == real).all()
    (evaluation,) = list(data.eval_batches(batch_size=100, rows=slice(0, 100)))
    assert {name: (v.shape[1:], v.dtype) for name, v in evaluation.items()} == data.eval_spec
    truth = coco.COCO()
    truth.dataset = json.loads(json.dumps(data.ground_truth))
    truth.createIndex()
    assert sorted(truth.getImgIds()) == evaluation["image_id"].tolist()
    assert set(truth.getCatIds()) == set(data.category_ids[1:])
