"""A toy trained by two processes, and by one, on as many devices: what their logs and checkpoints say."""

from __future__ import annotations

import jax

from mlperf_jax.training.checkpoints import Checkpoints
from tests import door


def saved(cwd, workload, engine, *flags, preset="mini", status=0, devices=1, processes=2):
    """(step, state): an epoch in float64 by processes of so many devices under fsdp, as the last checkpoint has it.

    `engine` has the places that the state is read into; `status` is that of all at their end.
    """
    command = [
        f"--workload={workload}",
        f"--preset={preset}",
        "--platform=cpu",
        f"--cpu_devices={devices}",
        "--sharding=fsdp",
        "--seed=1",
    ]
    command += ["--config.precision=float64", "--config.max_epochs=1", *flags]
    for ended in _together(cwd, command, processes):
        assert ended.returncode == status, ended.stderr
    with jax.enable_x64(True):
        checkpoints = Checkpoints(door.run_folder(cwd / "results", preset=preset) / "checkpoints")
        found = checkpoints.position().step, checkpoints.restore(engine.saved(engine.state))
        checkpoints.close()
    return found


def evaluations(cwd, workload, *flags, processes=1, devices=2):
    """The qualities that a run in float64 logged, of a toy whose target cannot be reached."""
    results = cwd / f"results_{processes}"
    command = [
        f"--workload={workload}",
        f"--cpu_devices={devices // processes}",
        f"--results_dir={results}",
        "--platform=cpu",
        "--seed=1",
        "--system=box",
        "--config.precision=float64",
        *flags,
    ]
    ended = _together(cwd, command, processes)
    assert all(one.returncode == 1 for one in ended) and "not reached" in ended[0].stdout, [
        one.stderr for one in ended
    ]
    return door.values(door.events_of(results), "eval_accuracy")


def _together(cwd, command, processes):
    """How so many processes of one run ended."""
    each = [()]
    if processes > 1:
        command = [*command, f"--coordinator={door.free_address()}", f"--num_processes={processes}"]
        each = [(f"--process_id={i}",) for i in range(processes)]
    started = [door.start(cwd, *command, *own, **door.LIGHTLY) for own in each]
    return [door.finish(process) for process in started]
