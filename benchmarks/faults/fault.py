"""What a fault is, and when it counts as survived."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 600  # a command that takes longer hangs

TINY = (
    "--workload=resnet50",
    "--platform=cpu",
    "--synthetic_data",
    "--seed=1",
    "--system=box",
    "--config.data.num_train=2560",
    "--config.data.num_eval=256",
    "--config.batch_size=128",
    "--config.eval_batch_size=128",
    "--config.model.stages=(1,)",
    "--config.model.width=8",
    "--config.optimizer.base_lr=0.05",
    "--config.max_epochs=4",
)
"""Mini's code on random images, in seconds; the target is out of reach, so a finished run ends with status 1."""

LIGHTLY = (
    "--xla_backend_optimization_level=0 --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
    " --xla_cpu_use_fusion_emitters=false"
)


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: kills, partners, disk, memory, flips, parsers or systems.
        what: it in a phrase.
        happens: brings it about, and returns why it was not survived, "" if it was.
    """

    kind: str
    what: str
    happens: Callable[[], str]


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """A user's, in which programs compile quickly, and once."""
    shared = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": LIGHTLY,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return {**os.environ, **shared, **changes}


def run(
    folder: Path, module: str, *arguments: str, limits: tuple[str, ...] = (), stdout: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command in `folder`; `limits`: as `prlimit` takes them, as "--fsize=4096"."""
    command = [*(("prlimit", *limits) if limits else ()), sys.executable, "-P", "-m", f"mlperf_jax.{module}"]
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        timeout=PATIENCE_SECONDS,
    )


def refusal(ended: subprocess.CompletedProcess[str], *, stack: bool = False) -> str:
    """Why a command did not end as it should where something is to be mended; "" if it did.

    Args:
        ended: the command.
        stack: whether a library may have written a stack of its own before the sentence.
    """
    return unlike(ended.returncode, ended.stderr, stack=stack)


def unlike(status: int, said: str, *, stack: bool = False) -> str:
    """As `refusal`, of a status and what stands on standard error."""
    lines = [line for line in said.splitlines() if line.strip()]
    if status != 2:
        return f"status {status}: {lines[-1] if lines else 'silent'}"
    if "Traceback" in said:
        return "a traceback"
    if "stack trace" in said and not stack:
        return "a stack"
    if not lines or not lines[-1].startswith("mlperf_jax: "):
        return f"no sentence at the end: {lines[-1] if lines else 'silent'}"
    return ""


def qualities(results: Path) -> list[float]:
    """The evaluations in the log of a results folder's only run."""
    from mlperf_jax.results.events import read_events

    (log,) = results.glob("mini/results/*/*/result_0.txt")
    return [event.value for event in read_events(log) if event.key == "eval_accuracy"]
