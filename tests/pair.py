"""A toy trained by two processes, and by one, on as many devices: what their logs and checkpoints say."""

from __future__ import annotations

import jax

from mlperf_jax.training.checkpoints import Checkpoints
from tests import door


def saved(cwd, workload, engine, *flags, status=0, devices=1):
    """(step, state): an epoch in float64 by two processes of so many devices under fsdp, as the last checkpoint has it.

    `engine` has the places that the state is read into; `status` is that of both at their end.
    """
    command = [
        f"--workload={workload}",
        "--platform=cpu",
        f"--cpu_devices={devices}",
        "--sharding=fsdp",
        "--seed=1",
    ]
    command += ["--config.precision=float64", "--config.max_epochs=1", *flags]
    command += [f"--coordinator={door.free_address()}", "--num_processes=2"]
    both = [door.start(cwd, *command, f"--process_id={i}", **door.LIGHTLY) for i in range(2)]
    for ended in map(door.finish, both):
        assert ended.returncode == status, ended.stderr
    with jax.enable_x64(True):
        checkpoints = Checkpoints(door.run_folder(cwd / "results") / "checkpoints")
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
    if processes > 1:
        command += [f"--coordinator={door.free_address()}", f"--num_processes={processes}"]
    each = [
        door.start(cwd, *command, *([f"--process_id={i}"] if processes > 1 else []), **door.LIGHTLY)
        for i in range(processes)
    ]
    ended = [door.finish(process) for process in each]
    assert all(one.returncode == 1 for one in ended) and "not reached" in ended[0].stdout, [
        one.stderr for one in ended
    ]
    return door.values(door.events_of(results), "eval_accuracy")
