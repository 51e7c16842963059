"""Several processes: jax's own multi-controller runtime, started before any device is touched."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError

HEARTBEAT_SECONDS = 30
"""A process that has not been heard of for so long is taken for dead, and the others end."""

_GRACE_SECONDS = 2
"""How much later process 0 leaves, so that the others can say what befell them."""

_kept: list[object] = []  # What C holds a pointer to must not be collected.

# Number of tasks as told by SLURM, Open MPI and Kubernetes (indexed jobs).
_CLUSTER_HINTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETIONS")


def start(platform: str, *, coordinator: str | None, num_processes: int, process_id: int) -> None:
    """Joins the other processes, where there are any.

    Cloud TPU pods, SLURM, Open MPI and Kubernetes are recognised by jax itself; elsewhere the
    three arguments say who is who. A single process on its own starts nothing.

    Args:
        platform: cpu, gpu or tpu.
        coordinator: host:port of process 0, or None to let jax find it.
        num_processes: how many there are, 0 where jax shall find out.
        process_id: which of them this is, -1 where jax shall find out.

    Raises:
        UserError: the arguments are incomplete, or the others could not be reached.
    """
    given = (coordinator is not None, num_processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise UserError(
            "--coordinator, --num_processes and --process_id go together; give all three or none."
        )
    if not any(given) and not _in_cluster(platform):
        return
    import jax

    if platform == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes if all(given) else None,
            process_id if all(given) else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            initialization_timeout=120,
        )
    except (RuntimeError, ValueError) as error:
        if platform == "tpu" and isinstance(error, ValueError):
            return  # A TPU outside of any cluster that jax knows: one host, which runs alone.
        raise UserError(
            f"The processes could not join each other ({str(error).splitlines()[0]}); "
            "start all of them with the same --coordinator=HOST:PORT and --num_processes."
        ) from error
    _speak_when_aborted()


def _in_cluster(platform: str) -> bool:
    if platform == "tpu":
        return True  # One host of a slice cannot run alone; jax asks the TPU's metadata who the others are.
    return any(int(os.environ.get(name, "1") or 1) > 1 for name in _CLUSTER_HINTS)


def _speak_when_aborted() -> None:
    """Lets a process that jax aborts, as it does all others when process 0 dies, end with a sentence and status 2.

    jax's client gives no say in it: its callback passes a C++ status that has no Python form. Python's
    own signal handlers run between bytecodes, too late for `abort`, so this one is C's.
    """
    text = (
        b"mlperf_jax: jax ended this process, most likely because process 0 died or the way to it was lost: what "
        b"jax wrote above and the output of process 0 say why. "
        b"Repeat the same command in all of them; training continues from its last checkpoint.\n"
    )

    def speak(_: int) -> None:
        os.write(2, text)
        os._exit(2)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(speak)
    _kept.append(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def agree(facts: Mapping[str, Any]) -> None:
    """Holds what every process was started with against the others', before anything is compiled.

    Args:
        facts: name -> value, the same names in all processes of one version; a name is what people know it
            by, as "--config.batch_size".

    Raises:
        UserError: in every process alike, with the first name on which two of them differ, and both values.
    """
    import jax

    if jax.process_count() == 1:
        return
    ours = {name: json.dumps(value, sort_keys=True, default=str) for name, value in facts.items()}
    try:
        everyone = _gather(json.dumps(ours).encode())
    except jax.errors.JaxRuntimeError as error:
        leave(error)
        raise
    first, *others = (json.loads(told) for told in everyone)
    for index, told in enumerate(others, 1):
        for name in sorted(first.keys() | told.keys()):
            if first.get(name) != told.get(name):
                raise UserError(
                    f"The processes of one run differ: {name} is {first.get(name, 'not there')} in process 0 and "
                    f"{told.get(name, 'not there')} in process {index}; start all of them alike."
                )


def all_see(folder: Path | None) -> bool:
    """Whether a folder is one and the same for all processes: whether they see what process 0 writes there.

    Args:
        folder: by the name that this process knows it under; None where it has none.
    """
    import jax

    mark = f".seen-{secrets.token_hex(8)}"
    if folder and jax.process_index() == 0:
        with contextlib.suppress(OSError):  # which the others then do not see
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / mark).touch()
    try:
        mark = _gather(mark.encode())[0].decode()
        seen = folder is not None and (folder / mark).exists()
        return all(answer == b"1" for answer in _gather(b"1" if seen else b"0"))
    except jax.errors.JaxRuntimeError as error:
        leave(error)
        raise
    finally:
        if folder and jax.process_index() == 0:
            with contextlib.suppress(OSError):
                (folder / mark).unlink(missing_ok=True)


def _gather(text: bytes) -> list[bytes]:
    """What each process has, by its index."""
    import numpy as np
    from jax.experimental import multihost_utils

    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def leave(error: BaseException) -> None:
    """Ends this process at once, with status 2, if it is one of several and `error` befell it.

    The others notice the closed connections in seconds. The ordinary way out would first wait for
    all of them, at the barriers of checkpoints and of `jax.distributed`, while they wait for us. Does
    nothing in a process that runs alone.
    """
    import jax

    if jax.process_count() == 1:
        return
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, jax.errors.JaxRuntimeError):
        text = (
            f"the work with the other processes failed in process {jax.process_index()} ({reason}). "
            "If one of them died, its own output says why. "
            "Repeat the same command in all of them; training continues from its last checkpoint."
        )
    elif isinstance(error, UserError):
        text = reason
    else:
        traceback.print_exception(error)
        text = (
            f"process {jax.process_index()} ends, and with it the others ({type(error).__name__}: {reason})."
        )
    print(f"mlperf_jax: {text}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if jax.process_index() == 0:
        # It holds the coordination service, without which jax aborts the others in mid-sentence.
        time.sleep(_GRACE_SECONDS)
    os._exit(2)
