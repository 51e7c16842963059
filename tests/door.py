"""Runs the commands as people do: in processes of their own, from a folder of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlperf_jax.results.events import Event, read_events

ROOT = Path(__file__).parents[1]

TINY = (
    "--workload=resnet50",
    "--platform=cpu",
    "--synthetic_data",
    "--config.data.num_train=2560",
    "--config.data.num_eval=250",
    "--config.batch_size=128",
    "--config.eval_batch_size=100",
    "--config.model.stages=(1,)",
    "--config.model.width=8",
    "--config.optimizer.base_lr=0.05",
)
"""Mini's code on random images: 20 steps an epoch, under a second."""


LIGHT_FLAGS = (
    "--xla_backend_optimization_level=0"
    " --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
"""XLA's, with which a program compiles in a quarter of the time, and runs slower; the cores have other tests to run."""

LIGHTLY = {"XLA_FLAGS": LIGHT_FLAGS}
"""For `start` and `run`, in tests of what a workload adds; the spine's own are compiled as a user's are."""

# Compiled programs are shared between the commands of a test session, of which most are compilation. The first
# process to get here makes the folder and removes it; workers of pytest-xdist inherit its name.
CACHE = "MLPERF_JAX_TESTS_COMPILED"
if CACHE not in os.environ:
    _folder = tempfile.TemporaryDirectory(prefix="mlperf_jax-compiled-")
    os.environ[CACHE] = _folder.name


def environment(**changes: str) -> dict[str, str]:
    """The caller's, without what the tests' own process decided about devices; None removes.

    Modules are compiled once for all commands, though the caller may want nothing written beside them: a third of a second each.
    """
    left_out = ("JAX_PLATFORMS", "XLA_FLAGS", "PYTHONDONTWRITEBYTECODE")
    plain = {k: v for k, v in os.environ.items() if k not in left_out}
    shared = {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": os.environ[CACHE],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return plain | shared | changes


def start(
    cwd: Path, *arguments: str, module: str = "main", largest_file: int = 0, **changes: str
) -> subprocess.Popen:
    """Starts `python -m mlperf_jax.main`, or another command, in a folder, where asked with no room for files of more bytes."""
    command = [sys.executable, "-P", "-m", f"mlperf_jax.{module}", *arguments]
    if largest_file:
        limited = (
            "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
        )
        command = [
            sys.executable,
            "-c",
            limited + "os.execv(sys.argv[2], sys.argv[2:])",
            str(largest_file),
            *command,
        ]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_closed(
    folder: Path, workload: str, fake: int, *cuts: str, flags: Sequence[str] = ()
) -> subprocess.Popen:
    """Starts a closed run on `fake` made-up examples, of a config cut as in "batch_size=2"; data and results go there."""
    from mlperf_jax import (
        prepare,
    )  # it imports jax, before whose import the tests' own process sets its devices

    names = (f"--workload={workload}", "--preset=closed", f"--data_dir={folder}")
    assert prepare.main([*names, f"--fake={fake}"]) == 0
    numbers = (f"--config.{cut}" for cut in (f"data.fake={fake}", *cuts))
    return start(folder, *names, "--platform=cpu", *numbers, "--seed=1", *flags, **LIGHTLY)


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    """Waits for its end. Several that were started before are at work meanwhile."""
    out, err = process.communicate(timeout=900)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(cwd: Path, *arguments: str, largest_file: int = 0, **changes: str) -> subprocess.CompletedProcess:
    """Runs it to its end."""
    return finish(start(cwd, *arguments, largest_file=largest_file, **changes))


def wait_for(process: subprocess.Popen, condition: Callable[[], bool], seconds: float = 240) -> None:
    """Returns when the condition holds while the process is still at work."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


def free_address() -> str:
    """host:port for processes to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def logs(results: Path, preset: str = "mini") -> list[Path]:
    """The result logs of a results folder, by index."""
    root = results / "mini" if preset == "mini" else results
    return sorted(root.glob("results/*/*/result_*.txt"))


def run_folder(results: Path, index: int = 0, preset: str = "mini") -> Path:
    root = results / "mini" if preset == "mini" else results
    (found,) = root.glob(f"runs/*/*/run_{index}")
    return found


def values(events: Sequence[Event], key: str) -> list:
    return [event.value for event in events if event.key == key]


def events_of(results: Path, index: int = 0) -> list[Event]:
    return read_events(logs(results)[index])


def complaints_as(log: Path, benchmark: str, ruleset: str) -> list[str]:
    """What the checker objects to where a log calls itself another benchmark, for one that no ruleset has."""
    (own,) = values(read_events(log), "submission_benchmark")
    other = log.with_name(f"as_{benchmark}.txt")
    other.write_text(log.read_text().replace(f'"value": "{own}"', f'"value": "{benchmark}"'))
    return complaints(other, ruleset)


def complaints(log: Path, ruleset: str) -> list[str]:
    """What the official compliance checker objects to in a training log."""
    command = [sys.executable, "-m", "mlperf_logging.compliance_checker", "--usage", "training"]
    command += ["--ruleset", ruleset, "--log_output", os.devnull, str(log)]
    # It writes a file of its own where it is.
    judged = subprocess.run(command, cwd=log.parent, capture_output=True, text=True, timeout=120)
    lines = (judged.stdout + judged.stderr).splitlines()
    found = [line for line in lines if any(w in line for w in ("WARNING", "CHECK for", "Required", "Failed"))]
    assert (judged.returncode == 0) == (not found), lines
    return found
