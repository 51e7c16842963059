"""compare on eight virtual devices, each command in its own process as a user's is."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from mlperf_jax.parallel import mesh
from mlperf_jax.parallel.layout import Strategy
from mlperf_jax.planning import compare, cost_network, hlo

TINY = ["--config.model.stages=(1,)", "--config.model.width=16", "--batch=32"]
CHOSEN = """
shard_params = "fsdp"
[mesh]
data = 2
fsdp = 4
[rules]
batch = ["data", "fsdp"]
"""


def run(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "mlperf_jax.compare", "--cpu_devices=8", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def test_strategies_agree_in_float64(tmp_path):
    """All agree with dp to 1e-9, and hold less of the state than it; what is repeated is said."""
    (tmp_path / "chosen.toml").write_text(CHOSEN)
    done = run(
        "--workload=resnet50",
        f"--sharding=fsdp,fsdp_tp,{tmp_path / 'chosen.toml'}",
        "--steps=2",
        "--config.precision=float64",
        f"--results_dir={tmp_path}",
        *TINY,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "compare.json").read_text())
    rows = {row["strategy"]: row for row in record["strategies"]}
    assert list(rows) == ["dp", "fsdp", "fsdp_tp", "chosen"]  # dp comes by itself
    assert [name for name, row in rows.items() if row["repeated"]] == ["chosen"]
    assert "Repeated by chosen: mesh axis fsdp (4 devices) splits parameters but not the batch" in done.stdout
    assert record["schema_version"] == 1 and record["devices"]["count"] == 8
    for row in rows.values():
        assert row["agreement"]["passed"]
        assert row["agreement"]["loss"] <= 1e-9 and row["agreement"]["gradient"] <= 1e-9
        assert row["step_seconds"]["low"] <= row["step_seconds"]["median"] <= row["step_seconds"]["high"]
        assert row["predicted_step"] > 0
    assert any(c["kind"] == "all-gather" for c in rows["fsdp"]["collectives"])
    state = {name: row["memory"]["state"] for name, row in rows.items()}
    assert state["fsdp_tp"] < state["fsdp"] < state["dp"]
    assert "Not reviewed by MLCommons" in done.stdout
    assert (tmp_path / "compare.svg").exists()
    assert "2 steps are too few for quartiles; --steps=20 has them." in done.stdout


def test_a_strategy_that_disagrees_is_found():
    done = run("--workload=tests.planning.crooked:Crooked", "--sharding=fsdp", "--steps=1", *TINY)
    assert done.returncode == 1, done.stderr
    assert "fsdp does not agree with dp" in done.stderr
    assert "NO" in done.stdout and "Traceback" not in done.stderr


def test_mistakes_get_a_sentence():
    done = run("--workload=resnet50", "--sharding=dp,magic")
    assert done.returncode == 2
    assert done.stderr.startswith("mlperf_jax: There is no --sharding=magic")


def test_collectives_over_two_axes_together():
    """The gradient of what is whole on eight devices, of a batch that lies over both axes."""
    strategy = Strategy("s", {"data": 2, "fsdp": 4}, {"batch": (("data", "fsdp"),)})
    layout = mesh.make_layout(strategy)
    x, w = layout.struct((16, 4), np.float32, ("batch",)), layout.struct((4, 3), np.float32)
    text = jax.jit(jax.grad(lambda w, x: ((x @ w) ** 2).sum())).lower(w, x).compile().as_text()
    found = cost_network.collectives(hlo.parse(text), cost_network.Network(compare._topology(), layout.mesh))
    (row,) = cost_network.by_kind_and_axis(found)
    assert (row["kind"], row["axes"], row["group"]) == ("all-reduce", ["data", "fsdp"], 8)
    assert row["bytes"] == 4 * 3 * 4


@pytest.mark.parametrize("scale", [0.0, 1e-3])
def test_distance_is_that_of_one_long_vector(scale):
    random = np.random.default_rng(0)
    reference = [random.normal(size=(3, 4)), random.normal(size=5)]
    mine = [(1 + scale) * x for x in reference]
    assert compare._distance(mine, reference) == pytest.approx(scale)
    assert compare._distance([np.ones(4)], [np.zeros(4)]) == 2.0
