"""Images per second of the ImageNet training pipeline beside bare decoding, by number of processes.

    python benchmarks/jpeg_input.py --out=benchmarks/jpeg_input.json

Bare: each process calls simplejpeg.decode_jpeg (full size, accurate DCT) on JPEGs that it holds in
memory, in a loop, and does nothing else. Pipeline: the batches of `train_batches` as training takes
them, from the same files: order, reading, the same decoding, random crop, resize, flip, batching, and
the way from grain's worker processes into this one. One decoding thread in each process on both sides.
The two are measured in turn, and the medians of the rounds compared.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

import input_pipelines
from input_pipelines import imagenet, images

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Holds the made-up set; by default a temporary folder.")
_IMAGES = flags.DEFINE_integer("images", 512, "Made-up train images.")
_BATCH = flags.DEFINE_integer("batch", 64, "Rows of a batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "How often each is measured.")
_PROCESSES = flags.DEFINE_multi_integer("processes", [1, 2], "Numbers of processes.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def bare_rate(jpegs: list[bytes], processes: int) -> float:
    """Decodes all of `jpegs` in each process; returns images a second in total."""
    start = multiprocessing.Barrier(processes + 1)
    workers = [multiprocessing.Process(target=_decode_all, args=(jpegs, start)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    return processes * len(jpegs) / (time.perf_counter() - began)


def _decode_all(jpegs: list[bytes], start: multiprocessing.Barrier) -> None:
    import simplejpeg

    start.wait()
    for jpeg in jpegs:
        simplejpeg.decode_jpeg(jpeg)


def pipeline_rate(data_dir: Path, num_images: int, processes: int, batch_size: int) -> float:
    """Takes as many batches as hold `processes * num_images` images, in the steady state."""
    options = {"fake": num_images, "num_threads": 1, "num_workers": processes}
    data = imagenet.open_dataset(data_dir, options)
    batches = data.train_batches(seed=0, batch_size=batch_size, start_step=0, rows=slice(0, batch_size))
    with contextlib.closing(batches):
        # Start-up and the batches that the workers have ready by then do not count.
        for _ in itertools.islice(batches, 8 * processes):
            pass
        count = processes * num_images // batch_size
        began = time.perf_counter()
        for _ in itertools.islice(batches, count):
            pass
        return count * batch_size / (time.perf_counter() - began)


def measure(data_dir: Path) -> dict:
    """Returns the report."""
    input_pipelines.prepare("imagenet", data_dir, fake=_IMAGES.value)
    folder = imagenet.open_dataset(data_dir, {"fake": _IMAGES.value})._source
    jpegs = [folder.read("train", index)[0] for index in range(_IMAGES.value)]
    images.decode(jpegs[0], "the first image")
    results = []
    for processes in _PROCESSES.value:
        bare, pipeline = [], []
        for _ in range(_ROUNDS.value):
            bare.append(bare_rate(jpegs, processes))
            pipeline.append(pipeline_rate(data_dir, _IMAGES.value, processes, _BATCH.value))
        medians = {"bare": statistics.median(bare), "pipeline": statistics.median(pipeline)}
        results.append(
            {
                "processes": processes,
                "images_per_second": medians,
                "pipeline_over_bare": medians["pipeline"] / medians["bare"],
                "rounds": {"bare": bare, "pipeline": pipeline},
            }
        )
        print(
            f"{processes} process(es): bare {medians['bare']:.0f} images/s, "
            f"pipeline {medians['pipeline']:.0f}, {results[-1]['pipeline_over_bare']:.3f} of it",
            flush=True,
        )
    return {
        "schema_version": 1,
        "command": " ".join(["python", *sys.argv]),
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "load_average_at_end": os.getloadavg(),
            "python": platform.python_version(),
        },
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("grain", "numpy", "opencv-python-headless", "simplejpeg")
        },
        "images": {
            "count": len(jpegs),
            "mean_bytes": statistics.mean(map(len, jpegs)),
            "kind": "made up, see fake_images.py",
        },
        "batch": _BATCH.value,
        "results": results,
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def main(argv: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        report = measure(Path(_DATA_DIR.value or scratch))
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
