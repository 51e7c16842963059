"""Images per second of the ImageNet training pipeline beside bare decoding, by number of processes.

    python -m benchmarks.jpeg_input --out=benchmarks/jpeg_input.json

Bare: each process calls simplejpeg.decode_jpeg (full size, accurate DCT) on JPEGs that it holds in
memory, in a loop, and does nothing else. Shards: each process takes its own rows of the global
batches from `train_batches`, as the processes of a training run do, from the same files: order,
reading, the same decoding, random crop, resize, flip, batching. Workers: one process takes all rows,
which grain's worker processes make and hand over. One decoding thread in each process on all
sides. They are measured in turn and the medians of the rounds compared, by the clock and, since
that needs a machine with nothing else to do, by the CPU time that all processes took for an image.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psutil
from absl import app, flags

import input_pipelines
from benchmarks import records
from input_pipelines.image import imagenet
from mlperf_jax.results import system

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Holds the made-up set; by default a temporary folder.")
_IMAGES = flags.DEFINE_integer("images", 512, "Made-up train images; each is read several times.")
_PASSES = flags.DEFINE_integer("passes", 6, "How often a process sees all of them in a measurement.")
_BATCH = flags.DEFINE_integer("batch", 128, "Rows of a batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each is measured.")
_PROCESSES = flags.DEFINE_multi_integer("processes", [1, 2], "Numbers of processes.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

Rates = dict[str, float]


def _rates(images: int, seconds: float, cpu_seconds: float) -> Rates:
    return {"images_per_second": images / seconds, "images_per_cpu_second": images / cpu_seconds}


def bare_rates(jpegs: list[bytes], processes: int) -> Rates:
    """Decodes all of `jpegs` several times in each process."""
    return _together(_decode_all, [(jpegs, _PASSES.value)] * processes, len(jpegs) * _PASSES.value)


def shard_rates(data_dir: Path, num_images: int, processes: int) -> Rates:
    """Takes as many images in each process, of its own rows of the global batches."""
    size, count = _BATCH.value, num_images * _PASSES.value // _BATCH.value
    shards = [slice(i * size, (i + 1) * size) for i in range(processes)]
    arguments = [(data_dir, num_images, size * processes, rows, count) for rows in shards]
    return _together(_take_rows, arguments, count * size)


def _together(work: Callable[..., None], arguments: list[tuple], images: int) -> Rates:
    """Rates of processes that begin at once and work on `images` each."""
    start = multiprocessing.Barrier(len(arguments) + 1)
    used: SimpleQueue[float] = multiprocessing.SimpleQueue()
    workers = [multiprocessing.Process(target=work, args=(*given, start, used)) for given in arguments]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    cpu_seconds = sum(used.get() for _ in workers)
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    return _rates(len(arguments) * images, seconds, cpu_seconds)


def _take_rows(
    data_dir: Path,
    num_images: int,
    batch_size: int,
    rows: slice,
    count: int,
    start: Barrier,
    used: SimpleQueue[float],
) -> None:
    data = imagenet.open_dataset(data_dir, {"fake": num_images, "num_threads": 1})
    batches = data.train_batches(seed=0, batch_size=batch_size, start_step=0, rows=rows)
    with contextlib.closing(batches):
        _exhaust(itertools.islice(batches, 4))  # start-up, and what is ready by then
        start.wait()
        began = time.process_time()
        _exhaust(itertools.islice(batches, count))
        used.put(time.process_time() - began)


def _decode_all(jpegs: list[bytes], passes: int, start: Barrier, used: SimpleQueue[float]) -> None:
    import simplejpeg

    start.wait()
    began = time.process_time()
    for _ in range(passes):
        for jpeg in jpegs:
            simplejpeg.decode_jpeg(jpeg)
    used.put(time.process_time() - began)


def worker_rates(data_dir: Path, num_images: int, processes: int) -> Rates:
    """Takes as many images as `bare_rates` decodes, in the steady state."""
    options = {"fake": num_images, "num_threads": 1, "num_workers": processes}
    data = imagenet.open_dataset(data_dir, options)
    size = _BATCH.value
    batches = data.train_batches(seed=0, batch_size=size, start_step=0, rows=slice(0, size))
    count = processes * num_images * _PASSES.value // size
    with contextlib.closing(batches):
        # Start-up and the batches that the workers have ready by then do not count.
        _exhaust(itertools.islice(batches, 8 * processes))
        began, cpu_began = time.perf_counter(), _cpu_seconds()
        _exhaust(itertools.islice(batches, count))
        return _rates(count * size, time.perf_counter() - began, _cpu_seconds() - cpu_began)


def _exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def _cpu_seconds() -> float:
    """CPU time of this process and those that it started and that still run."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in family))


def measure(data_dir: Path) -> dict:
    """Returns the report."""
    input_pipelines.prepare("imagenet", data_dir, fake=_IMAGES.value)
    paths = sorted((data_dir / f"imagenet_fake_{_IMAGES.value}" / "train").glob("*/*.JPEG"))
    jpegs = [path.read_bytes() for path in paths]
    results = []
    for processes in _PROCESSES.value:
        rounds = []
        for _ in range(_ROUNDS.value):
            rounds.append(
                {
                    "bare": bare_rates(jpegs, processes),
                    "shards": shard_rates(data_dir, len(jpegs), processes),
                    "workers": worker_rates(data_dir, len(jpegs), processes),
                }
            )
        results.append({"processes": processes, **_summary(rounds), "rounds": rounds})
        records.show(results[-1])
    return {
        "schema_version": 1,
        "command": records.command("jpeg_input"),
        "machine": {"cpu": system.cpu_model(), **records.machine()},
        "versions": records.versions("grain", "numpy", "opencv-python-headless", "simplejpeg"),
        "images": records.made_up_images(jpegs),
        "batch": _BATCH.value,
        "results": results,
    }


def _summary(rounds: list[dict[str, Rates]]) -> dict[str, dict[str, float]]:
    """Medians of each rate, and those of the pipeline as parts of bare decoding's."""
    summary = {}
    for rate in ("images_per_second", "images_per_cpu_second"):
        medians = {side: statistics.median(r[side][rate] for r in rounds) for side in rounds[0]}
        parts = {f"{side}_over_bare": medians[side] / medians["bare"] for side in ("shards", "workers")}
        summary[rate] = medians | parts
    return summary


def main(argv: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        report = measure(Path(_DATA_DIR.value or scratch))
    records.write(_OUT.value, report)


if __name__ == "__main__":
    app.run(main)
