"""What the exchange of rows is worth: the step of row-wise tables before it and with it, in turns.

    python -m benchmarks.embedding_exchange    writes benchmarks/embedding_exchange.json and .md

Needs the repository's history: the version before is checked out beside this one, with today's synthetic data.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import records

ROOT = Path(__file__).parents[1]
BEFORE = "e92ad47~1"  # the commit before devices asked each other for rows
PLANNED_BEFORE = "cdc53c4"  # the plans of that version
SAME_DATA = ("base.py", "clicks.py", "synthetic.py")
ARGUMENTS = (
    "--workload=dlrm_dcnv2",
    "--preset=closed",
    "--platform=cpu",
    "--cpu_devices=8",
    "--sharding=row_wise",
    "--batch=4096",
    "--steps=4",
    "--config.data.table_fraction=0.002",
    "--config.precision=float32",
)
ROUNDS = 2
HEAD = """# Row-wise tables: asking for rows against pooling for everybody

Before, each device held its rows against the whole batch's look-ups, pooled what it had, and a reduce-scatter added the parts:
its work and traffic stayed the same however many devices there were. Now it asks the holders for the distinct rows of its own
examples (`mlperf_jax/embedding/exchange.py`).

Made by `python -m benchmarks.embedding_exchange`; not reviewed by MLCommons. DCNv2's closed model, tables cut to 0.2 % of their rows,
synthetic data, eight virtual devices on {machine}; load average {load} before. jax {jax}. Runs of the two versions in turns.

```
python -m mlperf_jax.compare {arguments}
```

| version | row_wise, a step (median of 4) | dp | memory a device | gradients, from dp's, relative |
|---|---|---|---|---|
"""
PLANS = """
Predicted for TPUs by `python -m benchmarks.plan_dlrm` before ({commit}) and now: nothing measured, loops of unknown length counted once.

| workload, topology | step before | now | temporaries a chip before | now |
|---|---|---|---|---|
"""


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout


def measured(tree: Path) -> dict:
    """The results of `compare` in a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mlperf_jax.compare", *ARGUMENTS, f"--results_dir={folder}"]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=tree, env=environment, stdout=sys.stderr)
        if done.returncode not in (0, 1):
            raise SystemExit(done.returncode)
        return json.loads((Path(folder) / "compare.json").read_text())


def row(version: str, result: dict) -> str:
    dp, rows = sorted(result["strategies"], key=lambda one: one["strategy"] != "dp")
    return (
        f"| {version} | {rows['step_seconds']['median']:.2f} s | {dp['step_seconds']['median']:.2f} s | "
        f"{rows['memory']['total'] / 2**20:.0f} MiB | {rows['agreement']['gradient']:.1e} |\n"
    )


def planned_rows(before: dict, now: dict) -> str:
    text = ""
    for old, new in zip(before["plans"], now["plans"], strict=True):
        (a,), (b,) = old["plans"], new["plans"]
        if a["verdict"] == b["verdict"] == "fits":
            steps = [f"{1e3 * plan['predicted']['step']:.1f} ms" for plan in (a, b)]
            sizes = [f"{plan['hbm']['activations'] / 2**30:.2f} GiB" for plan in (a, b)]
            cells = [f"{new['workload']}, {new['topology']['name']}", *steps, *sizes]
            text += f"| {' | '.join(cells)} |\n"
    return text


def main() -> None:
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        git("worktree", "add", "--detach", str(tree), BEFORE)
        try:
            for name in SAME_DATA:
                (tree / "input_pipelines" / name).write_text((ROOT / "input_pipelines" / name).read_text())
            runs = [{"before": measured(tree), "now": measured(ROOT)} for _ in range(ROUNDS)]
        finally:
            git("worktree", "remove", "--force", str(tree))
    record = {
        "schema_version": 1,
        "command": " ".join(["python", "-m", "mlperf_jax.compare", *ARGUMENTS]),
        "before": git("rev-parse", BEFORE).strip(),
        "machine": records.machine_in_words(),
        "load_average_before": load,
        **records.versions("jax"),
        "runs": runs,
    }
    path = Path(__file__).with_suffix(".json")
    records.write(path, record)
    page = HEAD.format(machine=record["machine"], load=load, jax=record["jax"], arguments=" ".join(ARGUMENTS))
    page += "".join(row(version, result) for run in runs for version, result in run.items())
    plans = Path(__file__).with_name("plan_dlrm.json").read_text()
    page += PLANS.format(commit=PLANNED_BEFORE)
    page += planned_rows(
        json.loads(git("show", f"{PLANNED_BEFORE}:benchmarks/plan_dlrm.json")), json.loads(plans)
    )
    path.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
