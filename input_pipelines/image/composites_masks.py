"""The composites (`input_pipelines.image.composites`) with the exact masks of their objects: the same images and split."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared
from input_pipelines.image import composites, made_up_masks, masked_detection

prepare = functools.partial(composites.prepare, masks=True)


class MaskedComposites(composites.Composites):
    """The `masked_detection.MaskedSource` of a prepared folder.

    Raises:
        UserError: it is damaged, or was prepared without masks.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        count = self.counts["train"]
        shape = count, *composites.MASKS_SHAPE
        self._masks = prepared.open_array(folder / composites.MASKS, shape, np.dtype(np.uint8))
        self.train_sizes = np.full((count, 2), composites.SIZE, np.int32)

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskedComposites, (self.folder,)

    def masked_objects(self, index: int) -> masked_detection.MaskedObjects:
        boxes, labels = self.objects(index)
        return boxes, labels, self._masks[index][: len(labels)]


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> masked_detection.MaskedDetection:
    """Opens the prepared set; see `masked_detection.MaskedDetection` for the options.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    source = MaskedComposites(data_dir / "composites")
    return masked_detection.MaskedDetection(
        source,
        category_ids=composites.CATEGORY_IDS,
        ground_truth=source.folder / "eval.json",
        options=options,
        fake=False,
        description=f"{composites.describe(*source.counts.values())}, with masks",
    )


def open_synthetic(options: Mapping[str, Any]) -> masked_detection.MaskedDetection:
    """What `--synthetic_data` makes up; see `masked_detection.MaskedDetection` for the options."""
    return made_up_masks.open_synthetic(
        "composites",
        num_train=composites.NUM_TRAIN,
        num_eval=composites.NUM_EVAL,
        category_ids=composites.CATEGORY_IDS,
        sizes=[(composites.SIZE, composites.SIZE)],
        options=options,
    )
