"""Grouped convolutions in the forms that say the same, by what compilers expect of a TPU and a GPU, and measured on CPU.

    python -m benchmarks.grouped_forms v5e        by `plan`'s reading of the program that libtpu makes
    python -m benchmarks.grouped_forms h200       of that of jax's CUDA plugin (the `cuda` extra)
    python -m benchmarks.grouped_forms cpu        measured here
    python -m benchmarks.grouped_forms cpu ResNeXt    of the layers with that in their names alone

Each adds its rows to benchmarks/grouped_forms.json, and writes benchmarks/grouped_forms.md from that. What is
compared is a convolution between two activations, as it lies in a network (a scale, a shift and ReLU6 before it, ReLU6
after it), forward and with the gradients of everything: bfloat16 on accelerators, float32 on CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import records
from mlperf_jax import platform

FOLDER = Path(__file__).parent

# Where it comes from: height and width, channels in and out, groups, window, stride.
LAYERS = {
    "MobileNet, first block": (112, 32, 32, 32, 3, 1),
    "MobileNet, second block": (112, 64, 64, 64, 3, 2),
    "MobileNet, third block": (56, 128, 128, 128, 3, 1),
    "MobileNet, 28 x 28": (28, 256, 256, 256, 3, 1),
    "MobileNet, 14 x 14": (14, 512, 512, 512, 3, 1),
    "MobileNet, last block": (7, 1024, 1024, 1024, 3, 1),
    "ShuffleNet v2, stage 2": (28, 58, 58, 58, 3, 1),
    "ShuffleNet v1, stage 3": (14, 480, 120, 3, 1, 1),
    "ResNeXt50 32x4d, stage 1": (56, 128, 128, 32, 3, 1),
    "ResNeXt50 32x4d, stage 2": (28, 256, 256, 32, 3, 1),
    "ResNeXt50 32x4d, stage 3": (14, 512, 512, 32, 3, 1),
    "ResNeXt50 32x4d, stage 4": (7, 1024, 1024, 32, 3, 1),
}
BATCHES = {"v5e": 64, "h200": 64, "cpu": 8}
TOPOLOGIES = {"v5e": "v5e:2x2", "h200": "h200:1x1"}


def forms() -> dict[str, Callable[..., Any]]:
    """Functions of images [B, H, W, I], a kernel [k, k, I / groups, O], strides, padding and groups."""
    from models import grouped

    return {"grouped": grouped.grouped, "shifted": grouped.shifted, "dense": grouped.dense}


def functions(form: Callable[..., Any], stride: int, groups: int) -> dict[str, Callable[..., Any]]:
    """The layer forward, and forward with the gradients of all its arguments."""
    import jax

    def layer(x: Any, kernel: Any, scale: Any, shift: Any) -> Any:
        return jax.nn.relu6(form(jax.nn.relu6(x * scale + shift), kernel, (stride, stride), "SAME", groups))

    def trained(out: Any, *arguments: Any) -> Any:
        return jax.vjp(layer, *arguments)[1](out)

    return {"forward": lambda out, *arguments: layer(*arguments), "train": trained}


def shapes(batch: int, layer: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Of what comes back from the layers above, the images, the kernel, scale and shift."""
    size, inputs, outputs, groups, window, stride = layer
    out = -(-size // stride)
    kernel = (window, window, inputs // groups, outputs)
    return [(batch, out, out, outputs), (batch, size, size, inputs), kernel, (inputs,), (inputs,)]


def planned(chip: str, batch: int, only: str) -> dict[str, Any]:
    """Microseconds of each layer in each form on one chip, as `plan` reads the compiler's program."""
    platform.configure("cpu", compiles_for="tpu" if chip == "v5e" else "gpu")
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from mlperf_jax.planning import compilation, cost_time, hlo, topology

    where = topology.parse(TOPOLOGIES[chip])
    place = SingleDeviceSharding(topology.devices(where)[0])

    def one(function: Callable[..., Any], layer: tuple[int, ...], label: str) -> float:
        arguments = [
            jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in shapes(batch, layer)
        ]
        answer = compilation.compile_program(
            jax.jit(function).lower(*arguments),
            target=f"{where.name}, one device",
            compiler=topology.compiler_version(where),
            cache_dir=compilation.default_cache_dir(),
            label=label,
        )
        return 1e6 * cost_time.timeline(hlo.parse(answer.hlo), where.chip, []).seconds

    return _table(one, only)


def measured(batch: int, only: str) -> dict[str, Any]:
    """Microseconds of each layer in each form, the least of five rounds."""
    platform.configure("cpu")
    import jax
    import numpy as np

    random = np.random.default_rng(0)

    def one(function: Callable[..., Any], layer: tuple[int, ...], label: str) -> float:
        arguments = [random.normal(size=shape).astype(np.float32) for shape in shapes(batch, layer)]
        placed = jax.device_put(arguments)
        compiled = jax.jit(function).lower(*placed).compile()
        jax.block_until_ready(compiled(*placed))
        rounds = []
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(3):
                jax.block_until_ready(compiled(*placed))
            rounds.append((time.perf_counter() - began) / 3)
        print(f"{label}: {1e6 * min(rounds):,.0f} us", flush=True)
        return 1e6 * min(rounds)

    return _table(one, only)


def _table(one: Callable[..., float], only: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, layer in LAYERS.items():
        if only not in name:
            continue
        *_, groups, _, stride = layer
        for form, convolve in forms().items():
            for part, function in functions(convolve, stride, groups).items():
                micro = one(function, layer, f"{name}, {form}, {part}")
                found.setdefault(name, {}).setdefault(form, {})[part] = round(micro, 1)
    return found


def text(record: dict[str, Any]) -> str:
    """The page for people."""
    lines = ["# Forms of a grouped convolution", ""]
    lines += [
        "Microseconds forward / with all gradients, of a convolution between a scale, a shift and ReLU6 before it and",
        "ReLU6 after it. `grouped` is lax's own (`feature_group_count`), `shifted` the sum of shifted products of",
        "`models/grouped.py`, `dense` a full convolution with zeros outside the groups. v5e and H200 are `plan`'s reading of",
        "the compiled program, predicted and not measured: on TPU the compiler's own estimates; on GPU what FLOPs and",
        "bytes of each kernel need at the chip's peaks, so that how slow cuDNN's grouped kernels really are is not in it.",
        "Made by `python -m benchmarks.grouped_forms v5e|h200|cpu`; figures and versions: grouped_forms.json.",
    ]
    for chip, part in record["platforms"].items():
        lines += ["", f"## {chip}: batch {part['batch']}, {part['kind']}", ""]
        names = list(next(iter(part["layers"].values())))
        lines += [f"| layer | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for name, row in part["layers"].items():
            size, inputs, outputs, groups, window, stride = LAYERS[name]
            what = f"{name}: {size} x {size}, {inputs} to {outputs}, {groups} groups, {window} x {window}/{stride}"
            cells = [f"{row[form]['forward']:,.0f} / {row[form]['train']:,.0f}" for form in names]
            lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chip", choices=BATCHES)
    parser.add_argument("only", nargs="?", default="", help="a part of the names of layers")
    asked = parser.parse_args()
    chip, batch = asked.chip, BATCHES[asked.chip]
    layers = measured(batch, asked.only) if chip == "cpu" else planned(chip, batch, asked.only)
    kind = f"float32, measured on {records.machine_in_words()}" if chip == "cpu" else "bfloat16, predicted"
    path = FOLDER / "grouped_forms.json"
    record: dict[str, Any] = {"schema_version": 1, "platforms": {}}
    if path.exists():
        record = json.loads(path.read_text())
    packages = {"cpu": (), "v5e": ("libtpu",), "h200": ("jax-cuda13-plugin",)}[chip]
    before = record["platforms"].get(chip, {}).get("layers", {})
    record["platforms"][chip] = {
        "batch": batch,
        "kind": kind,
        "versions": records.versions("jax", "jaxlib", *packages),
        "layers": {name: (before | layers)[name] for name in LAYERS if name in before | layers},
    }
    records.write(path, record)
    path.with_suffix(".md").write_text(text(record))
    print(text(record))


if __name__ == "__main__":
    main()
