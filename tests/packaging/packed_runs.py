"""Runs of our own to pack, made through the door as people make them."""

from __future__ import annotations

import json
from pathlib import Path

from tests import door

REACHED = ("--config.target=0.0", "--config.max_epochs=1")
# Of open and closed, for a machine without accelerators; a person fills these in.
BY_HAND = {
    "system_type": "edge",
    "system_type_detail": "a server",
    "host_network_card_count": "1",
    "host_memory_configuration": "1 x 24 GiB",
    "host_storage_capacity": "100 GB",
    "host_storage_type": "SSD",
    "host_networking": "none",
    "host_networking_topology": "none",
    "host_processor_interconnect": "none",
    "cooling": "air",
}


def train(cwd: Path, *arguments: str) -> Path:
    """Runs the door in `cwd`; returns RESULTS."""
    ended = door.run(cwd, *door.TINY, *REACHED, "--results_dir=results", "--seed=7", *arguments)
    assert ended.returncode == 0, ended.stderr
    return cwd / "results"


def fill_in(results: Path) -> None:
    """What a person knows of the system."""
    (path,) = results.glob("systems/*.json")
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, **BY_HAND}))


def closed_logs(root: Path, source: Path, count: int) -> None:
    """Copies of one log as `count` runs, each with a seed and times of its own."""
    text = source.read_text()
    folder = root / "results" / source.parents[1].name / source.parent.name
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        lines = []
        for line in text.splitlines():
            head, token, body = line.partition(":::MLLOG ")
            event = json.loads(body)
            event["time_ms"] += 1_000_000 * i
            if event["key"] == "seed":
                event["value"] += i
            lines.append(f"{head}{token}{json.dumps(event)}")
        (folder / f"result_{i}.txt").write_text("\n".join(lines) + "\n")
