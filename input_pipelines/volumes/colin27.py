"""Colin27: a man's head by magnetic resonance, 27 scans averaged, and seven groups of regions of his brain; BSD-3.

Holmes et al., J. Comput. Assist. Tomogr. 22 (1998), 324-333; the regions (AAL) were drawn on this very brain:
Tzourio-Mazoyer et al., NeuroImage 15 (2002), 273-289. Both from Debian's `mricron-data`, 1 mm, here at 2 mm.

The left half is trained on, the right half is evaluated, and a gap between them is neither: 12 mm about the middle of
the file, which is the template's plane x = 0. Each half is a volume of its own, so what a network sees of one never
holds a voxel of the other, however wide its view; with a gap as wide as that the regions in the middle would be gone.
Both are read from the side inwards: the right half lies mirrored. Nothing here was chosen by what the right half holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import fetch, prepared
from input_pipelines.volumes import nifti, resampling, segmentation
from mlperf_jax.errors import UserError

# Group -> AAL's numbers of its regions, both sides.
GROUPS: dict[str, tuple[int, ...]] = {
    "hippocampus": (37, 38),
    "amygdala": (41, 42),
    "caudate": (71, 72),
    "putamen": (73, 74),
    "pallidum": (75, 76),
    "thalamus": (77, 78),
    "cerebellum": tuple(range(91, 117)),
}
CLASS_NAMES = tuple(GROUPS)

SPACING = 2.0  # mm
LEFT, RIGHT = slice(0, 42), slice(48, 90)  # of 90 voxels
# Of a half, read from the side inwards, the box of whole windows in whose middle the left half's groups lie.
PART = (slice(10, 42), slice(7, 87), slice(0, 64))
_MOST_REGIONS = 256

_BRAIN = fetch.PinnedFile(
    "ch2.nii.gz", 7_109_489, "707a360b809ba937f6c007231bcf7dc6e2d33657497b254414c9894b6efa5f8c"
)
_REGIONS = fetch.PinnedFile(
    "aal.nii.gz", 7_109_489, "2926fcc98efc709f77c8cca2f9c1d797eba3e9a1b222a8e0cfa70ab131394c80"
)
_PACKAGE, _INSIDE = "mricron-data", "usr/share/mricron/templates"


def sources(data_dir: Path) -> list[fetch.Source]:
    """Where the two files can come from, in the order in which they are tried."""
    return [
        fetch.folder(data_dir / "manual" / "mricron"),
        fetch.folder(Path("/") / _INSIDE),
        fetch.debian_package(_PACKAGE, _INSIDE),
    ]


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/colin27 unless it is there, and says what it is.

    Raises:
        UserError: the data could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError("Colin27 is small and real, so there is no --fake set of it; leave --fake out.")

    def build(folder: Path) -> dict[str, Any]:
        by_hand = f"ch2.nii.gz and aal.nii.gz into {data_dir / 'manual' / 'mricron'}"
        with prepared.scratch_folder(folder) as scratch:
            files = fetch.fetch("Colin27", (_BRAIN, _REGIONS), sources(data_dir), scratch, by_hand=by_hand)
        image, label = volume(*(nifti.parse(files[file.name], file.name) for file in (_BRAIN, _REGIONS)))
        left = segmentation.save(
            folder, "left", *(values[LEFT][PART] for values in (image, label)), train=True
        )
        right = segmentation.save(
            folder, "right", *(values[RIGHT][::-1][PART] for values in (image, label)), train=False
        )
        facts = {"name": "colin27", "fake": False, "num_train": 1, "num_eval": 1}
        return facts | {"train": [left], "eval": [right]}

    prepared.prepare_folder(data_dir / "colin27", build, verify=verify)
    return f"{_DESCRIPTION}, in {data_dir / 'colin27'}"


def volume(brain: nifti.Volume, regions: nifti.Volume) -> tuple[np.ndarray, np.ndarray]:
    """The head at 2 mm, float32 of mean 0 and deviation 1, and its groups, uint8."""
    shape = resampling.shape_for(brain.values.shape, brain.spacing, (SPACING,) * 3)
    image = resampling.linear(brain.values, shape)
    groups = np.zeros(_MOST_REGIONS, np.uint8)
    for group, numbers in enumerate(GROUPS.values(), 1):
        groups[list(numbers)] = group
    # The nearest when corners stay in place, as the image's do: half a voxel is much in a nucleus of six.
    label = resampling.nearest(groups[regions.values], shape, served=True)
    return (image - image.mean()) / image.std(), label


_DESCRIPTION = "Colin27 at 2 mm, 7 groups of regions: left half to train on, right half for evaluation"


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> segmentation.VolumeDataset:
    """Opens the prepared set; see `segmentation.dataset` for the options.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    folder = data_dir / "colin27"
    manifest = prepared.read_manifest(folder)
    train, evaluation = (segmentation.load(folder, manifest[split]) for split in ("train", "eval"))
    padding = float(min(case.image.min() for case in train))
    return segmentation.dataset(
        train,
        evaluation,
        None,
        options,
        class_names=CLASS_NAMES,
        padding=padding,
        fake=False,
        description=_DESCRIPTION,
    )


def open_synthetic(options: Mapping[str, Any]) -> segmentation.VolumeDataset:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    return segmentation.made_up(
        "colin27", options, num_train=1, num_eval=1, class_names=CLASS_NAMES, padding=-1.0
    )
