"""Which model an inference run measures: what training left, a checkpoint, or imported weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from mlperf_jax.errors import UserError
from mlperf_jax.results.folders import FINISHED, read_json
from mlperf_jax.weights import files
from mlperf_jax.workload import State

# Of a training run's config, what inference decides for itself.
_NOT_TAKEN_OVER = ("precision", "inference", "workload", "benchmark", "preset", "reference_point")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model to measure.

    Attributes:
        description: what it is, for people and logs.
        config: dotted key -> value, the config that it was made with.
        quality: as it was trained or published, None if that is not known.
        load: reads the state into structs with shardings.
    """

    description: str
    config: Mapping[str, Any]
    quality: float | None
    load: Callable[[State], State]


def find(results_dir: Path, preset: str, benchmark: str, command: str) -> Trained:
    """The newest finished run of a preset in `results_dir`, on whatever system it was trained.

    Args:
        command: how to train one, for the message.

    Raises:
        UserError: there is none.
    """
    root = results_dir / "mini" if preset == "mini" else results_dir
    runs = [run for run in _finished(root, benchmark) if _steps(run[1])]
    if not runs:
        raise UserError(
            f"There is no trained {preset} model of {benchmark} in {results_dir}; train one with `{command}`, "
            "or give --checkpoint or --weights."
        )
    _, folder, status = max(runs, key=lambda run: run[0])
    return _from_run(folder, status)


def _finished(root: Path, benchmark: str) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(when it ended, folder, status) of every finished run."""
    for path in root.glob(f"runs/*/{benchmark}/run_*/status.json"):
        status = read_json(path)
        if status.get("state") in FINISHED:
            yield status.get("updated", ""), path.parent, status


def from_checkpoint(folder: Path) -> Trained:
    """The newest checkpoint of a run's folder, or of its folder of checkpoints.

    Raises:
        UserError: there is none.
    """
    run = folder.parent if folder.name == "checkpoints" else folder
    if _steps(run):
        status = read_json(run / "status.json") if (run / "status.json").exists() else {}
        return _from_run(run, status)
    raise UserError(
        f"There is no checkpoint in {folder}; give the folder of a run (RESULTS/.../run_0), or its checkpoints/."
    )


def from_weights(folder: Path, workload: str) -> Trained:
    """Weights that `mlperf_jax.import_weights` wrote.

    Raises:
        UserError: there are none, or they are another workload's.
    """
    imported = files.load(folder)
    if imported.workload != workload:
        raise UserError(
            f"{folder} holds weights of {imported.workload}; give --workload={imported.workload}."
        )

    def load(struct: State) -> State:
        found, asked = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (imported.state, struct))
        for path in found.keys() | asked.keys():
            shapes = [tree[path].shape if path in tree else "not there" for tree in (found, asked)]
            if shapes[0] != shapes[1]:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise UserError(
                    f"{folder} is of another model: {name} is {shapes[0]} in it and {shapes[1]} here."
                )
        return jax.tree.map(
            lambda a, s: jax.device_put(a.astype(s.dtype), s.sharding), imported.state, struct
        )

    return Trained(f"{imported.source['file']} in {folder}", imported.config, None, load)


def _steps(run: Path) -> list[Path]:
    checkpoints = run / "checkpoints"
    return [path for path in checkpoints.iterdir() if path.name.isdigit()] if checkpoints.is_dir() else []


def _from_run(run: Path, status: Mapping[str, Any]) -> Trained:
    from mlperf_jax.training.checkpoints import Checkpoints

    def load(struct: State) -> State:
        checkpoints = Checkpoints(run / "checkpoints")
        try:
            return checkpoints.restore_part(struct)
        finally:
            checkpoints.close()

    step = max(int(path.name) for path in _steps(run))
    config = read_json(run / "config.json")["config"] if (run / "config.json").exists() else {}
    quality = status.get("quality")
    if not isinstance(quality, float) or not math.isfinite(quality):
        quality = None
    return Trained(f"{run}, step {step}", dict(_flat(config)), quality, load)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if not prefix and key in _NOT_TAKEN_OVER:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, list) else value
