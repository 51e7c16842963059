"""Disks that are full, at every place where a command writes, and memory that is not there."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.fault import TINY, Fault, qualities, refusal, run

_FILE_SIZES = (
    0,
    300,
    1_000,
    2_500,
    4_000,
    8_000,
    12_000,
    14_000,
    16_000,
)  # this run writes none above 24,000
_ADDRESS_SPACES = (0.6, 1.2, 1.8, 2.05, 2.2, 2.5, 3.0)  # GB

# More than any of these holds, though not more than the compiler counts for the larger ones.
_LARGE = ("--config.batch_size=2000", "--config.data.num_train=8000", "--config.model.width=64")


def disk(folder: Path, random: random.Random) -> Iterator[Fault]:
    """Files that may not outgrow so many bytes: to the writer the same as a disk that fills up in them."""
    yield Fault("disk", "none is full", functools.partial(_train, folder / "whole"))
    for size in _FILE_SIZES:
        yield Fault(
            "disk", f"training, files of {size} bytes at most", functools.partial(_full, folder, size)
        )
    for name, module, arguments in _writers(folder / "whole" / "results"):
        for size in (0, 2_000):
            place = folder / f"{name}_{size}"
            yield Fault(
                "disk",
                f"{name}, files of {size} bytes at most",
                functools.partial(_writes, place, size, module, arguments),
            )
    for module, argument in (
        ("main", "--list"),
        ("main", "--help"),
        ("report", str(folder / "whole" / "results")),
    ):
        yield Fault(
            "disk",
            f"{module} {argument.split('/')[-1]} into a full device",
            functools.partial(_to_full, folder, module, argument),
        )


def _writers(results: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    model = (*TINY, f"--checkpoint={results / 'mini/runs/box/resnet/run_0'}", "--results_dir=results")
    yield "prepare", "prepare", ("--workload=resnet50", "--fake=8", "--data_dir=data")
    yield "report", "report", (str(results), "--html=page.html", "--csv=all.csv")
    yield "package", "package", (f"--training={results}", "--org=acme", "--division=open", "--out=package")
    yield "inference", "main", (*model, "--scenario=Offline", "--time=0.1", "--count=16")


def _train(folder: Path) -> str:
    folder.mkdir(parents=True)
    ended = run(folder, "main", *TINY, "--results_dir=results")
    return "" if ended.returncode == 1 else f"status {ended.returncode}: {ended.stderr[-300:]}"


def _full(folder: Path, size: int) -> str:
    """Refused, and afterwards the same command finishes, with the figures of a run that was not disturbed."""
    place = folder / f"training_{size}"
    place.mkdir(parents=True)
    if why := refusal(run(place, "main", *TINY, "--results_dir=results", limits=(f"--fsize={size}",))):
        return why
    ended = run(place, "main", *TINY, "--results_dir=results")
    if ended.returncode != 1:
        return f"not continued: {ended.stderr[-300:]}"
    same = qualities(place / "results") == qualities(folder / "whole" / "results")
    return "" if same else "other figures afterwards"


def _writes(place: Path, size: int, module: str, arguments: tuple[str, ...]) -> str:
    place.mkdir(parents=True)
    return refusal(run(place, module, *arguments, limits=(f"--fsize={size}",)))


def _to_full(folder: Path, module: str, argument: str) -> str:
    device = os.open("/dev/full", os.O_WRONLY)
    try:
        return refusal(run(folder, module, argument, stdout=device))
    finally:
        os.close(device)


def memory(folder: Path, random: random.Random) -> Iterator[Fault]:
    """Limits of the address space, and numbers that no memory holds."""
    results = folder / "results"
    for gigabytes in _ADDRESS_SPACES:
        limits = (f"--as={round(gigabytes * 1e9)}",)
        what = f"training within an address space of {gigabytes} GB"
        flags = (*TINY, *_LARGE, f"--results_dir={results}_{gigabytes}")
        yield Fault("memory", what, functools.partial(_short, folder, flags, limits))
    for override in (
        "--config.batch_size=3000000",
        "--config.eval_batch_size=16000000",
        "--config.model.width=8192",
        "--config.data.num_train=99999999999999",
        "--cpu_devices=100000",
    ):
        # A set must have as many examples as a batch.
        larger = ("--config.data.num_train=6000000",) if override.startswith("--config.batch") else ()
        flags = (*TINY, *larger, f"--results_dir={results}", override)
        yield Fault("memory", override, functools.partial(_short, folder, flags, ()))
    yield Fault("memory", "after these another configuration", functools.partial(_another, folder, results))
    fake = ("--workload=resnet50", "--fake=99999999999999", "--data_dir=data")
    yield Fault("memory", "prepare --fake=99999999999999", lambda: refusal(run(folder, "prepare", *fake)))


def _short(folder: Path, flags: tuple[str, ...], limits: tuple[str, ...]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return refusal(run(folder, "main", *flags, limits=limits), stack=True)


def _another(folder: Path, results: Path) -> str:
    ended = run(folder, "main", *TINY, f"--results_dir={results}", "--config.max_epochs=1")
    return "" if ended.returncode == 1 else f"status {ended.returncode}: {ended.stderr[-300:]}"
