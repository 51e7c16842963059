"""Where DLRM's and DLRM-DCNv2's closed training steps fit, by the chips' own compilers.

    python -m benchmarks.plan_dlrm    writes benchmarks/plan_dlrm.json and .md

Minutes a row, on the first run: answers are kept in ~/.cache/mlperf_jax/plan. Nothing runs, all is predicted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import records

GIB = 2**30
ROWS = (
    ("dlrm_dcnv2", "v5p:4x4x4"),
    ("dlrm_dcnv2", "v5e:8x8"),
    ("dlrm_dcnv2", "v5e:4x4"),
    ("dlrm_dcnv2", "v5e:2x2"),
    ("dlrm", "v5e:4x4"),
)
HEAD = """# Where the closed training steps of DLRM fit

Made by `python -m benchmarks.plan_dlrm` on a machine with two CPU cores and no accelerator: the train steps
of this repository, compiled for each topology by the chip's own compiler (libtpu). Nothing was measured.
Tables and accumulators are float32 and lie over the chips by rows. Rows that are looked up travel in one round
unless they are very unevenly spread, and are updated in parts of 65,536: `plan` counts such loops as often as the
program says they usually run. Figures and commands: plan_dlrm.json.

| workload | batch | topology | verdict | tables and parameters a chip | optimizer a chip | temporaries a chip | total a chip | predicted step |
|---|---|---|---|---|---|---|---|---|
"""


def planned(workload: str, topology: str) -> dict[str, Any]:
    """What the plan command answers, and the command."""
    arguments = [f"--workload={workload}", f"--topology={topology}", "--sharding=row_wise"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mlperf_jax.plan", *arguments, f"--results_dir={folder}"]
        subprocess.run(command, check=True)
        plan = json.loads((Path(folder) / "plan.json").read_text())
    return {"command": " ".join(["python", "-m", "mlperf_jax.plan", *arguments]), **plan}


def line(plan: dict[str, Any]) -> str:
    (strategy,) = plan["plans"]
    memory = strategy["hbm"]
    capacity = memory["capacity"] / GIB

    def size(name: str) -> str:
        return f"{memory[name] / GIB:.2f} GiB" if name in memory else "-"

    total = f"{size('total')} of {capacity:g} GiB" if "total" in memory else f"more than {capacity:g} GiB"
    step = f"{1e3 * strategy['predicted']['step']:.0f} ms" if strategy["predicted"] else "-"
    cells = (
        plan["workload"],
        f"{plan['batch_size']:,}",
        plan["topology"]["name"],
        strategy["verdict"],
        size("parameters"),
        size("optimizer"),
        size("activations"),
        total,
        step,
    )
    return f"| {' | '.join(cells)} |\n"


def reason(plan: dict[str, Any]) -> str:
    (strategy,) = plan["plans"]
    if strategy["verdict"] == "fits":
        return ""
    return f"\n{plan['workload']} on {plan['topology']['name']}: {strategy['reason']}\n"


def main() -> None:
    plans = [planned(*row) for row in ROWS]
    path = Path(__file__).with_suffix(".json")
    records.write(path, {"schema_version": 1, "plans": plans})
    page = HEAD + "".join(map(line, plans)) + "".join(map(reason, plans))
    path.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
