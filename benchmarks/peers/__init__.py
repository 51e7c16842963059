"""The workloads written once more, in PyTorch: the judges of the tests, and the peers of `benchmarks.run`.

A file `<workload>.py` with a class `Peer` (see `benchmarks.speed.peer`) is that workload's row; there is no list.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any


def names() -> list[str]:
    """The workloads that have a row."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def find(workload: str) -> Any:
    """The class of a workload's peer; importing it needs PyTorch."""
    return importlib.import_module(f"{__name__}.{workload}").Peer
