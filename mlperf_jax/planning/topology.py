"""Named topologies: devices that can be compiled for without being there.

    v5e:16x16      256 TPU v5e chips; any TPU version of `chips.CHIPS` with a shape that it is built in
    2xv5e:16x16    two such slices, joined by the data-centre network
    h200:4x8       4 nodes of 8 GPUs

TPUs are compiled for by libtpu, GPUs by jax's CUDA plugin; neither needs the device.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from mlperf_jax.errors import UserError, first_line
from mlperf_jax.parallel.chips import CHIPS, Chip

# libtpu asks a metadata server what it runs on, and waits for minutes, unless it is told.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Its lock guards a device; compiling needs none.
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """What a name like v5e:16x16 says.

    Attributes:
        name: as the user wrote it.
        chip: the entry of the table of chips.
        shape: chips along each axis of a TPU slice's torus; nodes and GPUs a node.
        slices: TPU slices.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def platform(self) -> str:
        """tpu or gpu, as `--platform` has it."""
        return self.chip.platform

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        """How many devices jax shows: a TPU v2, v3 or v7x chip shows as two."""
        return self.num_chips * self.chip.devices


def parse(name: str) -> Topology:
    """Reads the name of a topology.

    Raises:
        UserError: the chip is unknown or the shape is none.
    """
    chips = {chip.name: chip for chip in CHIPS}
    found = re.fullmatch(r"(?:([1-9]\d{0,3})x)?(\w+):([1-9]\d{0,4}(?:x[1-9]\d{0,4}){1,2})", name)
    if not found:
        raise UserError(
            f"--topology={name} is not of the form chip:shape, as v5e:16x16, 2xv5e:16x16 or h200:1x8."
        )
    slices, kind, text = found.groups()
    if kind not in chips:
        raise UserError(f"--topology={name} names no chip that is known; there are {', '.join(chips)}.")
    shape = tuple(int(n) for n in text.split("x"))
    if chips[kind].platform == "gpu" and (len(shape) != 2 or slices):
        raise UserError(f"--topology={name}: GPUs are counted as nodes x GPUs a node, as {kind}:1x8.")
    return Topology(name, chips[kind], shape, int(slices or 1))


def missing_compiler(topology: Topology) -> str | None:
    """None where the compiler for the topology is installed, else one sentence saying how to install it."""
    if topology.platform == "tpu":
        found = importlib.util.find_spec("libtpu") is not None
        package, extra = "libtpu", "tpu"
    else:
        found = any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))
        package, extra = "jax's CUDA plugin", "cuda"
    if found:
        return None
    command = f"pip install -e '.[{extra}]' -c constraints.txt"
    return f"Compiling for {topology.name} needs {package}; install it with: {command}"


def compiler_version(topology: Topology) -> str:
    """Names the compiler, for the key of cached results."""
    packages = (
        ("jaxlib", "libtpu")
        if topology.platform == "tpu"
        else ("jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin")
    )
    found = []
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def devices(topology: Topology) -> Sequence[Any]:
    """The topology's devices, for a mesh. Nothing can run on them.

    Raises:
        UserError: the compiler is missing, or knows no such shape.
    """
    if sentence := missing_compiler(topology):
        raise UserError(sentence)
    if topology.platform == "tpu":
        for key, value in _TPU_ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        shape = "x".join(map(str, topology.shape))
        arguments: dict[str, Any] = {"platform": "tpu", "topology_name": f"{topology.chip.name}:{shape}"}
        if topology.chip.name == "v4":
            arguments["chip_config_name"] = "megacore"  # one device a chip, as a v4 really shows
        if topology.slices > 1:
            arguments["num_slices"] = topology.slices
    else:
        nodes, gpus = topology.shape
        arguments = {
            "platform": "cuda",
            "topology_name": topology.chip.name,
            "target_config": topology.chip.target_config,
            "topology": f"1x{nodes}x{gpus}",
        }
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(**arguments).devices
    except Exception as error:  # Plugins raise errors of several kinds.
        raise UserError(f"The compiler knows no --topology={topology.name} ({first_line(error)}).") from error
    if len(found) != topology.num_devices:
        raise UserError(
            f"--topology={topology.name} has {len(found)} devices where {topology.num_devices} were expected."
        )
    return found
