"""Which devices a collective instruction runs over, in every form that XLA writes it.

Source: openxla/xla, xla/hlo/ir/tile_assignment.cc and collective_device_list.cc.
"""

from __future__ import annotations

import math
import re

import numpy as np

from mlperf_jax.planning.hlo import Instruction


def replica_groups(instruction: Instruction, devices: int) -> list[list[int]]:
    """The groups of devices, by position in the mesh, that a collective runs over.

    XLA writes them as lists `{{0,1},{2,3}}`, as an iota `[2,2]<=[4]` or `[2,2]<=[2,2]T(1,0)`, or as
    axes of a mesh: `mesh['a'=2,'b'=2] {'b'}`. An empty list stands for all devices.

    Raises:
        ValueError: none of these forms.
    """
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{([\d,{} ]*)\}", text):
        return _connected([(int(a), int(b)) for a, b in re.findall(r"(\d+),\s*(\d+)", pairs.group(1))])
    found = re.search(r"replica_groups=(.*)", text)
    if not found:
        return [list(range(devices))]
    text = found.group(1)
    if text.startswith("{"):
        lists = re.match(r"\{((?:\{[\d, ]*\},?\s*)*)\}", text)
        if not lists:
            raise ValueError(f"replica groups {text[:60]!r}")
        groups = [
            [int(n) for n in re.findall(r"\d+", g)] for g in re.findall(r"\{([\d, ]*)\}", lists.group(1))
        ]
        return groups or [list(range(devices))]
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _iota(*iota.groups()).tolist()
    if mesh := re.match(
        r"@?mesh\[([^\]]*)\](?:,? ?(?:device_ids=)?\(?\[([\d,]+)\](?:T\(([\d,]+)\))?\)?)? \{([^}]*)\}", text
    ):
        return _mesh_groups(*mesh.groups())
    raise ValueError(f"replica groups {text[:60]!r}")


def _iota(shape: str, reshape: str, transpose: str | None) -> np.ndarray:
    sizes = [int(n) for n in reshape.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    if transpose:
        ids = ids.transpose([int(n) for n in transpose.split(",")])
    return ids.reshape([int(n) for n in shape.split(",")])


def _mesh_groups(axes: str, reshape: str | None, transpose: str | None, over: str) -> list[list[int]]:
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if reshape:
        ids = _iota(str(ids.size), reshape, transpose)
    # A part of an axis, 'a':(2)3, is the axis split into 2 x 3 x the rest.
    split: list[int] = []
    chosen: list[int] = []
    parts = {
        name: (int(pre), int(size)) for name, pre, size in re.findall(r"'?([\w.]+)'?:\((\d+)\)(\d+)", over)
    }
    whole = {
        name
        for name in re.findall(r"'?([\w.]+)'?(?=,|$)", re.sub(r"'?[\w.]+'?:\(\d+\)\d+", "", over))
        if name
    }
    for name, size in sizes.items():
        pieces: tuple[int, ...] = (size,)
        if name in parts:
            before, part = parts[name]
            pieces = (before, part, size // (before * part))
            chosen.append(len(split) + 1)
        elif name in whole:
            chosen.append(len(split))
        split += pieces
    ids = ids.reshape(split)
    others = [d for d in range(len(split)) if d not in chosen]
    group = math.prod(split[d] for d in chosen)
    return ids.transpose([*others, *chosen]).reshape(-1, group).tolist()


def _connected(pairs: list[tuple[int, int]]) -> list[list[int]]:
    """Devices that send to each other, directly or in a ring."""
    group = {device: {device} for pair in pairs for device in pair}
    for source, target in pairs:
        merged = group[source] | group[target]
        for device in merged:
            group[device] = merged
    return sorted(map(list, {tuple(sorted(g)) for g in group.values()}))
