"""Images with masks in few shapes: the stream, its batches, masks and truth of COCO and of composites."""

import contextlib
import itertools
import json
import pickle
import shutil

import numpy as np
import pytest

import input_pipelines
from input_pipelines import base
from input_pipelines.bucketed import batch_of_a_bucket
from input_pipelines.image import boxed_jpegs, coco, coco_originals, composites, outlines
from mlperf_jax.errors import UserError
from tests.input_pipelines.image.test_composites import arrays, data_dir, objects_in  # noqa: F401  a fixture

pycocotools_mask = pytest.importorskip("pycocotools.mask")

NUM_FAKE = 24
OPTIONS = {"shorter": 80, "longest": 133, "longer": (128, 160), "max_boxes": 100, "num_threads": 2}
SMALL = {"shorter": 64, "longest": 64, "longer": (64,), "max_boxes": 4, "num_threads": 1}


def small_photograph(random, label, size):
    return np.full((*size, 3), random.integers(1, 256, size=3), np.uint8)


@pytest.fixture(scope="module")
def fake_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco_masks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco.fake_images, "photograph", small_photograph)
        input_pipelines.prepare("coco_masks", folder, fake=NUM_FAKE)
    return folder


def opened(folder, **options):
    return input_pipelines.open_dataset("coco_masks", folder, OPTIONS | {"fake": NUM_FAKE} | options)


def take(iterator, count):
    with contextlib.closing(iterator):
        return list(itertools.islice(iterator, count))


# Batches of one shape.


@pytest.mark.parametrize("seed", range(6))
def test_batches_are_those_of_queues_that_become_full(seed):
    """Against a queue for each bucket, filled in the order of the stream; more epochs than a small bucket's batch."""
    random = np.random.default_rng(seed)
    size, count = int(random.integers(2, 9)), int(random.integers(9, 40))
    of = random.choice(4, count, p=[0.5, 0.3, 0.15, 0.05])
    expected, waiting = [], {}
    for position in range(30 * count):
        example = base.examples_at(np.array([position]), seed=seed, num_examples=count)[0]
        waiting.setdefault(of[example], []).append(position)
        if len(waiting[of[example]]) == size:
            expected.append(waiting.pop(of[example]))
    steps = len(expected) * 9 // 10
    found = [batch_of_a_bucket(step, of, seed=seed, batch_size=size) for step in range(steps)]
    np.testing.assert_array_equal(found, expected[:steps])


def test_one_bucket_is_the_plain_stream():
    found = [batch_of_a_bucket(step, np.zeros(10, int), seed=3, batch_size=4) for step in range(9)]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(36))


def test_train_stream_is_the_same_for_any_processes_threads_workers_and_start(fake_dir):
    def batches(start, rows, **options):
        return opened(fake_dir, **options).train_batches(seed=5, batch_size=4, start_step=start, rows=rows)

    whole = take(batches(0, slice(0, 4)), 9)
    assert len({batch["image"].shape for batch in whole}) > 1
    for start, rows, options in (
        (3, slice(0, 4), {"num_threads": 3}),
        (7, slice(1, 3), {}),
        (2, slice(2, 4), {"num_workers": 1}),
    ):
        for one, other in zip(take(batches(start, rows, **options), 2), whole[start:], strict=False):
            assert all(np.array_equal(one[name], other[name][rows]) for name in other)
    spec = opened(fake_dir).train_spec
    for batch in whole:
        assert batch["image"].shape[1:3] in opened(fake_dir).shapes
        assert {n: (v.shape[1:], v.dtype) for n, v in batch.items() if n != "image"} == {
            n: one for n, one in spec.items() if n != "image"
        }


def test_images_keep_their_aspect_and_are_nothing_beyond(fake_dir):
    data = opened(fake_dir)
    for batch in take(data.train_batches(seed=0, batch_size=3, start_step=0, rows=slice(0, 3)), 6):
        for image, (height, width) in zip(batch["image"], batch["extent"].tolist(), strict=True):
            assert min(height, width) == 80 or max(height, width) in (132, 133)
            assert image[:height, :width].all() and not image[height:].any() and not image[:, width:].any()


def test_flips_swap_left_and_right_of_boxes_and_masks_too(fake_dir):
    """And crowds are not trained on."""
    data = opened(fake_dir)
    examples = base.examples_at(np.arange(NUM_FAKE), seed=1, num_examples=NUM_FAKE)
    batch = data.read_train(0, NUM_FAKE, seed=1)
    original = coco_originals.MadeUp({"train": NUM_FAKE, "eval": 3}, small_photograph, outlined=True)
    listing = [image for image in original.images("train") if len(image.boxes)]
    flips, crowds = 0, 0
    for row, example in enumerate(examples.tolist()):
        image = listing[example]
        crowds += image.crowds.sum()
        single = ~image.crowds & (image.boxes[:, 2:] > 0).all(1)
        corners = np.concatenate([image.boxes[:, :2], image.boxes[:, :2] + image.boxes[:, 2:]], 1)[single]
        wanted = (corners / ([image.width, image.height] * 2)).clip(0, 1)
        found = batch["boxes"][row][: len(wanted)]
        assert (batch["labels"][row] > 0).sum() == len(wanted)
        flipped = not np.allclose(found, wanted, atol=1e-6)
        flips += flipped
        if flipped:
            found = found[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        masks = np.unpackbits(batch["masks"][row][: len(wanted)], axis=-1)
        if flipped:
            masks = masks[..., ::-1]
        expected = [
            outlines.bits_of_polygons([outlines.ellipse(box)], box, outlines.CELLS) for box in corners
        ]
        assert all(
            (mask != np.unpackbits(bits, axis=-1)).mean() < 0.02
            for mask, bits in zip(masks, expected, strict=True)
        )
    assert 0 < flips < NUM_FAKE


# Evaluation.


def test_each_eval_example_is_read_once_shape_by_shape(fake_dir):
    data = opened(fake_dir)
    for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
        ids, sizes = [], []
        for batch in data.eval_batches(batch_size=2, rows=rows):
            real = batch["mask"] > 0
            index = np.flatnonzero(np.isin(data.source.image_ids, batch["image_id"][real]))
            assert batch["image"].shape[1:3] in data.shapes
            assert set(data.eval_shape(index)) <= {batch["image"].shape[1:3]}
            ids += batch["image_id"][real].tolist()
            sizes += batch["size"][real].tolist()
            for one in np.flatnonzero(real):
                alone = data.read_eval(
                    np.flatnonzero(data.source.image_ids == batch["image_id"][one]), ("image", "extent")
                )
                assert all(np.array_equal(alone[name][0], batch[name][one]) for name in alone)
        if rows == slice(0, 2):
            assert sorted(ids) == data.source.image_ids.tolist()
            assert all(tuple(size) in {(480, 640), (640, 480), (427, 640), (640, 426)} for size in sizes)


def test_pycocotools_reads_outlines_of_the_truth(fake_dir):
    from pycocotools import coco as pycoco

    truth = pycoco.COCO(str(opened(fake_dir).ground_truth))
    for annotation in truth.anns.values():
        mask = truth.annToMask(annotation)
        left, top, width, height = annotation["bbox"]
        inside = mask[int(top) : int(top + height) + 2, int(left) : int(left + width) + 2]
        assert mask.sum() == inside.sum()
        if width > 20 and height > 20:
            expected = width * height * (1 if annotation["iscrowd"] else np.pi / 4)
            assert mask.sum() == pytest.approx(expected, rel=0.15)


def test_runs_of_a_crowd_are_cocos():
    random = np.random.default_rng(0)
    for box in ([0, 0, 4, 3], [2, 1, 3, 2], [5, 4, 2, 3], [0, 2, 7, 4]):
        runs = coco_originals.rectangle_runs(np.array(box, float), 7, 9)
        mask = pycocotools_mask.decode(pycocotools_mask.frPyObjects(runs, 7, 9))
        expected = np.zeros((7, 9), np.uint8)
        expected[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
        np.testing.assert_array_equal(mask, expected)
    whole = outlines.run_lengths(random.random((7, 9)) < 0.5)
    assert whole["size"] == [7, 9] and isinstance(whole["counts"], str)


def annotation_file(**changes):
    one = {
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 1, 4, 4],
        "area": 9,
        "iscrowd": 0,
        "segmentation": [[1, 1, 5, 1, 5, 5]],
    }
    image = {"id": 1, "height": 10, "width": 10, "file_name": "1.jpg"}
    return json.dumps({"images": [image], "annotations": [one | changes]}).encode()


def test_outlines_that_are_none_are_refused():
    read = coco_originals.parse_annotations(annotation_file(), "here", outlined=True)
    assert read[0].outlines[0][0].tolist() == [[1, 1], [5, 1], [5, 5]]
    assert coco_originals.parse_annotations(annotation_file(), "here")[0].outlines is None
    runs = {"size": [10, 10], "counts": [40, 60]}
    assert coco_originals.parse_annotations(
        annotation_file(segmentation=runs, iscrowd=1), "here", outlined=True
    )
    for wrong in (
        {"segmentation": []},
        {"segmentation": [[1, 2, 3]]},
        {"segmentation": [[1, 2]]},
        {"segmentation": [[1, 2, "3", 4]]},
        {"segmentation": [[1, 2, float("nan"), 4]]},
        {"segmentation": "x"},
        {"segmentation": 3},
        {"segmentation": runs},
        {"segmentation": {"size": [10, 10], "counts": [40, 61]}, "iscrowd": 1},
        {"segmentation": {"size": [9, 10], "counts": [30, 60]}, "iscrowd": 1},
        {"segmentation": {"size": [10, 10], "counts": [-40, 140]}, "iscrowd": 1},
        {"segmentation": {"size": [10, 10], "counts": "abc"}, "iscrowd": 1},
        {"segmentation": {}, "iscrowd": 1},
    ):
        with pytest.raises(UserError, match="here is not an annotation file of COCO"):
            coco_originals.parse_annotations(annotation_file(**wrong), "here", outlined=True)


def test_sets_without_masks_are_told(fake_dir, tmp_path):
    with pytest.raises(UserError, match="not prepared in .* --workload=maskrcnn --fake=N"):
        opened(tmp_path, fake=0)
    folder = f"coco_fake_{NUM_FAKE}"
    shutil.copytree(fake_dir / folder, tmp_path / folder)
    (tmp_path / folder / boxed_jpegs.MASKS).unlink()
    with pytest.raises(UserError, match="was prepared without masks; prepare it again"):
        opened(tmp_path)
    with pytest.raises(UserError, match="more than --config.data.max_boxes=2"):
        opened(fake_dir, max_boxes=2)
    with pytest.raises(UserError, match="--config.data.longer makes no sense"):
        opened(fake_dir, longer=(160, 128))


def test_a_worker_s_copy_of_the_source_opens_the_files_anew(fake_dir):
    source = opened(fake_dir).source
    small = pickle.dumps(source)
    assert len(small) < 1000
    for one, other in zip(pickle.loads(small).masked_objects(3), source.masked_objects(3), strict=True):
        np.testing.assert_array_equal(one, other)


def test_synthetic_data_has_the_same_shapes_and_a_truth_of_its_own(tmp_path):
    data = input_pipelines.open_dataset(
        "coco_masks", tmp_path, OPTIONS | {"synthetic": True, "num_train": 30, "num_eval": 9}
    )
    assert data.fake and (data.num_train, data.num_eval) == (30, 9) and data.num_classes == 81
    (batch,) = take(data.train_batches(seed=0, batch_size=2, start_step=0, rows=slice(0, 2)), 1)
    assert (batch["labels"] > 0).any(1).all() and batch["masks"].any((1, 2, 3)).all()
    ids = [i for b in data.eval_batches(batch_size=4, rows=slice(0, 4)) for i in b["image_id"][b["mask"] > 0]]
    assert sorted(ids) == list(range(9)) == [image["id"] for image in data.ground_truth["images"]]


# Composites.


def test_masks_are_what_is_seen_of_each_object(data_dir):  # noqa: F811
    """Stamps' colours tell what is seen, but for their rims, which are blended with what is behind them."""
    images, boxes, labels = arrays(data_dir, "train")
    masks = np.load(data_dir / "composites" / composites.MASKS)
    hidden = 0
    for image, some_boxes, some_labels, some_masks in zip(images, boxes, labels, masks, strict=True):
        for box, label, bits in zip(some_boxes, some_labels, some_masks, strict=True):
            if not label:
                assert not bits.any()
                continue
            if (some_labels == label).sum() > 1:
                continue
            (seen,) = objects_in(image, label).values()
            corners = np.round(box * composites.SIZE)
            expected = np.unpackbits(outlines.bits_of_pixels(seen, corners, outlines.CELLS), axis=-1)
            grid = np.unpackbits(bits, axis=-1)
            assert (grid != expected).mean() < 0.15
            assert not (expected > grid).any()  # what has the object's own colour is in its mask
            hidden += grid.mean() < 0.7  # an ellipse alone has .79 of its box
    assert hidden  # behind another


def test_the_truth_of_composites_has_their_masks(data_dir):  # noqa: F811
    truth = json.loads((data_dir / "composites" / "eval.json").read_text())
    images = np.load(data_dir / "composites" / "eval_image.npy")
    for annotation in truth["annotations"]:
        mask = pycocotools_mask.decode(annotation["segmentation"]).astype(bool)
        rows, columns = np.nonzero(mask)
        left, top, width, height = annotation["bbox"]
        assert (columns.min(), rows.min()) == (left, top)
        assert (columns.max() + 1 - left, rows.max() + 1 - top) == (width, height)
        assert mask.sum() == annotation["area"]
        own = objects_in(images[annotation["image_id"]], annotation["category_id"]).values()
        assert any((mask & seen).sum() > 0.6 * mask.sum() for seen in own)


def test_composites_prepared_without_masks_are_made_again(data_dir, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "composites"
    shutil.copytree(data_dir / "composites", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][composites.MASKS]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / composites.MASKS).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        input_pipelines.open_dataset("composites_masks", tmp_path, SMALL)
    assert input_pipelines.prepare("composites", tmp_path).startswith("composites of 6 classes")
    assert not (folder / composites.MASKS).exists()

    def build(folder, *, manual):
        raise UserError("made again")

    monkeypatch.setattr(composites, "_build", build)
    with pytest.raises(UserError, match="made again"):
        input_pipelines.prepare("composites_masks", tmp_path)


def test_composites_are_batches_of_one_shape(data_dir):  # noqa: F811
    data = input_pipelines.open_dataset("composites_masks", data_dir, SMALL)
    (batch,) = take(data.train_batches(seed=0, batch_size=8, start_step=0, rows=slice(0, 8)), 1)
    assert {name: (v.shape[1:], v.dtype) for name, v in batch.items()} == data.train_spec
    assert data.shapes == [(64, 64)] and (batch["extent"] == 64).all()
