"""What a run found, for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from loadgen_py.advice import Reason

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        scenario, mode: their official names.
        valid: all conditions met, and the system under test did nothing wrong. An accuracy
            run is valid if every sample was answered.
        reasons: why it is not valid, with what to try next.
        metrics: the official result fields by name, empty where no performance was measured;
            a figure that does not exist is NaN.
        errors: what the system under test did wrong and what ended the run early.
        interrupted: the user stopped the run.
        logs: the log files by kind: summary, detail, accuracy, trace.
    """

    scenario: str
    mode: str
    valid: bool
    reasons: tuple[Reason, ...]
    metrics: dict[str, Any]
    errors: tuple[str, ...]
    interrupted: bool
    logs: dict[str, Path]

    def save(self, path: Path) -> None:
        """Writes the result as JSON, at once."""
        record = {"schema_version": SCHEMA_VERSION} | dataclasses.asdict(self)
        record["logs"] = {kind: str(file) for kind, file in self.logs.items()}
        record["metrics"] = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in self.metrics.items()
        }
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
        os.replace(temporary, path)
