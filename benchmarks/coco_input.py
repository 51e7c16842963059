"""Images per second of the COCO training pipeline beside bare decoding.

    python -m benchmarks.coco_input --out=benchmarks/coco_input.json

Bare: simplejpeg.decode_jpeg on JPEGs held in memory, in a loop, and nothing else. Pipeline: the steps
of SSD's training input made one after the other in one thread: reading, the same decoding, random crop,
antialiased resize to 300x300, flip, colours, batching. Both are measured in turn, and the medians of
the rounds compared: by CPU time, which a busy machine changes little, and by the clock. A host makes
as many images as it has cores times the rate of one.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from absl import app, flags

import input_pipelines
from benchmarks import records
from input_pipelines.image import boxed_jpegs

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Holds the made-up set; by default a temporary folder.")
_IMAGES = flags.DEFINE_integer("images", 256, "Made-up train images.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each is measured, over all images.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

_OPTIONS = {"image_size": 300, "max_boxes": 200, "num_threads": 1}


def rate(work: Callable[[], object], count: int) -> dict[str, float]:
    """Images per second of work on `count` images, by the clock and by the CPU time that it took."""
    began, used = time.perf_counter(), time.thread_time()
    work()
    used, took = time.thread_time() - used, time.perf_counter() - began
    return {"images_per_second": count / took, "images_per_cpu_second": count / used}


def measure(data_dir: Path) -> dict:
    """Returns the report."""
    import simplejpeg

    count = _IMAGES.value
    input_pipelines.prepare("coco", data_dir, fake=count)
    held = boxed_jpegs.Records(data_dir / f"coco_fake_{count}")
    jpegs = [held.jpeg("train", index) for index in range(count)]

    def decode() -> None:
        for jpeg in jpegs:
            simplejpeg.decode_jpeg(jpeg)

    def pipeline(attempts: int) -> Callable[[], object]:
        options = _OPTIONS | {"fake": count, "crop_attempts": attempts}
        data = input_pipelines.open_dataset("coco", data_dir, options)
        return lambda: data.read_train(0, count, seed=0)

    sides = {"bare": decode} | {f"pipeline_{attempts}_attempts": pipeline(attempts) for attempts in (1, 50)}
    for work in sides.values():
        work()  # what is imported and mapped at first use
    rounds = [{side: rate(work, count) for side, work in sides.items()} for _ in range(_ROUNDS.value)]
    medians = {
        kind: {side: statistics.median(r[side][kind] for r in rounds) for side in sides}
        for kind in ("images_per_second", "images_per_cpu_second")
    }
    return {
        "schema_version": 1,
        "command": records.command("coco_input"),
        "machine": records.machine(),
        "versions": records.versions("numpy", "opencv-python-headless", "pillow", "simplejpeg"),
        "images": records.made_up_images(jpegs),
        **medians,
        "rounds": rounds,
    }


def main(argv: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        report = measure(Path(_DATA_DIR.value or scratch))
    records.show(report, indent=1)
    records.write(_OUT.value, report)


if __name__ == "__main__":
    app.run(main)
