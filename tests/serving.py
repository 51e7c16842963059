"""A toy that was trained through the door: its state, and it served through the door in all scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from loadgen_py import TestScenario
from mlperf_jax.results.folders import read_json
from mlperf_jax.training.checkpoints import Checkpoints
from mlperf_jax.training.engine import Engine
from mlperf_jax.workload import State
from tests import door


def state_of(engine: Engine, results: Path) -> State:
    """The last state of the run in a results folder, where the engine has it."""
    checkpoints = Checkpoints(door.run_folder(results) / "checkpoints", read_only=True)
    state = checkpoints.restore(engine.saved(engine.state))
    checkpoints.close()
    return state


def serve_in_all_scenarios(toy: Sequence[str], results: Path) -> float:
    """Every scenario is valid, and its logged answers are as good as training said; that figure is returned.

    Args:
        toy: flags that name it, "--workload=MODULE:CLASS" first.
        results: the folder of its run, which drew pictures.
    """
    folder = door.run_folder(results)
    trained = read_json(folder / "status.json")["quality"]
    assert len(list(folder.rglob("*.png"))) >= 2
    flags = (f"--results_dir={results}", "--scenario=all", "--qps=400", "--max_latency=5", "--time=0.3")
    ended = door.run(door.ROOT, *toy, *flags, **door.LIGHTLY)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    name = toy[0].partition("=")[2].replace(":", ".")
    for scenario in TestScenario.__members__:
        root = results / "mini/inference/here" / name / scenario
        performance, accuracy = (
            read_json(root / kind / "result.json") for kind in ("performance/run_1", "accuracy")
        )
        assert performance["valid"] and performance["passed"] and accuracy["passed"]
        assert accuracy["quality"] == pytest.approx(trained, abs=1e-9)
    return trained
