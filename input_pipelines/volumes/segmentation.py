"""Labelled volumes: random patches for training, whole volumes for evaluation, in few shapes.

Whole volumes are cut and padded at their edges so that windows, which overlap, cover them evenly, as MLPerf's
references do (mlcommons/training, retired_benchmarks/unet3d/pytorch/runtime/inference.py). The rest of the batch's
array, its bucket's shape, is zeros that no window reaches.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipelines import base, prepared, synthetic
from input_pipelines.volumes import patches
from mlperf_jax.errors import UserError

NOT_COUNTED = 255
"""The label of voxels that are outside of the volume, and count for nothing."""

_FIELDS: base.Spec = {"image": ((), np.dtype(np.float32)), "label": ((), np.dtype(np.uint8))}


@dataclasses.dataclass(frozen=True)
class Case:
    """One volume.

    Attributes:
        name: for people.
        image: [X, Y, Z] float32, normalised; an array, or a mapped file.
        label: [X, Y, Z] uint8.
        boxes: class -> where its objects are; of volumes to train on.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    boxes: Mapping[int, Sequence[patches.Box]] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape


class Axis(NamedTuple):
    """Where the voxels of a fitted volume come from, on one axis.

    Attributes:
        source: [size] int64, of the volume; at its edge voxels may come again.
        inside: [size] bool, False where there is nothing but padding.
    """

    source: np.ndarray
    inside: np.ndarray


def fitted(size: int, window: int, stride: int) -> Axis:
    """One axis of a volume as windows want it: at least a window long, and a multiple of the stride.

    What is shorter than a window is first continued with its edge. What is less than half a stride too long is cut,
    else padded; both on both sides.
    """
    edge = max(0, window - size) // 2
    size_min = max(size, window)
    cut = size_min % stride if size_min % stride < stride // 2 else 0
    rest = size_min - cut
    padding = max(-(-rest // stride) * stride, window) - rest
    at = np.arange(rest + padding) - padding // 2
    return Axis(np.clip(at + cut // 2 - edge, 0, size - 1), (at >= 0) & (at < rest))


@dataclasses.dataclass(frozen=True)
class Windows:
    """How whole volumes are read.

    Attributes:
        size: of a window, voxels along each axis.
        stride: from one to the next.
        padding: the value beside a volume.
        outside: the label there.
        buckets: at most so many shapes.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: float
    outside: int = NOT_COUNTED
    buckets: int = 1


class Wholes:
    """Whole volumes, each in the bucket of some of about its size.

    Attributes:
        shapes: of each as windows want it, [N] of three numbers.
        buckets: bucket -> the shape that holds all of its volumes.
        bucket_of: the bucket of each.
    """

    def __init__(self, cases: Sequence[Case], windows: Windows) -> None:
        self._cases, self._windows = cases, windows
        self._axes = [
            [fitted(*axis) for axis in zip(case.shape, windows.size, windows.stride, strict=True)]
            for case in cases
        ]
        self.shapes = [tuple(len(axis.source) for axis in axes) for axes in self._axes]
        order = sorted(range(len(cases)), key=lambda i: (np.prod(self.shapes[i]), self.shapes[i]))
        self.buckets: dict[str, tuple[int, ...]] = {}
        self.bucket_of = [""] * len(cases)
        for part in np.array_split(np.array(order), min(windows.buckets, len(cases))):
            shape = tuple(np.max([self.shapes[i] for i in part.tolist()], axis=0).tolist())
            name = "x".join(map(str, shape))
            self.buckets[name] = shape
            for i in part.tolist():
                self.bucket_of[i] = name

    def __len__(self) -> int:
        return len(self._cases)

    def spec(self, bucket: str) -> base.Spec:
        """Fields of one example of a bucket."""
        shape = self.buckets[bucket]
        return {
            "image": ((*shape, 1), np.dtype(np.float32)),
            "label": (shape, np.dtype(np.uint8)),
            "size": ((3,), np.dtype(np.int32)),
        }

    def read(self, indices: np.ndarray, fields: Collection[str]) -> base.HostBatch:
        """The named fields of volumes [N], all of one bucket: image [N, D, H, W, 1], label [N, D, H, W], size [N, 3]."""
        (bucket,) = {self.bucket_of[i] for i in indices.tolist()}
        spec = self.spec(bucket)
        batch = {name: np.zeros((len(indices), *spec[name][0]), spec[name][1]) for name in fields}
        for row, i in enumerate(indices.tolist()):
            place = tuple(map(slice, self.shapes[i]))
            if "image" in batch:
                batch["image"][row][place] = self._fitted(i, self._cases[i].image, self._windows.padding)[
                    ..., None
                ]
            if "label" in batch:
                batch["label"][row][place] = self.label(i)
            if "size" in batch:
                batch["size"][row] = self.shapes[i]
        return batch

    def label(self, index: int) -> np.ndarray:
        """[D, H, W] uint8 in the shape that windows want."""
        return self._fitted(index, self._cases[index].label, self._windows.outside)

    def image(self, index: int) -> np.ndarray:
        """[D, H, W] float32 in the shape that windows want."""
        return self._fitted(index, self._cases[index].image, self._windows.padding)

    def _fitted(self, index: int, values: np.ndarray, outside: float) -> np.ndarray:
        axes = self._axes[index]
        found = np.asarray(values)[np.ix_(*(axis.source for axis in axes))]
        # As numbers: of truth values `ix_` makes indices.
        inside = functools.reduce(np.logical_and, np.ix_(*(axis.inside.astype(np.int8) for axis in axes)))
        return np.where(inside, found, np.asarray(outside, found.dtype))


class VolumeDataset(base.Dataset):
    """Patches to train on: image [*patch, 1] float32, label [*patch] uint8; whole volumes besides.

    Attributes:
        evaluation: the volumes that training is evaluated on.
        serving: those of inference.
        class_names: of labels 1 and up.
    """

    def __init__(
        self,
        train: Sequence[Case],
        evaluation: Wholes,
        serving: Wholes,
        *,
        patch: Sequence[int],
        patches_per_volume: int,
        augmentation: patches.Augmentation,
        class_names: Sequence[str],
        fake: bool,
        description: str,
        num_threads: int = 1,
    ) -> None:
        self.evaluation, self.serving = evaluation, serving
        self.class_names = tuple(class_names)
        self._train, self._patch, self._numbers = train, tuple(patch), augmentation
        self._boxes = [_padded_boxes(case, self._patch) for case in train]
        super().__init__(
            num_train=len(train) * patches_per_volume,
            num_eval=len(evaluation),
            train_spec={
                "image": ((*self._patch, 1), np.dtype(np.float32)),
                "label": (self._patch, np.dtype(np.uint8)),
            },
            eval_spec={},  # by bucket, see `evaluation`
            fake=fake,
            description=description,
            num_threads=num_threads,
        )

    def read_train(self, start: int, stop: int, seed: int) -> base.HostBatch:
        positions = np.arange(start, stop)
        examples = base.examples_at(positions, seed=seed, num_examples=self.num_train)
        batch = {
            name: np.empty((len(positions), *shape), dtype)
            for name, (shape, dtype) in self.train_spec.items()
        }
        for row, (position, example) in enumerate(zip(positions.tolist(), examples.tolist(), strict=True)):
            image, label = self._patch_of(example % len(self._train), seed, position)
            batch["image"][row], batch["label"][row] = image[..., None], label
        return batch

    def _patch_of(self, index: int, seed: int, position: int) -> tuple[np.ndarray, np.ndarray]:
        case, draws = self._train[index], patches.drawn(seed, position)
        shape = tuple(map(max, case.shape, self._patch))
        first = patches.corner(shape, self._patch, self._boxes[index], draws, self._numbers.oversampling)
        at = [
            np.clip(np.arange(begin, begin + side) - (padded - size) // 2, 0, size - 1)
            for begin, side, padded, size in zip(first, self._patch, shape, case.shape, strict=True)
        ]
        image, label = (np.asarray(values[np.ix_(*at)]) for values in (case.image, case.label))
        return patches.augment(image, label, seed=seed, position=position, numbers=self._numbers, draws=draws)

    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> base.HostBatch:
        """As `base.Dataset` has it, of examples of one bucket."""
        return self.evaluation.read(indices, fields)

    def whole_batches(self, bucket: str, *, batch_size: int, rows: slice) -> base.BatchIterator:
        """Rows `rows` of the batches that hold each evaluation volume of a bucket once; as `eval_batches`."""
        members = np.array([i for i, name in enumerate(self.evaluation.bucket_of) if name == bucket])

        def make_batch(index: int) -> base.HostBatch:
            first = index * batch_size
            examples = members[first + rows.start : first + rows.stop]
            empty = {
                name: np.zeros((0, *shape), d) for name, (shape, d) in self.evaluation.spec(bucket).items()
            }
            read = self.evaluation.read(examples, list(empty)) if len(examples) else empty
            return base.with_mask(read, rows.stop - rows.start)

        return base.prefetched(make_batch, 0, base.num_eval_batches(len(members), batch_size))


def _padded_boxes(case: Case, patch: Sequence[int]) -> dict[int, list[patches.Box]]:
    """The largest objects of each class, where a volume smaller than a patch was continued with its edge."""

    def padded(box: patches.Box) -> patches.Box:
        found = []
        for (start, stop), size, side in zip(box, case.shape, patch, strict=True):
            before, whole = max(0, side - size) // 2, max(size, side)
            found.append((start + before if start else 0, stop + before if stop < size else whole))
        return tuple(found)

    return {label: patches.largest([padded(box) for box in boxes]) for label, boxes in case.boxes.items()}


# Prepared folders.


def save(folder: Path, name: str, image: np.ndarray, label: np.ndarray, *, train: bool) -> dict[str, Any]:
    """Writes a volume, and returns what the manifest says of it."""
    np.save(folder / f"{name}_x.npy", image.astype(np.float32), allow_pickle=False)
    np.save(folder / f"{name}_y.npy", label.astype(np.uint8), allow_pickle=False)
    boxes = patches.objects(label) if train else {}
    return {"name": name, "shape": list(image.shape), "boxes": {str(k): v for k, v in boxes.items()}}


def load(folder: Path, listed: Any) -> list[Case]:
    """Opens volumes that `save` wrote.

    Raises:
        UserError: something in the folder is not as `listed` says.
    """
    try:
        found = [(str(one["name"]), tuple(map(int, one["shape"])), _boxes(one)) for one in listed]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / 'manifest.json'} is damaged ({prepared.one_line(error)}); {prepared.AGAIN}"
        ) from None
    cases = []
    for name, shape, boxes in found:
        if len(shape) != 3 or not all(
            0 <= start < stop <= size
            for box in itertools.chain.from_iterable(boxes.values())
            for (start, stop), size in zip(box, shape, strict=True)
        ):
            raise UserError(f"{folder / 'manifest.json'} is damaged (sizes of {name}); {prepared.AGAIN}")
        image, label = (
            prepared.open_array(folder / f"{name}_{which}.npy", shape, np.dtype(dtype))
            for which, dtype in (("x", np.float32), ("y", np.uint8))
        )
        cases.append(Case(name, image, label, boxes))
    return cases


def _boxes(listed: Mapping[str, Any]) -> dict[int, list[patches.Box]]:
    return {
        int(label): [tuple((int(start), int(stop)) for start, stop in box) for box in boxes if len(box) == 3]
        for label, boxes in listed["boxes"].items()
    }


def dataset(
    train: Sequence[Case],
    evaluation: Sequence[Case],
    serving: Sequence[Case] | None,
    options: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    padding: float,
    fake: bool,
    description: str,
) -> VolumeDataset:
    """A data set of these volumes.

    Args:
        train, evaluation: the volumes.
        serving: those of inference, whose padding counts as background; None for those of evaluation as they are.
        options: `patch`, `stride` of windows, `buckets`, `patches_per_volume`, `oversampling`, `flips`, `brightness`,
            `noise`, `num_threads`.
        class_names: of labels 1 and up.
        padding: the value of an image beside a volume.
        fake, description: see `base.Dataset`.
    """
    windows = Windows(tuple(options["patch"]), tuple(options["stride"]), padding, buckets=options["buckets"])
    wholes = Wholes(evaluation, windows)
    served = wholes if serving is None else Wholes(serving, dataclasses.replace(windows, outside=0))
    return VolumeDataset(
        train,
        wholes,
        served,
        patch=windows.size,
        patches_per_volume=options["patches_per_volume"],
        augmentation=patches.Augmentation(
            options["oversampling"], tuple(options["flips"]), options["brightness"], options["noise"]
        ),
        class_names=class_names,
        fake=fake,
        description=description,
        num_threads=base.num_threads({"num_threads": options.get("num_threads", 0)}),
    )


def made_up(
    name: str,
    options: Mapping[str, Any],
    *,
    num_train: int,
    num_eval: int,
    class_names: Sequence[str],
    padding: float,
) -> VolumeDataset:
    """What `--synthetic_data` makes up: volumes two windows deep."""
    num_train, num_eval = synthetic.counts(options, num_train, num_eval)
    depth, *others = options["patch"]
    shape = (depth + options["stride"][0], *others)
    random = np.random.default_rng(0)
    pool = []
    for i in range(4):
        image = random.standard_normal(shape, np.float32)
        label = np.zeros(shape, np.uint8)
        for one in range(1, len(class_names) + 1):
            corner = [random.integers(0, size // 2) for size in shape]
            label[tuple(slice(c, c + size // 4) for c, size in zip(corner, shape, strict=True))] = one
        pool.append(Case(f"volume {i}", image, label, patches.objects(label)))
    train, evaluation = ([pool[i % len(pool)] for i in range(n)] for n in (num_train, num_eval))
    return dataset(
        train,
        evaluation,
        None,
        options,
        class_names=class_names,
        padding=padding,
        fake=True,
        description=synthetic.describe(name, num_train, num_eval),
    )
