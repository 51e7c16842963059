"""Whether a run's programs fit into memory, and what would: by the compiler's own count of each program."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import psutil

from mlperf_jax.errors import UserError, first_line, ran_out_of_memory
from mlperf_jax.training.engine import Engine
from mlperf_jax.workload import TrainedWorkload

_GIB = 2**30
_USABLE = 0.9  # of a device's memory, for the batch that is advised: its runtime and fragments want some


@dataclasses.dataclass(frozen=True)
class Need:
    """What a compiled program takes of each device, in bytes.

    Attributes:
        fixed: state, and gradients as large as the parameters.
        batch: of its rows of the batch.
        activations: what else is in memory at a time; it grows with the rows worked on at once.
    """

    fixed: int
    batch: int
    activations: int

    @property
    def total(self) -> int:
        return self.fixed + self.batch + self.activations


def need(engine: Engine, name: str) -> Need | None:
    """Of the compiled program `name`; None where its compiler does not say."""
    stats = engine.compiled(name).memory_analysis()
    if stats is None:
        return None
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    held = min(_bytes(engine.state), arguments)
    gradients = min(_bytes(engine.state.get("params", ())), temporaries) if name.startswith("train") else 0
    outputs = max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0)
    return Need(held + gradients, arguments - held, temporaries - gradients + outputs)


def capacity(device: Any) -> int:
    """Bytes that a device has; the devices of a CPU share the machine's, or what limits leave of it."""
    if device.platform == "cpu":
        return min([psutil.virtual_memory().total, *_limits()]) // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def _limits() -> Iterator[int]:
    """Of this process's address space, and of the container that it is in (cgroup v2)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit >= 0:
        yield limit
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        yield int(Path("/sys/fs/cgroup/memory.max").read_text())


def require(engine: Engine) -> None:
    """Looks at every compiled program before the first is run.

    Raises:
        UserError: one needs more than a device has; the sentence says what would fit.
    """
    there = capacity(engine.layout.mesh.local_devices[0])
    for name in engine.programs:
        wanted = need(engine, name)
        if there and wanted and wanted.total > there:
            raise UserError(
                f"{_what(engine.workload, name)} needs {_gib(wanted.total)} of each device, which has {_gib(there)}; "
                f"{_mend(engine, name, wanted, there)}."
            )


@contextlib.contextmanager
def explained(workload: TrainedWorkload) -> Iterator[list[Engine]]:
    """Turns the errors of memory that runs out into a sentence that says what would fit.

    Yields:
        A list, to which the engine is added once it is compiled.
    """
    compiled: list[Engine] = []
    try:
        yield compiled
    except (RuntimeError, MemoryError, OSError) as error:
        if not ran_out_of_memory(error) or "thread" in str(error):  # a smaller batch takes no fewer threads
            raise
        mend = _smaller(workload)
        if compiled:
            there = capacity(compiled[0].layout.mesh.local_devices[0])
            name = next(name for name in compiled[0].programs if name.startswith("train_step"))
            if there and (wanted := need(compiled[0], name)):
                mend = _mend(compiled[0], name, wanted, there)
        raise UserError(
            f"Memory ran out with a batch of {workload.batch_size:,} ({first_line(error)[:200]}); {mend}."
        ) from error


def _mend(engine: Engine, name: str, wanted: Need, there: int) -> str:
    """What to change so that a program fits, with numbers where the compiler's count gives them."""
    workload, usable = engine.workload, int(_USABLE * there)
    if wanted.fixed > usable:
        return (
            f"its state alone takes {_gib(wanted.fixed)}: split it over more devices, as with --sharding=fsdp, or use "
            "a smaller model"
        )
    room = usable - wanted.fixed
    share = min(room / max(wanted.batch + wanted.activations, 1), 0.5 if wanted.total <= there else 1.0)
    key = "batch_size" if name.startswith("train") else "eval_batch_size"
    if name.startswith("train_steps"):
        return f"--config.steps_per_dispatch=1, of {engine.steps_per_dispatch}, holds fewer batches at a time"
    if key not in workload.config:
        return "use a smaller model or more devices"
    unit = math.lcm(_rows_unit(engine), _accumulation(workload) if key == "batch_size" else 1)
    fits = int(workload.config[key] * share) // unit * unit
    ways = [f"--config.{key}={fits} fits by the compiler's count"] if fits else []
    if key == "batch_size":
        ways += _other_ways(engine, wanted, usable)
    return ", or ".join(ways) or "use more devices or a smaller model"


def _other_ways(engine: Engine, wanted: Need, usable: int) -> list[str]:
    """What keeps the batch: more parts of it, or computing activations again."""
    workload, ways = engine.workload, []
    parts, rows = _accumulation(workload), workload.batch_size // _rows_unit(engine)
    room = usable - wanted.fixed - wanted.batch
    if "gradient_accumulation_steps" in workload.config and room > 0:
        least = max(
            math.ceil(parts * wanted.activations / room), 2 * parts if wanted.total <= usable else parts + 1
        )
        more = next((k for k in range(least, rows + 1) if rows % k == 0), None)
        if more:
            ways.append(f"--config.gradient_accumulation_steps={more} with this batch")
    if workload.config.get("remat") == "none":
        ways.append("--config.remat=save_nothing keeps less")
    return ways


def _smaller(workload: TrainedWorkload) -> str:
    """What to try where nothing was counted."""
    ways = [f"half of it, --config.batch_size={max(workload.batch_size // 2, 1)}"]
    if "gradient_accumulation_steps" in workload.config:
        ways.append(f"--config.gradient_accumulation_steps={2 * _accumulation(workload)}")
    if workload.config.get("remat") == "none":
        ways.append("--config.remat=save_nothing")
    return f"try {', or '.join(ways)}"


def _accumulation(workload: TrainedWorkload) -> int:
    return workload.config.get("gradient_accumulation_steps", 1)


def _rows_unit(engine: Engine) -> int:
    """Of how many rows a batch must be a multiple."""
    return max(engine.workload.batch_size // max(_rows_of_a_device(engine), 1), 1)


def _rows_of_a_device(engine: Engine) -> int:
    for batch in engine.buckets.values():
        for leaf in jax.tree.leaves(batch):
            if leaf.shape:
                return leaf.sharding.shard_shape(leaf.shape)[0]
    return engine.workload.batch_size


def _bytes(structs: Any) -> int:
    """Of what one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(structs)
    )


def _what(workload: TrainedWorkload, name: str) -> str:
    if name.startswith("train"):
        return f"A step of batch {workload.batch_size:,}"
    if name.startswith("eval") and "eval_batch_size" in workload.config:
        return f"Evaluation with batch {workload.config.eval_batch_size:,}"
    return f"The program {name}"


def _gib(size: int) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB else f"{size / 2**20:,.1f} MiB"
