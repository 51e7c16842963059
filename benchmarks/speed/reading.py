"""The input of a workload: batches of its pipeline made one after the other in one thread, and what no reader can do without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.side import Side
from input_pipelines.image import boxed_jpegs
from mlperf_jax import making
from mlperf_jax.supervised import SupervisedWorkload

PIPELINE, BARE = "pipeline", "bare"


class Reading(Side):
    """One side with two programs, of a batch a call.

    Of closed presets the made-up set is read from disk, `spec["fake"]` train images of it, of minis random data of
    the same shapes: theirs lies in memory anyway.
    """

    def prepare(self) -> dict[str, Any]:
        spec = self.spec
        fake = spec["fake"]
        made_up = [f"--config.data.fake={fake}"] if fake else []
        recipe = making.choose(
            spec["workload"],
            spec["preset"],
            spec["platform"],
            [*spec["overrides"], *made_up],
            kind=SupervisedWorkload,
        )
        if fake:
            recipe.cls.prepare(recipe.config, self.folder)
        workload = recipe.make(self.folder, synthetic=not fake)
        self.dataset, self.batch = workload.dataset, workload.batch_size
        self.jpegs = list(_jpegs(self.folder, recipe.config.data.name, fake)) if fake else []
        self.position = 0
        kind = "JPEGs" if self.jpegs else "bytes"
        return {"unit": workload.unit, "batch": self.batch, "bare": kind, "data": recipe.config.data.name}

    def compile(self, program: str) -> None:
        self.runs[PIPELINE] = self._read
        self.runs[BARE] = self._decode if self.jpegs else self._copy
        self._read(1)  # what is imported and mapped at first use
        self.runs[BARE](1)

    def _read(self, calls: int) -> None:
        for _ in range(calls):
            self.made = self.dataset.read_train(self.position, self.position + self.batch, self.spec["seed"])
            self.position += self.batch

    def _decode(self, calls: int) -> None:
        import simplejpeg

        for call in range(calls):
            for row in range(self.batch):
                simplejpeg.decode_jpeg(self.jpegs[(call * self.batch + row) % len(self.jpegs)])

    def _copy(self, calls: int) -> None:
        for _ in range(calls):
            for array in self.made.values():
                np.array(array)

    @property
    def device_peak(self) -> int:
        return 0


def _jpegs(folder: Path, data: str, count: int) -> Iterator[bytes]:
    """The train images of a made-up set; none of one that holds no JPEGs."""
    if data == "imagenet":
        for path in sorted((folder / f"imagenet_fake_{count}" / "train").glob("*/*.JPEG")):
            yield path.read_bytes()
    elif data == "coco":
        held = boxed_jpegs.Records(folder / f"coco_fake_{count}")
        for index in range(count):
            yield held.jpeg("train", index)
