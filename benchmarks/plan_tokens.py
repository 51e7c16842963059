"""Llama 3.1 8B's engine, planned for accelerators that are not there, beside published tokens a second.

    python -m benchmarks.plan_tokens    writes benchmarks/plan_tokens.json and .md

Minutes a program, on the first run: answers are kept in ~/.cache/mlperf_jax/plan. GPUs need jax's CUDA plugin. Nothing runs, all is predicted.
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
    ("h200:1x1", "dp", "", "auto"),
    ("v6e:2x2", "tp", "data:1,model:4", "auto"),
)
PUBLISHED = {
    "h200:1x1": "8,255 a GPU in Offline (8 x H200 SXM, MLPerf Inference v5.1 closed)",
    "v6e:2x2": "2,495 to 3,544 in all (tpu-recipes, vLLM on Trillium, Llama 3.x; chips as there)",
}
HEAD = """# Llama 3.1 8B by the token, planned

Made by `python -m benchmarks.plan_tokens` on a machine with two CPU cores and no accelerator: the engine's own programs, compiled for each topology by
the chip's own compiler. Nothing was measured. Prompts are all of 1,920 tokens and answers of 128, the longest that MLPerf's benchmark allows, where its articles are
shorter; all slots are at work, one program runs at a
time, and nothing is lost on the host. Attention of parts of prompts is a loop over pages, of which one round is counted. Published figures are of
other software and other precision. Figures and commands: plan_tokens.json.

| topology | layout | weights | slots, room for | memory of a step, of it cache | step | a prompt is read in | tokens/s | a chip | published tokens/s |
|---|---|---|---|---|---|---|---|---|---|
"""


def planned(topology: str, sharding: str, mesh: str, weights: str) -> dict[str, Any]:
    """What the plan command answers, and the command."""
    arguments = [
        "--workload=llama31_8b",
        f"--topology={topology}",
        f"--sharding={sharding}",
        "--scenario=Offline",
    ]
    arguments += [f"--mesh={mesh}"] if mesh else []
    arguments += [f"--config.inference.weights={weights}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mlperf_jax.plan", *arguments, f"--results_dir={folder}"]
        subprocess.run(command, check=True)
        plan = json.loads((Path(folder) / "plan.json").read_text())
    return {"command": " ".join(["python", "-m", "mlperf_jax.plan", *arguments]), "weights": weights, **plan}


def line(plan: dict[str, Any]) -> str:
    step, told = plan["plans"][0], plan["plans"][-1]["telling"]
    name = plan["topology"]["name"]
    layout = f"{step['strategy']} " + ",".join(f"{axis}:{size}" for axis, size in step["mesh"].items())
    cells = [name, layout, plan["weights"]]
    if told:
        memory = step["hbm"]
        cells += [
            f"{told['slots']}, {told['most_slots']}",
            f"{memory['total'] / GIB:.1f} of {memory['capacity'] / GIB:g} GiB, {memory['cache'] / GIB:.1f} GiB",
            f"{1e3 * told['step']:.1f} ms",
            f"{1e3 * told['reading']:.0f} ms",
            f"{told['tokens_per_s']:,.0f}",
            f"{told['tokens_per_s_per_chip']:,.0f}",
        ]
    else:
        cells += ["does not fit", *["-"] * 5]
    return f"| {' | '.join([*cells, PUBLISHED[name]])} |"


def main() -> None:
    plans = [planned(*row) for row in ROWS]
    here = Path(__file__).parent
    records.write(here / "plan_tokens.json", {"plans": plans})
    page = HEAD + "\n".join(map(line, plans)) + "\n"
    (here / "plan_tokens.md").write_text(page)


if __name__ == "__main__":
    main()
