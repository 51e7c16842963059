"""What it takes to place published weights shard by shard: the peak memory of each of four processes.

    python -m benchmarks.weights_memory    writes benchmarks/weights_memory.json and .md

Needs 2 GiB of disk, and of memory twice that.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.records import machine_in_words
from mlperf_jax.inference.trained import from_weights
from mlperf_jax.parallel import distributed
from mlperf_jax.parallel.layout import STRATEGIES, Layout
from mlperf_jax.parallel.mesh import make_layout
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights import files, lazy
from mlperf_jax.workload import Batch, Evaluation, ServedWorkload, State

ROOT = Path(__file__).parents[1]
KINDS = {
    "safetensors": "imported, as `--weights` reads it",
    "npz": "as published, uncompressed",
    "pth": "as published",
}
PROCESSES = 4
TENSORS = 8
SIDE = 8192
ALLOWANCE = 2**28
"""Bytes above a process's part and the largest tensor."""

_MIB = 2**20
_PAGE = """# Memory to place weights shard by shard

Eight float32 arrays, {total} MiB in all and {largest} MiB each, every other one wider than high, are split by `fsdp` over four processes of
one CPU device, so that some are read by rows and some by columns. The peak is `VmHWM`, which counts all resident pages, less `VmRSS`
before the file is opened; files are read into buffers and not mapped, so what the system caches of them is not in it. The bound is
a process's quarter, the largest array and {allowance} MiB. Every number of every shard is compared with what was written.

Made by `{command}`; not reviewed by MLCommons. {machine}; load average {load} before. Python {python}, jax {jax}, NumPy {numpy}.

| file | peak above idle in the four processes, MiB | bound, MiB |
|---|---|---|
"""


class Sheets(ServedWorkload):
    """Large arrays, and nothing that they are good for.

    Attributes:
        config: `side`: every other array is [side, side], the others [side / 2, 2 side].
    """

    benchmark = "sheets"
    num_samples = 0

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        side = self.config.side
        return {f"sheet{i}": (side // 2, 2 * side) if i % 2 else (side, side) for i in range(TENSORS)}

    @property
    def nbytes(self) -> int:
        return TENSORS * self.config.side**2 * 4

    def served_struct(self, layout: Layout) -> State:
        return {
            "params": {
                name: jax.ShapeDtypeStruct(shape, np.float32, sharding=layout.param_sharding(shape, None))
                for name, shape in self.shapes.items()
            }
        }

    def made(self) -> dict[str, lazy.LazyArray]:
        """Arrays whose numbers tell where they belong."""
        return {
            name: lazy.LazyArray(shape, np.float32, functools.partial(numbers, i))
            for i, (name, shape) in enumerate(self.shapes.items())
        }

    def read_samples(self, indices: np.ndarray) -> Batch:
        raise NotImplementedError

    def predict(self, state: State, inputs: Batch) -> jax.Array:
        raise NotImplementedError

    def answered_figures(self, indices: np.ndarray, answers: Any) -> Evaluation:
        raise NotImplementedError


def numbers(i: int, index: lazy.Index) -> np.ndarray:
    """A part of array i: 16 x the row and the column, modulo a prime."""
    row, column = (np.arange(axis.start, axis.stop, dtype=np.int32) for axis in index)
    return ((16 * row[:, None] + column + i) % 65521).astype(np.float32)


def sheets(side: int) -> Sheets:
    return Sheets(ConfigDict({"side": side}), POLICIES["float32"], data_dir=Path("/nonexistent"))


def write(kind: str, path: Path, workload: Sheets) -> None:
    """The weights as a file of that kind, or as the folder that `import_weights` writes."""
    made = workload.made()
    if kind == "safetensors":
        files.save(path, files.Imported({"params": made}, workload.benchmark, {}, {"file": "made up"}))
    elif kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in made.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array))
    else:
        import torch

        torch.save({name: torch.from_numpy(np.asarray(array)) for name, array in made.items()}, path)


def load(kind: str, path: Path, workload: Sheets, layout: Layout) -> State:
    """As inference loads what was imported, and as training loads a published backbone."""
    if kind == "safetensors":
        return from_weights(path, workload.benchmark).load(workload, layout)["params"]
    struct = workload.served_struct(layout)["params"]
    return jax.tree.map(lazy.place, files.read_tensors(path), struct)


def status(key: str) -> int:
    """Bytes that the system counts for this process."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def one_process(kind: str, path: str, side: str, address: str, i: str) -> None:
    """Loads this process's part, and prints its peak above idle in bytes."""
    distributed.start("cpu", coordinator=address, num_processes=PROCESSES, process_id=int(i))
    workload, layout = sheets(int(side)), make_layout(STRATEGIES["fsdp"])
    small = jax.ShapeDtypeStruct((1024, 4), np.float32, sharding=layout.param_sharding((1024, 4), None))
    lazy.place(
        np.zeros(small.shape, np.float32), small
    )  # What the first array of all costs is not the file's.
    idle = status("VmRSS")
    state = load(kind, Path(path), workload, layout)
    jax.block_until_ready(state)
    peak = status("VmHWM") - idle
    for k, name in enumerate(workload.shapes):
        for shard in state[name].addressable_shards:
            index = tuple(
                slice(*axis.indices(n)[:2]) for axis, n in zip(shard.index, state[name].shape, strict=True)
            )
            assert shard.data.size == state[name].size // PROCESSES
            np.testing.assert_array_equal(shard.data, numbers(k, index))
    print(json.dumps({"peak": peak}), flush=True)


def measured(kind: str, side: int) -> list[int]:
    """The peak above idle of each process, in bytes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"weights.{kind}"
        write(kind, path, sheets(side))
        command = [sys.executable, "-m", "benchmarks.weights_memory", kind, str(path), str(side), address]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        processes = [
            subprocess.Popen([*command, str(i)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
            for i in range(PROCESSES)
        ]
        said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{kind}: a process ended with status {[p.returncode for p in processes]}")
    lines = [next(line for line in text.splitlines() if line.startswith('{"peak"')) for text in said]
    return [json.loads(line)["peak"] for line in lines]


def bound(side: int, allowance: int = ALLOWANCE) -> int:
    total = sheets(side).nbytes
    return total // PROCESSES + total // TENSORS + allowance


def main() -> None:
    if len(sys.argv) > 1:
        one_process(*sys.argv[1:])
        return
    load_before = round(os.getloadavg()[0], 1)
    packages = ("jax", "numpy", "safetensors", "torch")
    versions = {name: importlib.metadata.version(name) for name in packages}
    total, peaks = sheets(SIDE).nbytes, {kind: measured(kind, SIDE) for kind in KINDS}
    record = {
        "schema_version": 1,
        "command": "python -m benchmarks.weights_memory",
        "machine": machine_in_words(),
        "load_average_before": load_before,
        "versions": {"python": platform.python_version(), **versions},
        "bytes": {"total": total, "largest": total // TENSORS, "bound": bound(SIDE)},
        "peaks": peaks,
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(record, indent=1) + "\n")
    page = _PAGE.format(
        total=total // _MIB,
        largest=total // TENSORS // _MIB,
        allowance=ALLOWANCE // _MIB,
        load=load_before,
        command=record["command"],
        machine=record["machine"],
        python=platform.python_version(),
        **versions,
    )
    for kind, one in peaks.items():
        row = ", ".join(f"{peak / _MIB:.0f}" for peak in one)
        page += f"| {kind}, {KINDS[kind]} | {row} | {bound(SIDE) // _MIB} |\n"
    path.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
