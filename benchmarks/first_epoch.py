"""The first epoch of every mini as figures that two checkouts can be compared by, bit for bit.

    python -m benchmarks.first_epoch before.json                      records, in one checkout
    python -m benchmarks.first_epoch after.json --against=before.json compares, in another

Each mini trains for an epoch (MiniGo: a generation of games) with seed 1, is evaluated, leaves a checkpoint,
and answers a few samples of its evaluation set. What is recorded: every loss as it was shown, MLPerf's log without times
and places in the code, a digest of every array of the checkpoint, a digest of the logged answers.
For one machine and one set of versions: others round differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

MINIS = ("dlrm", "dlrm_dcnv2", "minigo", "resnet50", "ssd_resnet34", "transformer")
# Figures of a log that are times, or of the machine's moment.
TIMED = ("compile_time", "tracked_stats", "cache_clear")


def record(workload: str) -> dict[str, Any]:
    """What the first steps of a mini leave."""
    from mlperf_jax import main
    from mlperf_jax.training.progress import Progress

    losses: list[float] = []
    shown = Progress.step

    def step(self: Progress, step: int, loss: float) -> None:
        losses.append(float(loss))
        shown(self, step, loss)

    Progress.step = step  # type: ignore[method-assign]  # every loss passes here
    with tempfile.TemporaryDirectory() as folder:
        common = [f"--workload={workload}", "--platform=cpu", f"--results_dir={folder}", "--prepare"]
        training = ["--config.max_epochs=1", "--seed=1"]
        serving = ["--scenario=SingleStream", "--mode=accuracy", "--count=50"]
        for arguments in (training, serving):
            status = main.main([*common, *arguments])
            if status not in (0, 1):
                raise SystemExit(status)
        return {
            "losses": losses,
            "log": _log(Path(folder)),
            "checkpoint": _checkpoint(Path(folder)),
            "answers": _answers(Path(folder)),
        }


def _log(folder: Path) -> list[Any]:
    (path,) = folder.glob("mini/results/*/*/result_0.txt")
    events = []
    for line in path.read_text().splitlines():
        event = json.loads(line.partition(":::MLLOG ")[2])
        metadata = {k: v for k, v in event["metadata"].items() if k not in ("file", "lineno")}
        value = None if event["key"] in TIMED else event["value"]
        events.append([event["key"], value, {} if event["key"] in TIMED else metadata])
    return events


def _checkpoint(folder: Path) -> dict[str, str]:
    import jax
    import orbax.checkpoint as ocp

    states = folder.glob("mini/runs/*/*/run_0/checkpoints/*/state")
    newest = max(states, key=lambda path: int(path.parent.name))
    state = ocp.PyTreeCheckpointer().restore(newest)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _digest(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _digest(leaf: Any) -> str:
    array = np.asarray(leaf)
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def _answers(folder: Path) -> str:
    (path,) = folder.glob("mini/inference/*/*/SingleStream/accuracy/mlperf_log_accuracy.json")
    answers = sorted((entry["qsl_idx"], entry["data"]) for entry in json.loads(path.read_text()))
    return hashlib.sha256(json.dumps(answers).encode()).hexdigest()


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What parts two records, a line each."""
    found = []
    for part in ("losses", "log", "answers"):
        if before[part] != after[part]:
            found.append(f"{part}: {_first_difference(before[part], after[part])}")
    old, new = before["checkpoint"], after["checkpoint"]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            found.append(f"checkpoint: {name} {old.get(name)} -> {new.get(name)}")
    return found


def _first_difference(before: Any, after: Any) -> str:
    if not isinstance(before, list):
        return "differ"
    for i, (a, b) in enumerate(zip(before, after, strict=False)):
        if a != b:
            return f"entry {i}: {a} -> {b}"
    return f"{len(before)} entries -> {len(after)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default=",".join(MINIS), help="workloads, by commas")
    parser.add_argument("--against", type=Path, help="an earlier record")
    asked = parser.parse_args()
    records = {workload: _in_process(workload) for workload in asked.only.split(",")}
    asked.out.write_text(json.dumps(records, indent=1) + "\n")
    if not asked.against:
        return 0
    before = json.loads(asked.against.read_text())
    parted = {w: differences(before[w], records[w]) for w in records}
    for workload, lines in parted.items():
        count = len(records[workload]["losses"])
        verdict = "\n  ".join(lines) if lines else f"{count} losses, log, checkpoint and answers are equal"
        print(f"{workload}: {verdict}")
    return int(any(parted.values()))


def _in_process(workload: str) -> dict[str, Any]:
    """`record` in a process of its own: jax decides about devices once."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(record, (workload,))


if __name__ == "__main__":
    sys.exit(main())
