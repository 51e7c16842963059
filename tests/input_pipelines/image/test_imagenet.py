"""ImageNet's two forms, the made-up set, and what becomes of damage."""

import contextlib
import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import input_pipelines
from input_pipelines.image import imagenet, preprocessing
from mlperf_jax.errors import UserError

NUM_FAKE = 20
SMALL = {"synthetic": True, "image_size": 64, "num_eval": 4}


@pytest.fixture(scope="session")
def fake_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    input_pipelines.prepare("imagenet", data_dir, fake=NUM_FAKE)
    return data_dir


@pytest.fixture
def fake_copy(fake_dir, tmp_path):
    """A copy to damage."""
    shutil.copytree(fake_dir / f"imagenet_fake_{NUM_FAKE}", tmp_path / f"imagenet_fake_{NUM_FAKE}")
    return tmp_path


def opened(data_dir, **options):
    return input_pipelines.open_dataset("imagenet", data_dir, {"fake": NUM_FAKE, "num_threads": 2} | options)


def take(iterator, count):
    with contextlib.closing(iterator):
        return list(itertools.islice(iterator, count))


def concatenated(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def image_paths(data_dir, split):
    return sorted((data_dir / f"imagenet_fake_{NUM_FAKE}" / split).glob("*/*.JPEG"))


def test_fake_set_says_so_and_is_written_once(fake_dir):
    before = [path.stat().st_mtime_ns for path in image_paths(fake_dir, "train")]
    description = input_pipelines.prepare("imagenet", fake_dir, fake=NUM_FAKE, verify=True)
    assert [path.stat().st_mtime_ns for path in image_paths(fake_dir, "train")] == before
    data = opened(fake_dir)
    assert data.fake and "Fake ImageNet" in data.description
    assert description == f"{data.description}, in {fake_dir / f'imagenet_fake_{NUM_FAKE}'}"
    assert (data.num_train, data.num_eval) == (NUM_FAKE, 2)
    # The folder given by name is known for what it is, too.
    assert imagenet.open_dataset(fake_dir / f"imagenet_fake_{NUM_FAKE}", {}).fake


def test_batches_are_what_the_specs_say(fake_dir):
    data = opened(fake_dir)
    (train,) = take(data.train_batches(seed=0, batch_size=4, start_step=0, rows=slice(0, 4)), 1)
    (evaluation,) = list(data.eval_batches(batch_size=4, rows=slice(0, 4)))
    for spec, batch in ((data.train_spec, train), (data.eval_spec, evaluation)):
        assert {k: ((4, *shape), dtype) for k, (shape, dtype) in spec.items()} == {
            k: (v.shape, v.dtype) for k, v in batch.items()
        }


def test_image_size_is_the_config_s(fake_dir, tmp_path):
    for data in (opened(fake_dir, image_size=64), input_pipelines.open_dataset("imagenet", tmp_path, SMALL)):
        (train,) = take(data.train_batches(seed=0, batch_size=4, start_step=0, rows=slice(0, 4)), 1)
        (evaluation,) = list(data.eval_batches(batch_size=4, rows=slice(0, 4)))
        assert (
            train["image"].shape
            == evaluation["image"].shape
            == (4, *data.train_spec["image"][0])
            == (4, 64, 64, 3)
        )
    with pytest.raises(UserError, match="leave it at 28"):
        input_pipelines.open_dataset("fashion_mnist", tmp_path, {"image_size": 32})


def test_worker_processes_yield_the_same_and_name_the_damaged_file(fake_copy):
    def batches(**options):
        return opened(fake_copy, **options).train_batches(
            seed=5, batch_size=5, start_step=2, rows=slice(1, 4)
        )

    for one, other in zip(take(batches(), 5), take(batches(num_workers=2), 5), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    path = image_paths(fake_copy, "val")[1]
    path.write_bytes(bytes(path.stat().st_size))
    evaluation = opened(fake_copy, num_workers=1).eval_batches(batch_size=1, rows=slice(0, 1))
    with contextlib.closing(evaluation), pytest.raises(UserError, match=f"{path} is not a whole image"):
        list(evaluation)


def test_train_stream_is_the_same_for_any_processes_threads_and_start(fake_dir):
    steps, size = 8, 6  # Two epochs and more.
    whole = concatenated(
        take(
            opened(fake_dir).train_batches(seed=5, batch_size=size, start_step=0, rows=slice(0, size)), steps
        )
    )
    for start, processes, threads in ((0, 2, 1), (3, 3, 4), (7, 1, 3)):
        parts = [
            take(
                opened(fake_dir, num_threads=threads).train_batches(
                    seed=5,
                    batch_size=size,
                    start_step=start,
                    rows=slice(p * size // processes, (p + 1) * size // processes),
                ),
                steps - start,
            )
            for p in range(processes)
        ]
        joined = concatenated([part[i] for i in range(steps - start) for part in parts])
        for name, values in joined.items():
            assert np.array_equal(values, whole[name][start * size :])


def test_train_rows_are_the_images_and_labels_of_the_files(fake_dir):
    data = opened(fake_dir)
    batch = concatenated(
        take(data.train_batches(seed=5, batch_size=NUM_FAKE, start_step=1, rows=slice(0, NUM_FAKE)), 1)
    )
    paths = image_paths(fake_dir, "train")
    classes = sorted(path.name for path in (fake_dir / f"imagenet_fake_{NUM_FAKE}" / "train").iterdir())
    expected = {}
    for row in range(NUM_FAKE):
        for index, path in enumerate(paths):
            image = preprocessing.train_image(
                path.read_bytes(), "x", size=224, seed=5, position=NUM_FAKE + row
            )
            if np.array_equal(image, batch["image"][row]):
                expected[row] = index
        assert batch["label"][row] == classes.index(paths[expected[row]].parent.name)
    assert sorted(expected.values()) == list(range(NUM_FAKE))


def test_the_same_image_is_augmented_anew_in_each_epoch(fake_dir):
    data = opened(fake_dir)
    batches = take(data.train_batches(seed=5, batch_size=NUM_FAKE, start_step=0, rows=slice(0, NUM_FAKE)), 2)
    assert len({image.tobytes() for batch in batches for image in batch["image"]}) == 2 * NUM_FAKE


def test_eval_holds_every_image_once_in_any_split(fake_dir):
    expected = [
        preprocessing.eval_image(path.read_bytes(), "x", size=224) for path in image_paths(fake_dir, "val")
    ]
    parts = [
        concatenated(list(opened(fake_dir).eval_batches(batch_size=6, rows=rows)))
        for rows in (slice(0, 1), slice(1, 6))
    ]
    both = concatenated(parts)
    assert both["mask"].tolist() == [1, 1, 0, 0, 0, 0]
    assert np.array_equal(both["image"][:2], expected) and not both["image"][2:].any()


@pytest.fixture(scope="session")
def tfds_dir(fake_dir, tmp_path_factory):
    """The made-up set as TFDS's imagenet2012 in ArrayRecord format, in several shards."""
    import tensorflow_datasets as tfds

    class Imagenet2012(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=1000),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples("train"), "validation": self._generate_examples("val")}

        def _generate_examples(self, split):
            folder = fake_dir / f"imagenet_fake_{NUM_FAKE}"
            classes = sorted(path.name for path in (folder / split).iterdir())
            for path in image_paths(fake_dir, split):
                yield (
                    path.name,
                    {
                        "image": path.read_bytes(),
                        "label": classes.index(path.parent.name),
                        "file_name": path.name,
                    },
                )

    data_dir = tmp_path_factory.mktemp("tfds")
    builder = Imagenet2012(data_dir=data_dir, file_format="array_record")
    config = tfds.download.DownloadConfig(num_shards=2)
    builder.download_and_prepare(download_config=config)
    return data_dir


@pytest.fixture
def small_counts(monkeypatch):
    monkeypatch.setattr(imagenet, "NUM_TRAIN", NUM_FAKE)
    monkeypatch.setattr(imagenet, "NUM_EVAL", 2)


def test_tfds_holds_the_same_images_as_class_folders(fake_dir, tfds_dir, small_counts):
    data = imagenet.open_dataset(tfds_dir, {})
    assert not data.fake and (data.num_train, data.num_eval) == (NUM_FAKE, 2)
    folders, records = opened(fake_dir)._source, data._source
    for split in imagenet.SPLITS:
        wanted = {folders.read(split, i)[:2] for i in range(folders.counts[split])}
        assert {records.read(split, i)[:2] for i in range(records.counts[split])} == wanted
    assert "imagenet2012" in imagenet.prepare(tfds_dir, verify=True)
    (batch,) = take(data.train_batches(seed=0, batch_size=4, start_step=0, rows=slice(0, 4)), 1)
    assert batch["image"].shape == (4, 224, 224, 3)


def test_tfds_needs_no_tensorflow(tfds_dir, small_counts):
    import sys

    imagenet.open_dataset(tfds_dir, {})._source.read("train", 0)
    assert "tensorflow" not in sys.modules


def damaged_tfds(tfds_dir, tmp_path, damage):
    shutil.copytree(tfds_dir, tmp_path / "copy")
    (shard,) = (tmp_path / "copy").glob("imagenet2012/*/*train*-00001-of-00002")
    damage(shard)
    return tmp_path / "copy", shard


def test_missing_tfds_shard_is_named(tfds_dir, tmp_path, small_counts):
    copy, shard = damaged_tfds(tfds_dir, tmp_path, lambda shard: shard.unlink())
    with pytest.raises(UserError, match=f"{shard} is missing"):
        imagenet.open_dataset(copy, {})


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_truncated_tfds_shard_is_named(tfds_dir, tmp_path, small_counts, share):
    copy, shard = damaged_tfds(
        tfds_dir, tmp_path, lambda shard: os.truncate(shard, int(shard.stat().st_size * share))
    )
    with pytest.raises(UserError, match=shard.name) as caught:
        imagenet.prepare(copy, verify=True)
    assert "\n" not in str(caught.value)


def test_overwritten_tfds_record_is_named(tfds_dir, tmp_path, small_counts):
    def overwrite(shard):
        with open(shard, "r+b") as file:
            file.seek(shard.stat().st_size // 2)
            file.write(bytes(4000))

    copy, shard = damaged_tfds(tfds_dir, tmp_path, overwrite)
    with pytest.raises(UserError, match=f"{shard.name}, record"):
        imagenet.prepare(copy, verify=True)


@pytest.mark.parametrize("label", [-1, 1000])
def test_labels_of_no_class_are_named(tfds_dir, small_counts, label):
    source = imagenet.open_dataset(tfds_dir, {})._source
    source._records = {"train": [{"image": b"", "label": label}]}
    with pytest.raises(UserError, match=f"record 0, has the label {label}; prepare the data set again"):
        source.read("train", 0)


def test_damaged_tfds_metadata_is_named(tfds_dir, tmp_path, small_counts):
    copy, shard = damaged_tfds(
        tfds_dir, tmp_path, lambda shard: (shard.parent / "dataset_info.json").write_text("{")
    )
    with pytest.raises(UserError, match="is not a whole TFDS data set") as caught:
        imagenet.open_dataset(copy, {})
    assert "\n" not in str(caught.value)


def test_corrupt_jpeg_is_named_when_its_batch_comes(fake_copy):
    path = image_paths(fake_copy, "train")[7]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    batches = opened(fake_copy).train_batches(seed=0, batch_size=4, start_step=0, rows=slice(0, 4))
    with contextlib.closing(batches), pytest.raises(UserError, match=f"{path} is not a whole image"):
        for _ in range(NUM_FAKE // 4):
            next(batches)
    # Given by its own folder it is not rebuilt, but read like anybody's images.
    with pytest.raises(UserError, match=f"{path} is not a whole image"):
        imagenet.prepare(fake_copy / f"imagenet_fake_{NUM_FAKE}", verify=True)


def test_truncated_or_missing_fake_image_is_told_on_opening(fake_copy):
    path = image_paths(fake_copy, "train")[3]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{path} has .* bytes where its manifest says"):
        opened(fake_copy)
    path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing"):
        opened(fake_copy)


def test_image_that_vanishes_while_training_is_named(fake_copy):
    data = opened(fake_copy)
    for path in image_paths(fake_copy, "val"):
        path.unlink()
    with pytest.raises(UserError, match="val/.*JPEG cannot be read"):
        list(data.eval_batches(batch_size=2, rows=slice(0, 2)))


def test_absent_or_partial_imagenet_tells_the_mend(tmp_path, fake_dir):
    with pytest.raises(UserError, match="ImageNet is not in .*--fake=N") as caught:
        imagenet.prepare(tmp_path)
    assert "\n" not in str(caught.value)
    shutil.copytree(fake_dir / f"imagenet_fake_{NUM_FAKE}", tmp_path / "imagenet")
    (tmp_path / "imagenet" / "manifest.json").unlink()
    with pytest.raises(UserError, match="has 20 train images where ImageNet has 1,281,167"):
        imagenet.prepare(tmp_path)
    (tmp_path / "imagenet" / "val" / "n99999999").mkdir()
    with pytest.raises(UserError, match="n99999999 is a class that .* lacks"):
        imagenet.prepare(tmp_path)
    shutil.rmtree(tmp_path / "imagenet" / "train" / "n00000000")
    with pytest.raises(UserError, match="has 999 class folders"):
        imagenet.prepare(tmp_path)
    with pytest.raises(UserError, match="no prepared data set in .*imagenet_fake_7"):
        imagenet.open_dataset(tmp_path, {"fake": 7})


def test_full_disk_while_writing_the_fake_set(tmp_path, monkeypatch):
    from pathlib import Path

    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="disk is full at .*JPEG"):
        input_pipelines.prepare("imagenet", tmp_path, fake=8)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_unknown_data_set_lists_those_there_are(tmp_path):
    with pytest.raises(UserError, match="no data set 'imagnet'; there are .*fashion_mnist.*imagenet"):
        input_pipelines.open_dataset("imagnet", tmp_path, {})


@pytest.mark.parametrize("name", ["fashion_mnist", "imagenet"])
def test_synthetic_data_has_the_real_shapes_and_needs_no_files(tmp_path, name):
    data = input_pipelines.open_dataset(name, tmp_path, {"synthetic": True, "num_eval": 10})
    assert data.fake and "synthetic" in data.description
    assert data.num_train == {"fashion_mnist": 60_000, "imagenet": 1_281_167}[name] and data.num_eval == 10
    rows = [
        take(data.train_batches(seed=1, batch_size=4, start_step=2, rows=r), 1)[0]
        for r in (slice(0, 4), slice(2, 4))
    ]
    assert np.array_equal(rows[0]["image"][2:], rows[1]["image"])
    assert {k: (v.shape[1:], v.dtype) for k, v in rows[0].items()} == data.train_spec
    masks = [batch["mask"] for batch in data.eval_batches(batch_size=4, rows=slice(0, 4))]
    assert np.concatenate(masks).sum() == 10


def test_eval_examples_are_read_one_by_one_as_in_batches(fake_dir):
    dataset = opened(fake_dir)
    count = dataset.num_eval
    (whole,) = take(dataset.eval_batches(batch_size=count, rows=slice(0, count)), 2)
    indices = np.random.default_rng(0).integers(count, size=7)
    read = dataset.read_eval(indices, ("label", "image"))
    assert read.keys() == {"image", "label"}
    for name, values in read.items():
        np.testing.assert_array_equal(values, whole[name][indices])
    assert dataset.read_eval(indices, ("label",)).keys() == {"label"}


def bare(folder, classes=1000):
    """A train/ of empty classes and a val/ with nothing."""
    for i in range(classes):
        (folder / "train" / f"n{i:08}").mkdir(parents=True)
    (folder / "val").mkdir()
    return folder


def test_unsorted_images_are_told_with_how_to_sort_them(tmp_path):
    folder = bare(tmp_path / "imagenet")
    for i in range(3):
        (folder / "val" / f"ILSVRC2012_val_{i:08}.JPEG").write_bytes(b"")
    (folder / "val" / ".DS_Store").write_bytes(b"")
    said = r"val has no class folders; its 3 images lie there unsorted: move each into .*val/<wnid>.*docs/data.md"
    with pytest.raises(UserError, match=said):
        imagenet.open_dataset(tmp_path, {})


def test_classes_that_are_still_packed_are_told(tmp_path):
    folder = bare(tmp_path / "imagenet", classes=2)
    (folder / "train" / "n00000003.tar").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"2 class folders where ImageNet has 1000; it has 1 archives: unpack each"
    ):
        imagenet.open_dataset(tmp_path, {})


def test_what_docs_show_sorts_them(tmp_path):
    """The shell's lines of docs/data.md, on three images."""
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    (script,) = re.findall(r"```\n(paste .*?)```", text, re.DOTALL)
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text("n02\nn01\nn02\n")
    for i in range(1, 4):
        (tmp_path / f"ILSVRC2012_val_{i:08}.JPEG").write_bytes(b"")
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*"))
    assert found == [f"n0{c}/ILSVRC2012_val_{i:08}.JPEG" for c, i in ((1, 2), (2, 1), (2, 3))]


def test_names_that_begin_with_a_dot_and_pipes_are_no_images(fake_copy):
    before = opened(fake_copy)
    folder = fake_copy / f"imagenet_fake_{NUM_FAKE}"
    for split in ("train", "val"):
        image = image_paths(fake_copy, split)[0]
        (image.parent / f"._{image.name}").write_bytes(b"another system's notes")
        os.mkfifo(image.parent / "a.JPEG")
        (image.parent / "folder.JPEG").mkdir()
        (folder / split / ".ipynb_checkpoints").mkdir()
    after = opened(fake_copy)
    assert (after.num_train, after.num_eval) == (before.num_train, before.num_eval)
    one, other = ({k: v for k, v in data.read_train(0, 9, 3).items()} for data in (before, after))
    assert all(np.array_equal(one[name], other[name]) for name in one)
