"""COCO 2017 (`input_pipelines.image.coco`) with masks: the same prepared set, from the files of cocodataset.org.

As in MLPerf's reference (retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark/data/datasets/coco.py) crowds are not
trained on; images that have nothing else stay.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import prepared
from input_pipelines.image import boxed_jpegs, coco, made_up_masks, masked_detection, outlines
from mlperf_jax.errors import UserError

FAKE_BYTES = coco.FAKE_BYTES
_SIZES = [(480, 640), (640, 480), (427, 640), (640, 427)]  # usual ones

prepare = functools.partial(coco.prepare, masks=True)


class MaskedRecords(boxed_jpegs.Records):
    """The `masked_detection.MaskedSource` of a prepared folder.

    Raises:
        UserError: it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        count = len(self._labels)
        self.train_sizes = self._array("train", "sizes", (self.counts["train"], 2), np.int32)
        self._single = ~self._array("train", "crowds", (count,), np.bool_)
        shape = count, outlines.CELLS, outlines.CELLS // 8
        self._masks = prepared.open_array(folder / boxed_jpegs.MASKS, shape, np.dtype(np.uint8))

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskedRecords, (self.folder,)

    def masked_objects(self, index: int) -> masked_detection.MaskedObjects:
        here = self.rows_of(index)
        single = self._single[here]
        return self._boxes[here][single], self._labels[here][single], self._masks[here][single]


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> masked_detection.MaskedDetection:
    """Opens the prepared set, or the made-up one in its place if the options ask for that.

    Args:
        data_dir: see `coco`.
        options: `fake` (int, 0): the set that `prepare --fake=N` wrote; the rest is told by
            `masked_detection.MaskedDetection`.

    Raises:
        UserError: it is not prepared, was prepared without masks, or is damaged.
    """
    fake = options.get("fake") or 0
    folder = coco.folder_of(data_dir, fake)
    if not fake and not folder.is_dir():
        raise UserError(f"COCO 2017 is not prepared in {data_dir}; {coco.how_to_get_it('maskrcnn')}")
    if folder.is_dir() and not (folder / boxed_jpegs.MASKS).exists():
        raise UserError(f"{folder} was prepared without masks; {prepared.AGAIN}")
    source = MaskedRecords(folder)
    return masked_detection.MaskedDetection(
        source,
        category_ids=coco.CATEGORY_IDS,
        ground_truth=folder / "eval.json",
        options=options,
        fake=source.fake,
        description=f"{coco.describe(source, source.fake)}, with masks",
    )


def open_synthetic(options: Mapping[str, Any]) -> masked_detection.MaskedDetection:
    """What `--synthetic_data` makes up; see `masked_detection.MaskedDetection` for the options."""
    return made_up_masks.open_synthetic(
        "coco",
        num_train=coco.NUM_TRAIN,
        num_eval=coco.NUM_EVAL,
        category_ids=coco.CATEGORY_IDS,
        sizes=_SIZES,
        options=options,
    )
