"""A toy trained by two processes, and by one, on as many devices: what their logs say."""

from __future__ import annotations

import socket

from tests import door


def evaluations(cwd, workload, *flags, processes=1, devices=2):
    """The qualities that a run in float64 logged, of a toy whose target cannot be reached."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
        command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
    each = [
        door.start(cwd, *command, *([f"--process_id={i}"] if processes > 1 else []), **door.LIGHTLY)
        for i in range(processes)
    ]
    ended = [door.finish(process) for process in each]
    assert all(one.returncode == 1 for one in ended) and "not reached" in ended[0].stdout, [
        one.stderr for one in ended
    ]
    return door.values(door.events_of(results), "eval_accuracy")
