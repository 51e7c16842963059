"""Several processes: jax's own multi-controller runtime, started before any device is touched."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlperf_jax import aborts
from mlperf_jax.errors import Stopped, UserError, first_line, shortage
from mlperf_jax.parallel import partners

JOIN_SECONDS = 120
"""So long do processes wait for each other before they begin."""

HEARTBEAT_SECONDS = 30
"""A process that has not been heard of for so long is taken for dead, and the others end."""

_GRACE_SECONDS = 2
"""How much later process 0 leaves, so that the others can say what befell them."""

_OWN_WORDS_SECONDS = 5
"""So long has a process that lost a partner to notice that by itself, and to record it, before it is ended."""

_FOUND_SECONDS = 1
"""How much later than an error it may be known which process is gone."""

_together: list[partners.Partners] = []
"""The others of this process, where they were joined by their addresses."""
_leaving = threading.Lock()  # whoever holds it has the last word

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
    if coordinator is not None:
        _together.append(partners.join(coordinator, num_processes, process_id, JOIN_SECONDS))
        _together[0].watch(lambda: _end_without(process_id))
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
            initialization_timeout=JOIN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        if platform == "tpu" and isinstance(error, ValueError):
            return  # A TPU outside of any cluster that jax knows: one host, which runs alone.
        raise UserError(
            f"The processes could not join each other ({first_line(error)}); "
            "start all of them with the same --coordinator=HOST:PORT and --num_processes."
        ) from error
    # jax aborts all others when process 0 dies, and gives no say in it: its callback passes a C++ status that
    # has no Python form.
    aborts.explain(lambda: _failed(f"in process {process_id}" if all(given) else "here", _gone() or _ABORTED))
    for others in _together:
        atexit.register(others.bye)  # before jax waits for all of them, as it does last


_ABORTED = "jax ended it, most likely because process 0 died or the way to it was lost"


def _in_cluster(platform: str) -> bool:
    if platform == "tpu":
        return True  # One host of a slice cannot run alone; jax asks the TPU's metadata who the others are.
    return any(int(os.environ.get(name, "1") or 1) > 1 for name in _CLUSTER_HINTS)


def _failed(where: str, reason: str) -> str:
    return (
        f"the work with the other processes failed {where} ({reason}). "
        "If one of them died, its own output says why. "
        "Repeat the same command in all of them; training continues from its last checkpoint."
    )


def _gone(wait: float = 0.0) -> str:
    """Which of the others is gone, in a phrase; "" where none is known to be."""
    return _together[0].find_lost(wait) if _together else ""


def _end_without(index: int) -> None:
    """Ends this process, which lost a partner; the main thread, if it noticed too, has its own way out."""
    time.sleep(_OWN_WORDS_SECONDS)
    _end(_failed(f"in process {index}", _gone()), index)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Within it an error of one process ends the others too; see `leave`."""
    try:
        yield
    except Stopped:  # those who were asked to stop do so together
        raise
    except BaseException as error:
        leave(error)
        raise


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
    everyone = _gather(json.dumps(ours).encode())
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


_OF_PARTNERS = ("barrier", "Gloo", "coordination", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat")


def without_partner(error: BaseException) -> str:
    """A sentence, if what failed in common work failed because a partner is gone; "" else."""
    import jax

    if jax.process_count() == 1:
        return ""
    gone = _gone(_FOUND_SECONDS)
    if not gone and not any(word in str(error) for word in _OF_PARTNERS):
        return ""
    return _failed(f"in process {jax.process_index()}", gone or first_line(error))


def leave(error: BaseException) -> None:
    """Ends this process at once, with status 2, if it is one of several and `error` befell it.

    The others notice the closed connections in seconds. The ordinary way out would first wait for
    all of them, at the barriers of checkpoints and of `jax.distributed`, while they wait for us. Does
    nothing in a process that runs alone.
    """
    import jax

    if jax.process_count() == 1:
        return
    reason, status = first_line(error), 2
    if isinstance(error, UserError):
        text = reason
    elif isinstance(error, KeyboardInterrupt):
        text, status = "interrupted, and with this process the others; the same command continues.", 130
    elif isinstance(error, jax.errors.JaxRuntimeError) and not shortage(error):
        text = _failed(f"in process {jax.process_index()}", _gone(_FOUND_SECONDS) or reason)
    elif not (text := without_partner(error) or shortage(error)):
        traceback.print_exception(error)
        text = (
            f"process {jax.process_index()} ends, and with it the others ({type(error).__name__}: {reason})."
        )
    _end(text, jax.process_index(), status)


def _end(text: str, index: int, status: int = 2) -> None:
    """The last word of process `index`."""
    with _leaving:
        print(f"mlperf_jax: {text}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if index == 0:
            # It holds the coordination service, without which jax aborts the others in mid-sentence.
            time.sleep(_GRACE_SECONDS)
        os._exit(status)
