"""Examples per second that one process reads of Criteo's sets, and what converting the raw days costs.

    python -m benchmarks.clicks_input --out=benchmarks/clicks_input.json

Reading: batches of `train_batches` on made-up sets, in the memory of the operating system after the first
pass, beside copying the same bytes out of the mapped files, which is the least that any reader does.
One reading thread on both sides; the medians of rounds, by the clock and, since that needs a machine with
nothing else to do, by CPU time.

Converting: made-up days of text, as gzip, with MLPerf's 40,000,000 categories a table, by one process:
its CPU time by step, and the most memory that it held, mapped files included. Collecting the tables
takes as long whatever the number of examples; parsing includes a second a day that does too.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags

import input_pipelines
from benchmarks import records
from input_pipelines.clicks import criteo_format

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Holds the made-up sets; by default a temporary folder.")
_EXAMPLES = flags.DEFINE_integer("examples", 300_000, "Made-up train examples.")
_BATCH = flags.DEFINE_integer("batch", 65536, "Rows of a batch.")
_BATCHES = flags.DEFINE_integer("batches", 16, "In a round.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each is measured.")
_DAYS = flags.DEFINE_multi_integer("days", [1_000_000, 1_500_000, 1_200_000], "Examples of each raw day.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

_REPEATED = 20  # Making text up line by line takes longer than converting it.
_CONVERT = """
import json, resource, sys, time
from pathlib import Path
from input_pipelines.clicks import criteo_convert
seconds = {}
def timed(step):
    def run(*arguments):
        began = time.process_time()
        step(*arguments)
        seconds[step.__name__] = seconds.get(step.__name__, 0.0) + time.process_time() - began
    return run
for name in ("_parse_day", "_write_vocabulary", "_distribute_day", "_permute_bucket"):
    setattr(criteo_convert, name, timed(getattr(criteo_convert, name)))
spec = criteo_convert.Spec(num_days=int(sys.argv[3]), table_sizes=(), counts=(), num_workers=1)
criteo_convert.convert(Path(sys.argv[1]), Path(sys.argv[2]), spec)
memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"cpu_seconds": seconds, "peak_memory_bytes": memory}))
"""


def reading(name: str, data_dir: Path) -> dict:
    """Rates of reading a made-up set and of copying its bytes."""
    count = _EXAMPLES.value
    input_pipelines.prepare(name, data_dir, fake=count)
    data = input_pipelines.open_dataset(name, data_dir, {"fake": count, "num_threads": 1})
    files = [path for path in (data_dir / f"{name}_fake_{count}").iterdir() if path.suffix != ".json"]
    mapped = [np.memmap(path, np.uint8, mode="r") for path in files]
    bytes_per_example = sum(dtype.itemsize * math.prod(shape) for shape, dtype in data.train_spec.values())
    num_bytes = _BATCHES.value * _BATCH.value * bytes_per_example

    def read() -> None:
        with contextlib.closing(
            data.train_batches(seed=0, batch_size=_BATCH.value, start_step=0, rows=slice(0, _BATCH.value))
        ) as batches:
            for _ in itertools.islice(batches, _BATCHES.value):
                pass

    def copy() -> None:
        left = num_bytes
        for array in itertools.cycle(mapped):
            for start in range(0, len(array), 2**24):
                piece = np.array(array[start : min(start + 2**24, start + left)])
                left -= len(piece)
                if left <= 0:
                    return

    read()
    copy()
    rounds = [{"read": _rates(read), "copy": _rates(copy)} for _ in range(_ROUNDS.value)]
    medians = {
        side: {rate: statistics.median(r[side][rate] for r in rounds) for rate in rounds[0][side]}
        for side in ("read", "copy")
    }
    return {
        "name": name,
        "bytes_per_example": bytes_per_example,
        **medians,
        "rounds": rounds,
    }


def _rates(work: Callable[[], None]) -> dict[str, float]:
    began, cpu_began = time.perf_counter(), time.process_time()
    work()
    examples = _BATCHES.value * _BATCH.value
    return {
        "examples_per_second": examples / (time.perf_counter() - began),
        "examples_per_cpu_second": examples / (time.process_time() - cpu_began),
    }


def converting(folder: Path) -> dict:
    """What converting made-up days costs."""
    raw = folder / "raw"
    raw.mkdir()
    num_bytes = 0
    for day, count in enumerate(_DAYS.value):
        text = made_up_text(np.random.default_rng(day), count // _REPEATED) * _REPEATED
        num_bytes += len(text)
        (raw / f"day_{day}.gz").write_bytes(gzip.compress(text, 1))
    command = [sys.executable, "-c", _CONVERT, str(raw), str(folder / "out"), str(len(_DAYS.value))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cost = json.loads(done.stdout.splitlines()[-1])
    examples = sum(_DAYS.value)
    per_second = {step: examples / seconds for step, seconds in cost["cpu_seconds"].items()}
    return {"examples": examples, "bytes_of_text": num_bytes, **cost, "examples_per_cpu_second": per_second}


def made_up_text(random: np.random.Generator, count: int) -> bytes:
    """Lines as Criteo's, of the made-up set's numbers, an eighth of all fields missing."""
    label, numbers, _ = criteo_format.COLUMNS.made_up(random, count)
    numbers -= random.random(numbers.shape) < 0.05  # there are numbers of -1
    categories = random.integers(2**32, size=(count, 26))
    lines = []
    for row in range(count):
        fields = [*map(str, numbers[row].tolist()), *map("{:08x}".format, categories[row].tolist())]
        for missing in random.integers(39, size=5).tolist():
            fields[missing] = ""
        lines.append("\t".join([str(label[row, 0]), *fields]))
    return ("\n".join(lines) + "\n").encode()


def main(_: list[str]) -> None:
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("criteo", "criteo_multihot"):
            results.append(reading(name, Path(_DATA_DIR.value or scratch)))
            records.show(results[-1])
        conversion = converting(Path(scratch))
        records.show(conversion)
    report = {
        "schema_version": 1,
        "command": records.command("clicks_input"),
        "machine": records.machine() | records.versions("numpy"),
        "batch": _BATCH.value,
        "reading": results,
        "converting": conversion,
    }
    records.write(_OUT.value, report)


if __name__ == "__main__":
    app.run(main)
