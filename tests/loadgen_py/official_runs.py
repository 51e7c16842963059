"""Live runs of the official package, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import recording


def run_official(cases: list[dict], folder: Path, processes: int = 8) -> list[dict]:
    """The official package's records of the cases, shared out over processes that mostly sleep."""
    started = []
    for part in range(processes):
        target = folder / f"part_{part}"
        target.mkdir()
        (target / "cases.json").write_text(json.dumps(cases[part::processes]))
        command = [sys.executable, recording.__file__, str(target / "cases.json"), str(target)]
        with (target / "records").open("w") as out, (target / "errors").open("w") as errors:
            started.append(subprocess.Popen(command, stdout=out, stderr=errors, env=dict(os.environ)))
    records: list[dict] = [{}] * len(cases)
    for part, process in enumerate(started):
        target = folder / f"part_{part}"
        status = process.wait(timeout=240)
        assert status == 0, (
            f"the official package ended with {status}: {(target / 'errors').read_text()[-2000:]}"
        )
        lines = (target / "records").read_text().splitlines()
        records[part::processes] = [json.loads(line) for line in lines]
    return records
