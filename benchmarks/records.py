"""What the records of benchmarks have in common: the command, the machine, versions, and the file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mlperf_jax.results import system


def command(module: str) -> str:
    """What was typed to run a benchmark."""
    return " ".join([f"python -m benchmarks.{module}", *sys.argv[1:]])


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "load_average_at_end": os.getloadavg(),
        "python": platform.python_version(),
    }


def machine_in_words() -> str:
    return f"{len(os.sched_getaffinity(0))} cores of {system.cpu_model()}"


def versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def made_up_images(jpegs: Collection[bytes]) -> dict[str, Any]:
    """What was read where `prepare --fake` has made the images."""
    return {
        "kind": "made up, input_pipelines/image/fake_images.py",
        "count": len(jpegs),
        "mean_bytes": statistics.mean(map(len, jpegs)),
    }


def show(record: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Prints a record but for its single rounds."""
    print(
        json.dumps({key: value for key, value in record.items() if key != "rounds"}, indent=indent),
        flush=True,
    )


def write(path: str | Path | None, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON; without a path nothing."""
    if path:
        Path(path).write_text(json.dumps(record, indent=1) + "\n")
