"""The mesh of devices that a strategy runs on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from mlperf_jax.errors import UserError
from mlperf_jax.parallel import strategy_file
from mlperf_jax.parallel.layout import STRATEGIES, Layout, Strategy


def parse_mesh(text: str) -> dict[str, int]:
    """Reads `--mesh=data:4,model:2`.

    Raises:
        UserError: the text is not of that form.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"([a-zA-Z_]\w*):(-1|[1-9]\d{0,8})", part, re.ASCII)
        if not match or match[1] in sizes:
            raise UserError(f"--mesh={text} is not of the form axis:size,axis:size (as data:4,model:2).")
        sizes[match[1]] = int(match[2])
    return sizes


def find_strategy(name: str) -> Strategy:
    """Returns the strategy of that name, or the one that a file ending in .toml describes.

    Raises:
        UserError: there is none, or the file says something else.
    """
    if name.endswith(".toml"):
        return strategy_file.load(Path(name).expanduser())
    if name not in STRATEGIES:
        raise UserError(
            f"There is no --sharding={name}; use {', '.join(STRATEGIES)}, or a file as mine.toml."
        )
    return STRATEGIES[name]


def asked_of(strategies: Sequence[Strategy], asked: dict[str, int]) -> list[dict[str, int]]:
    """What `--mesh` asks of each of several strategies: nothing of one that has not all of its axes.

    Raises:
        UserError: none of them has.
    """
    if not any(set(asked) <= set(strategy.mesh) for strategy in strategies):
        mesh_sizes(strategies[0], asked, 1)  # says what is wrong
    return [asked if set(asked) <= set(strategy.mesh) else {} for strategy in strategies]


def mesh_sizes(strategy: Strategy, asked: dict[str, int], devices: int) -> dict[str, int]:
    """The size of every mesh axis: as asked, else the strategy's own, -1 taking what is left.

    Raises:
        UserError: an axis is unknown to the strategy, or the sizes do not make up the devices.
    """
    unknown = set(asked) - set(strategy.mesh)
    if unknown:
        raise UserError(
            f"Strategy {strategy.name} has no mesh axis {min(unknown)!r}; its axes are {', '.join(strategy.mesh)}."
        )
    sizes = {**strategy.mesh, **asked}
    known = math.prod(n for n in sizes.values() if n > 0)
    open_axes = [axis for axis, n in sizes.items() if n < 0]
    if open_axes and devices % known == 0:
        sizes[open_axes[0]] = devices // known
    if math.prod(sizes.values()) != devices or min(sizes.values()) < 1:
        shape = ",".join(f"{axis}:{n}" for axis, n in sizes.items())
        raise UserError(
            f"Mesh {shape} of strategy {strategy.name} does not make up {devices} "
            f"device{'s' if devices != 1 else ''}; give --mesh with sizes whose product is {devices}."
        )
    return sizes


def make_layout(
    strategy: Strategy, asked: dict[str, int] | None = None, devices: Sequence | None = None
) -> Layout:
    """Lays `strategy` over `devices` (all of jax's by default).

    Axes are `Auto`: under jax's default, `Explicit`, ordinary model code (a sharded gather, a
    contraction over axes sharded on both sides) raises.

    Raises:
        UserError: the mesh does not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(strategy, asked or {}, len(devices))
    types = (AxisType.Auto,) * len(sizes)
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        return Layout(strategy, Mesh(_hybrid(sizes, devices), tuple(sizes), axis_types=types))
    # Mesh axes lie along the torus where they can; where none fits, as 8 on 4x4x4, one of the torus is cut.
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Layout(strategy, Mesh(grid, tuple(sizes), axis_types=types))


def _hybrid(sizes: dict[str, int], devices: Sequence) -> np.ndarray:
    """Devices of several TPU slices: only the first mesh axis, which carries least, crosses between them.

    Raises:
        UserError: the slices do not divide the first axis.
    """
    slices = len({device.slice_index for device in devices})
    axis, size = next(iter(sizes.items()))
    if size % slices:
        raise UserError(
            f"Mesh axis {axis!r} of {size} does not divide over {slices} slices; "
            f"give --mesh with a multiple of {slices}."
        )
    inside = (size // slices, *list(sizes.values())[1:])
    across = (slices, *[1] * (len(sizes) - 1))
    return mesh_utils.create_hybrid_device_mesh(inside, across, devices)


def single_device_layout(device: jax.Device | None = None) -> Layout:
    """Everything on one device: the plain case, and the judge of all others."""
    mesh: Mesh = jax.make_mesh(
        (1,), ("data",), devices=[device or jax.devices()[0]], axis_types=(AxisType.Auto,)
    )
    return Layout(STRATEGIES["dp"], mesh)
