"""KiTS19: CT volumes of 210 patients with labels of kidney and tumour, 168 to train on and 42 for evaluation.

Heller et al., arXiv:1904.00445; https://github.com/neheller/kits19, whose script get_imaging makes the folder `data`.
`prepare` reads DATA_DIR/kits19/data/case_00000/{imaging,segmentation}.nii.gz to case_00209 (or without `data`) and
writes DATA_DIR/kits19_prepared: volumes at a spacing of 1.6, 1.2 and 1.2 mm, clipped and normalised, as MLPerf's
references make them (`resampling`). The volumes of inference are the 42 once more, made as its own reference makes
them, and case_00185 again under the name case_00400.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared, progress
from input_pipelines.volumes import nifti, resampling, segmentation
from mlperf_jax.errors import UserError

NUM_CASES, NUM_TRAIN, NUM_EVAL, NUM_SERVED = 210, 168, 42, 43
CLASS_NAMES = ("kidney", "tumour")

# evaluation_cases.txt of the reference
EVALUATION = (
    0, 3, 5, 6, 12, 24, 34, 41, 44, 49, 52, 56, 61, 65, 66, 70, 76, 78, 80, 84, 86, 87, 92, 111, 112, 125, 128, 138,
    157, 160, 161, 162, 169, 171, 176, 185, 187, 189, 198, 203, 206, 207,
)  # fmt: skip
_TWICE, _AGAIN = 185, 400

SPACING = (1.6, 1.2, 1.2)
_LEAST, _MOST, _MEAN, _STD = -79.0, 304.0, 101.0, 76.9  # of Hounsfield units
PADDING = -2.2  # of normalised values

FAKE_BYTES = 5 * 32**3
_FAKE_SIDES = (32, 45)  # voxels

_HOW_TO_GET_IT = (
    "clone https://github.com/neheller/kits19 to there, run `python3 -m starter_code.get_imaging` in it, and prepare "
    "it (--prepare, or python -m mlperf_jax.prepare); or use --preset=mini, --synthetic_data, or a made-up set: "
    "`python -m mlperf_jax.prepare --workload=unet3d --fake=N`, then --config.data.fake=N."
)


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/kits19_prepared, or a made-up set in its form, unless it is there, and says what it is.

    Raises:
        UserError: KiTS19 is not there, not whole or damaged, or the disk is full.
    """
    build = functools.partial(_make_up, count=fake) if fake else functools.partial(_build, data_dir=data_dir)
    manifest = prepared.prepare_folder(_folder(data_dir, fake), build, verify=verify)
    return f"{_describe(manifest)}, in {_folder(data_dir, fake)}"


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"kits19_fake_{fake}" if fake else "kits19_prepared")


def _name(number: int) -> str:
    return f"case_{number:05d}"


def _build(folder: Path, *, data_dir: Path) -> dict[str, Any]:
    source = next(
        (path for path in (data_dir / "kits19" / "data", data_dir / "kits19") if path.is_dir()), None
    )
    if source is None:
        raise UserError(f"KiTS19 is not in {data_dir / 'kits19'}; {_HOW_TO_GET_IT}")
    missing = [
        f"{_name(number)}/{file}"
        for number in range(NUM_CASES)
        for file in ("imaging.nii.gz", "segmentation.nii.gz")
        if not (source / _name(number) / file).is_file()
    ]
    if missing:
        raise UserError(
            f"{source} lacks {missing[0]} and {len(missing) - 1} files more of KiTS19's {NUM_CASES} cases; get all of it."
        )
    listed: dict[str, list[dict[str, Any]]] = {"train": [], "eval": [], "served": []}
    (folder / "served").mkdir()
    with progress.step("resampling volumes", NUM_CASES, "volumes") as advance:
        for number in range(NUM_CASES):
            train = number not in EVALUATION
            raw = _read(source / _name(number))
            made = segmentation.save(folder, _name(number), *volume(*raw), train=train)
            listed["train" if train else "eval"].append(made)
            if not train:
                again = [number, *([_AGAIN] if number == _TWICE else [])]
                image, label = volume(*raw, served=True)
                for one in again:
                    listed["served"].append(
                        segmentation.save(folder, f"served/{_name(one)}", image, label, train=False)
                    )
            advance(1)
    listed["served"].sort(key=lambda one: one["name"])
    return _facts(folder.name, listed, fake=False)


def _facts(name: str, listed: Mapping[str, list[dict[str, Any]]], *, fake: bool) -> dict[str, Any]:
    counts = {"num_train": len(listed["train"]), "num_eval": len(listed["eval"])}
    return {"name": name, "fake": fake, **counts, **listed}


def _read(case: Path) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    image, label = nifti.read(case / "imaging.nii.gz"), nifti.read(case / "segmentation.nii.gz")
    if image.values.shape != label.values.shape:
        raise UserError(
            f"{case} has an image of {image.values.shape} and labels of {label.values.shape}; get it again."
        )
    labels = label.values.astype(np.int64)
    if labels.min() < 0 or labels.max() > len(CLASS_NAMES):
        raise UserError(
            f"{case / 'segmentation.nii.gz'} has labels other than 0 to {len(CLASS_NAMES)}; get it again."
        )
    return image.values.astype(np.float32), labels.astype(np.uint8), image.spacing


def volume(
    image: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], *, served: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A case as it is trained on, or served.

    Args:
        image: [X, Y, Z] Hounsfield units.
        label: [X, Y, Z] uint8.
        spacing: of voxels, in mm.
        served: whether for inference, see `resampling`.

    Returns:
        The same at `SPACING`: float32 clipped and normalised, and uint8.
    """
    shape = resampling.shape_for(image.shape, spacing, SPACING, served=served)
    values = (np.clip(resampling.linear(image, shape), _LEAST, _MOST) - np.float32(_MEAN)) / np.float32(_STD)
    return values, resampling.nearest(label, shape, served=served)


def _make_up(folder: Path, *, count: int) -> dict[str, Any]:
    """Balls of two classes, brighter than the noise around them."""
    listed: dict[str, list[dict[str, Any]]] = {"train": [], "eval": [], "served": []}
    (folder / "served").mkdir()
    num_eval = max(1, count // 8)
    with progress.step(f"making up {count:,} train and {num_eval:,} eval volumes"):
        for number in range(count + num_eval):
            random = np.random.default_rng(number)
            sides = random.integers(*_FAKE_SIDES, 3)
            label = np.zeros(sides, np.uint8)
            for one in (1, 2):
                centre, radius = random.uniform(0.3, 0.7, 3) * sides, random.uniform(0.1, 0.25) * sides.min()
                label[
                    sum((axis - c) ** 2 for axis, c in zip(np.ogrid[*map(slice, sides)], centre, strict=True))
                    < radius**2
                ] = one
            image = random.normal(0, 0.5, sides) + label
            train = number < count
            listed["train" if train else "eval"].append(
                segmentation.save(folder, _name(number), image, label, train=train)
            )
            if not train:
                listed["served"].append(
                    segmentation.save(folder, f"served/{_name(number)}", image, label, train=False)
                )
    return _facts(folder.name, listed, fake=True)


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> segmentation.VolumeDataset:
    """Opens the prepared set, or the made-up one in its place if the options ask for that.

    Args:
        data_dir: see the module.
        options: `fake` (int, 0): the set that `prepare --fake=N` wrote; the rest is told by `segmentation.dataset`.

    Raises:
        UserError: it is not prepared, or damaged, or the real set does not have KiTS19's counts.
    """
    fake = options.get("fake") or 0
    folder = _folder(data_dir, fake)
    if not fake and not folder.is_dir():
        raise UserError(f"KiTS19 is not prepared in {data_dir}; {_HOW_TO_GET_IT}")
    manifest = prepared.read_manifest(folder)
    train, evaluation, served = (segmentation.load(folder, manifest[s]) for s in ("train", "eval", "served"))
    found, wanted = (len(train), len(evaluation), len(served)), (NUM_TRAIN, NUM_EVAL, NUM_SERVED)
    if not manifest.get("fake") and found != wanted:
        raise UserError(f"{folder} has {found} volumes where KiTS19 has {wanted}; {prepared.AGAIN}")
    return segmentation.dataset(
        train,
        evaluation,
        served,
        options,
        class_names=CLASS_NAMES,
        padding=PADDING,
        fake=bool(manifest.get("fake")),
        description=_describe(manifest),
    )


def _describe(manifest: Mapping[str, Any]) -> str:
    what = "Fake KiTS19 (balls in noise, not MLPerf's data)" if manifest.get("fake") else "KiTS19"
    return f"{what}, {manifest['num_train']:,} train and {manifest['num_eval']:,} eval volumes"


def open_synthetic(options: Mapping[str, Any]) -> segmentation.VolumeDataset:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    return segmentation.made_up(
        "kits19", options, num_train=NUM_TRAIN, num_eval=NUM_EVAL, class_names=CLASS_NAMES, padding=PADDING
    )
