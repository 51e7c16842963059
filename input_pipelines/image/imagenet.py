"""ImageNet (ILSVRC 2012): 1,281,167 train and 50,000 eval JPEGs of 1,000 classes.

Read in either of the forms that people have it in:
  class folders   DATA_DIR/imagenet/train/<wnid>/*.JPEG and DATA_DIR/imagenet/val/<wnid>/*.JPEG
  TFDS            DATA_DIR/imagenet2012/<version>/, the builder `imagenet2012` in ArrayRecord files
(DATA_DIR itself may also be such a folder). Labels are the places of the wnids in sorted order, in both.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Collection, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from input_pipelines import base, prepared, progress, synthetic
from input_pipelines.image import fake_images, preprocessing
from mlperf_jax.errors import UserError

NUM_CLASSES = 1000
NUM_TRAIN, NUM_EVAL = 1_281_167, 50_000
SPLITS = ("train", "eval")

IMAGE_SIZE = 224

FAKE_BYTES = 100_000


def open_synthetic(options: Mapping[str, Any]) -> base.InMemoryDataset:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    return synthetic.open_dataset(
        base.InMemoryDataset,
        "imagenet",
        _spec(_image_size(options)),
        {"image": 256, "label": NUM_CLASSES},
        num_train=NUM_TRAIN,
        num_eval=NUM_EVAL,
        options=options,
    )


def _spec(size: int) -> base.Spec:
    return {"image": ((size, size, 3), np.dtype(np.uint8)), "label": ((), np.dtype(np.int32))}


def _image_size(options: Mapping[str, Any]) -> int:
    size = options.get("image_size", IMAGE_SIZE)
    if size < 1:
        raise UserError(f"Images of size {size} cannot be made; ImageNet's image_size is {IMAGE_SIZE}.")
    return size


class Source(Protocol):
    """Encoded images on disk; picklable, for worker processes."""

    @property
    def folder(self) -> Path: ...

    @property
    def counts(self) -> Mapping[str, int]: ...

    def read(self, split: str, index: int) -> tuple[bytes, int, str]:
        """Returns an encoded image, its label, and words that name where it lies."""
        ...


class ClassFolders:
    """`train/<class>/<image>` and `val/<class>/<image>`, classes and images in sorted order."""

    _FOLDERS = {"train": "train", "eval": "val"}
    _SUFFIXES = (".jpeg", ".jpg")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._classes = self._class_folders("train")
        if len(self._classes) != NUM_CLASSES:
            raise UserError(
                f"{folder / 'train'} has {len(self._classes)} class folders where ImageNet has "
                f"{NUM_CLASSES}; {self._unsorted('train') or 'unpack the whole archive there.'}"
            )
        classes = self._class_folders("eval")
        if not classes and (how := self._unsorted("eval")):
            raise UserError(f"{folder / 'val'} has no class folders; {how}")
        strangers = set(classes) - set(self._classes)
        if strangers:
            raise UserError(
                f"{folder / 'val' / min(strangers)} is a class that {folder / 'train'} lacks; remove it."
            )
        # A million names as one array of bytes take a third of what as many strings would.
        self._names, self._ends = {}, {}
        for split in SPLITS:
            per_class = [self._list(split, name) for name in self._classes]
            self._ends[split] = list(itertools.accumulate(len(names) for names in per_class))
            self._names[split] = np.array([name for names in per_class for name in names], np.bytes_)
        self.counts = {split: len(names) for split, names in self._names.items()}

    def _class_folders(self, split: str) -> list[str]:
        """Names that begin with "." are other programs' notes, here and among images."""
        with os.scandir(self.folder / self._FOLDERS[split]) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")

    def _unsorted(self, split: str) -> str:
        """What to do where images, or classes still packed, lie where the classes' folders belong; else ""."""
        place = self.folder / self._FOLDERS[split]
        with os.scandir(place) as entries:
            names = [entry.name for entry in entries if entry.name[0] != "." and entry.is_file()]
        if packed := sum(name.endswith(".tar") for name in names):
            return f"it has {packed:,} archives: unpack each <wnid>.tar into a folder {place}/<wnid>."
        if images := sum(name.lower().endswith(self._SUFFIXES) for name in names):
            return (
                f"its {images:,} images lie there unsorted: move each into {place}/<wnid>, for val by the list "
                "imagenet_2012_validation_synset_labels.txt as docs/data.md shows."
            )
        return ""

    def _list(self, split: str, class_name: str) -> list[bytes]:
        try:
            entries = os.scandir(self.folder / self._FOLDERS[split] / class_name)
        except FileNotFoundError:  # A class without eval images.
            return []
        with entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.lower().endswith(self._SUFFIXES) and entry.name[0] != "." and entry.is_file()
            ]
        return sorted(map(os.fsencode, names))

    def read(self, split: str, index: int) -> tuple[bytes, int, str]:
        label = bisect.bisect_right(self._ends[split], index)
        name = os.fsdecode(bytes(self._names[split][index]))
        path = self.folder / self._FOLDERS[split] / self._classes[label] / name
        try:
            return path.read_bytes(), label, str(path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); put a sound copy in its place."
            ) from None


class TfdsRecords:
    """The TFDS builder `imagenet2012`, prepared in ArrayRecord format; read without TensorFlow."""

    _SPLITS = {"train": "train", "eval": "validation"}

    def __init__(self, folder: Path) -> None:
        import tensorflow_datasets as tfds

        self.folder = folder
        try:
            builder = tfds.builder_from_directory(folder)
            splits = {split: builder.info.splits[name] for split, name in self._SPLITS.items()}
            num_classes = builder.info.features["label"].num_classes
        except Exception as error:  # TFDS and protobuf raise whatever the damage makes of their metadata.
            raise UserError(
                f"{folder} is not a whole TFDS data set ({prepared.one_line(error)}); prepare it again with TFDS."
            ) from None
        if num_classes != NUM_CLASSES or "image" not in builder.info.features:
            raise UserError(
                f"{folder} has {num_classes} classes where ImageNet has {NUM_CLASSES}; use imagenet2012."
            )
        file_format = builder.info.file_format
        if file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"{folder} is in {file_format.value} format; run "
                "`tfds convert_format --root_data_dir=DATA_DIR --out_file_format=array_record`."
            )
        for path in itertools.chain.from_iterable(split.filepaths for split in splits.values()):
            if not Path(path).is_file():
                raise UserError(f"{path} is missing; prepare the data set again with TFDS.")
        self._files = {split: [str(path) for path in info.filepaths] for split, info in splits.items()}
        self._ends = {split: list(itertools.accumulate(info.shard_lengths)) for split, info in splits.items()}
        self.counts = {split: info.num_examples for split, info in splits.items()}
        undecoded = {"image": tfds.decode.SkipDecoding()}
        try:
            self._records = {
                split: builder.as_data_source(name, decoders=undecoded)
                for split, name in self._SPLITS.items()
            }
        except Exception as error:
            raise UserError(
                f"{folder} cannot be opened ({prepared.one_line(error)}); prepare it again with TFDS."
            ) from None

    def read(self, split: str, index: int) -> tuple[bytes, int, str]:
        shard = bisect.bisect_right(self._ends[split], index)
        record = index - (self._ends[split][shard - 1] if shard else 0)
        where = f"{self._files[split][shard]}, record {record},"
        try:
            example = self._records[split][index]
        except Exception as error:  # ArrayRecord and protobuf raise their own.
            raise UserError(
                f"{where} cannot be read ({prepared.one_line(error)}); prepare the data set again with TFDS."
            ) from None
        label = int(example["label"])
        if not 0 <= label < NUM_CLASSES:  # TFDS's test split has -1
            raise UserError(f"{where} has the label {label}; prepare the data set again with TFDS.")
        return bytes(example["image"]), label, where


class ImageNet(base.Dataset):
    """Encoded images: image [S, S, 3] uint8, label [] int32 in [0, 1000).

    Args:
        source: where the images are.
        image_size: S, 224 in the benchmark.
        num_threads: batches decoded at once in each process.
        num_workers: processes that decode; 0 decodes in threads of this process.
        more_workers: see `base.prefetched`.
        fake, description: see `base.Dataset`.
    """

    def __init__(
        self,
        source: Source,
        *,
        image_size: int,
        num_threads: int,
        num_workers: int,
        more_workers: int,
        fake: bool,
        description: str,
    ) -> None:
        super().__init__(
            num_train=source.counts["train"],
            num_eval=source.counts["eval"],
            train_spec=_spec(image_size),
            eval_spec=_spec(image_size),
            fake=fake,
            description=description,
            num_threads=num_threads,
            num_workers=num_workers,
            more_workers=more_workers,
        )
        self._source, self._size = source, image_size

    def read_train(self, start: int, stop: int, seed: int) -> base.HostBatch:
        positions = np.arange(start, stop)
        examples = base.examples_at(positions, seed=seed, num_examples=self.num_train)
        batch = _empty_batch(len(positions), self._size)
        for row, (position, example) in enumerate(zip(positions.tolist(), examples.tolist(), strict=True)):
            data, batch["label"][row], where = self._source.read("train", example)
            preprocessing.train_image(
                data, where, size=self._size, seed=seed, position=position, out=batch["image"][row]
            )
        return batch

    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> base.HostBatch:
        """As `base.Dataset` has it; images are decoded only if they are asked for, on all cores."""
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return self._read_eval(indices, fields, pool.map)

    def _eval_rows(self, examples: np.ndarray) -> base.HostBatch:
        return self._read_eval(examples, self.train_spec, map)

    def _read_eval(
        self, indices: np.ndarray, fields: Collection[str], map_rows: base.MapRows
    ) -> base.HostBatch:
        batch = {
            name: array for name, array in _empty_batch(len(indices), self._size).items() if name in fields
        }

        def read(row: int) -> None:
            data, label, where = self._source.read("eval", int(indices[row]))
            if "label" in batch:
                batch["label"][row] = label
            if "image" in batch:
                batch["image"][row] = preprocessing.eval_image(data, where, size=self._size)

        for _ in map_rows(read, range(len(indices))):  # Raises what `read` raised.
            pass
        return batch


def _empty_batch(num_rows: int, size: int) -> base.HostBatch:
    return {name: np.empty((num_rows, *shape), dtype) for name, (shape, dtype) in _spec(size).items()}


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> ImageNet:
    """Opens ImageNet, or the made-up set in its place if the options ask for that.

    Args:
        data_dir: see the module.
        options: `fake` (int, 0): the set that `prepare --fake=N` wrote. `image_size` (int, 224),
            `num_workers` (int, 0) and `num_threads` (int; 0, the default, is as many as there are
            cores, at most 8): see `ImageNet`.

    Raises:
        UserError: it is not there, not whole, or the real set does not have ImageNet's counts.
    """
    fake = options.get("fake") or 0
    if fake:
        folder = _fake_folder(data_dir, fake)
        prepared.read_manifest(folder)
        source: Source = ClassFolders(folder)
    else:
        source = _find(data_dir)
    made_up = fake > 0 or _is_fake(source.folder)
    if not made_up:
        _check_counts(source)
    train, evaluation = (f"{source.counts[split]:,}" for split in SPLITS)
    what = "Fake ImageNet (random images, not MLPerf's data)" if made_up else "ImageNet"
    return ImageNet(
        source,
        image_size=_image_size(options),
        **base.background(options),
        fake=made_up,
        description=f"{what}, {train} train and {evaluation} eval images",
    )


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Writes the made-up set, or checks that the real one is there with all its images.

    Args:
        data_dir: see the module.
        fake: if not 0, the number of made-up train images; an eighth as many are for evaluation.
        verify: decode every image, on all cores.

    Raises:
        UserError: as `open_dataset`, or an image is damaged.
    """
    if fake:
        prepared.prepare_fake(_fake_folder(data_dir, fake), fake_images.write, fake, verify=verify)
    dataset = open_dataset(data_dir, {"fake": fake})
    if verify:
        _verify(dataset._source)
    return f"{dataset.description}, in {dataset._source.folder}"


def _verify(source: Source) -> None:
    """Decodes every image."""

    def check(key: tuple[str, int]) -> None:
        data, _, where = source.read(*key)
        preprocessing.decode(data, where)

    keys = ((split, index) for split in SPLITS for index in range(source.counts[split]))
    total = sum(source.counts[split] for split in SPLITS)
    with (
        progress.step("decoding", total, "images") as advance,
        futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        while some := list(itertools.islice(keys, 1024)):
            for _ in pool.map(check, some):  # Raises what check raised.
                advance(1)


def _fake_folder(data_dir: Path, num_train: int) -> Path:
    return data_dir / f"imagenet_fake_{num_train}"


def _is_fake(folder: Path) -> bool:
    return (folder / "manifest.json").exists() and bool(prepared.read_manifest(folder).get("fake"))


def _find(data_dir: Path) -> Source:
    for folder in (data_dir, data_dir / "imagenet"):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return ClassFolders(folder)
    candidates = [data_dir, *sorted(data_dir.glob("imagenet2012/*.*.*"), reverse=True)]
    for folder in candidates:
        if (folder / "dataset_info.json").is_file():
            return TfdsRecords(folder)
    raise UserError(
        f"ImageNet is not in {data_dir}; get it from image-net.org and put it there as "
        "imagenet/train/<wnid>/*.JPEG and imagenet/val/<wnid>/*.JPEG, or as TFDS's imagenet2012 in "
        "array_record format (or use --preset=mini, --synthetic_data, or a made-up set: "
        "`python -m mlperf_jax.prepare --workload=resnet50 --fake=N`, then --config.data.fake=N)."
    )


def _check_counts(source: Source) -> None:
    for split, wanted in zip(SPLITS, (NUM_TRAIN, NUM_EVAL), strict=True):
        if source.counts[split] != wanted:
            raise UserError(
                f"{source.folder} has {source.counts[split]:,} {split} images where ImageNet has {wanted:,}; "
                "unpack the whole data set there."
            )
