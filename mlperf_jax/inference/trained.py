"""Which model an inference run measures: what training left, a checkpoint, or imported weights."""

from __future__ import annotations

import atexit
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipelines.prepared import AGAIN
from mlperf_jax import config as configs
from mlperf_jax import platform as platforms
from mlperf_jax import registry
from mlperf_jax.errors import UserError
from mlperf_jax.goals import Quality
from mlperf_jax.inference.options import InferOptions
from mlperf_jax.making import Recipe
from mlperf_jax.nested import flatten, tupled
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.precision import resolve_policy
from mlperf_jax.results.folders import FINISHED, read_json
from mlperf_jax.weights import files, lazy
from mlperf_jax.workload import ServedWorkload, State, TrainedWorkload

# Of a training run's config, what inference decides for itself.
_NOT_TAKEN_OVER = ("precision", "inference", "workload", "benchmark", "preset", "reference_point")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model to measure.

    Attributes:
        description: what it is, for people and logs.
        config: dotted key -> value, the config that it was made with.
        quality: as it was trained or published, None if that is not known.
        load: reads what a workload serves into the places of a layout.
    """

    description: str
    config: Mapping[str, Any]
    quality: Quality | None
    load: Callable[[ServedWorkload, Layout], State]


def model_config(base: ConfigDict, model: Trained, overrides: Sequence[str]) -> ConfigDict:
    """The config that a model was made with, and on top of it what the user says now."""
    config = ConfigDict(base)
    for key, value in model.config.items():
        *path, last = key.split(".")
        part = config
        for name in path:
            part = part.get(name, ConfigDict()) if isinstance(part, ConfigDict) else ConfigDict()
        if last in part:
            part[last] = value
    return configs.resolve(config, overrides)


def open_model(options: InferOptions) -> tuple[ServedWorkload, Trained]:
    """The model that the options name, and the workload with the config that goes with it.

    Raises:
        UserError: there is no such model, or its data is not there.
    """
    platforms.require_devices(options.platform)
    cls = registry.find(options.workload, ServedWorkload)
    model = find(options, cls)
    config = model_config(configs.base_config(options.workload, options.preset), model, options.overrides)
    if "inference" not in config:
        raise UserError(
            f"The config of {options.workload} has no `inference` section, so nothing can be measured."
        )
    recipe = Recipe(cls, config, resolve_policy(config.precision, options.platform))
    workload = recipe.make_with_data(
        options.data_dir, synthetic=options.synthetic_data, prepare=options.prepare
    )
    return workload, model


def find(options: InferOptions, cls: type[ServedWorkload]) -> Trained:
    """The model of a workload that the options name.

    Raises:
        UserError: there is none.
    """
    if options.checkpoint and options.weights:
        raise UserError("--checkpoint and --weights each name a model; give one of them.")
    if options.weights:
        return from_weights(Path(options.weights), options.workload)
    if cls.brings_weights and not options.checkpoint:
        return with_the_data(cls)
    if not issubclass(cls, TrainedWorkload):
        raise UserError(
            f"{cls.__name__} is served, not trained; give it --weights, made with `python -m "
            f"mlperf_jax.import_weights --workload={options.workload} --from=FILE --to=DIR`."
        )
    if options.checkpoint:
        return from_checkpoint(Path(options.checkpoint))
    return _newest(options, cls.benchmark)


def _newest(options: InferOptions, benchmark: str) -> Trained:
    """The newest finished run of the preset in RESULTS, on whatever system it was trained.

    Raises:
        UserError: there is none; the text says how to train one.
    """
    found = newest_run(options.preset_dir, benchmark)
    if found is None:
        train = f"python -m mlperf_jax.main --workload={options.workload} --platform={options.platform}"
        if options.preset != configs.default_preset(options.platform):
            train += f" --preset={options.preset}"
        raise UserError(
            f"There is no trained {options.preset} model of {benchmark} in {options.results_dir}; train one "
            f"with `{train} --results_dir={options.results_dir}`, or give --checkpoint or --weights."
        )
    return _from_run(*found)


def newest_run(root: Path, benchmark: str) -> tuple[Path, dict[str, Any]] | None:
    """Folder and status of the newest finished run in RESULTS[/mini] that has a checkpoint; None where there is none."""
    runs = [run for run in _finished(root, benchmark) if _steps(run[1])]
    return max(runs, key=lambda run: run[0])[1:] if runs else None


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

    def load(workload: ServedWorkload, layout: Layout) -> State:
        return _placed(imported.state, workload.served_struct(layout), folder)

    return Trained(f"{imported.source['file']} in {folder}", imported.config, None, load)


def with_the_data(cls: type[ServedWorkload]) -> Trained:
    """The published weights that a workload's data set holds."""

    def load(workload: ServedWorkload, layout: Layout) -> State:
        path = workload.weights_file
        if not path.is_file():
            raise UserError(f"There is no {path}; {AGAIN}")
        state, _ = workload.import_weights(files.read_tensors(path))
        return _placed(state, workload.served_struct(layout), path)

    return Trained(cls.brings_weights, {}, None, load)


def _placed(state: State, struct: State, source: Path) -> State:
    """Published arrays where they belong.

    Raises:
        UserError: they are of another model, or cannot be read.
    """
    found, asked = (
        {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (state, struct))
    )
    for name in found.keys() | asked.keys():
        shapes = [tree[name].shape if name in tree else "not there" for tree in (found, asked)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{source} is of another model: {name} is {shapes[0]} in it and {shapes[1]} here."
            )
    placed = [lazy.place(found[name], where) for name, where in asked.items()]
    return jax.tree.unflatten(jax.tree.structure(struct), placed)


def _steps(run: Path) -> list[Path]:
    checkpoints = run / "checkpoints"
    return [path for path in checkpoints.iterdir() if path.name.isdigit()] if checkpoints.is_dir() else []


def _from_run(run: Path, status: Mapping[str, Any]) -> Trained:
    from mlperf_jax.training.checkpoints import Checkpoints
    from mlperf_jax.training.frozen import fingerprint

    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    atexit.register(checkpoints.close)

    def load(workload: ServedWorkload, layout: Layout) -> State:
        struct = workload.served_struct(layout)
        frozen = {name: struct.pop(name) for name in workload.frozen_entries if name in struct}
        entries = {name: entry for name, entry in workload.served_entries.items() if name in struct}
        found = checkpoints.restore_part({entry: struct[name] for name, entry in entries.items()})
        position = checkpoints.position()
        kept = workload.frozen_state(frozen, status.get("seed"))
        if kept and position and position.frozen != fingerprint(kept):
            raise UserError(
                f"What {run} kept frozen is not what there is now ({workload.frozen_source}); give it the same again."
            )
        return {name: found[entry] for name, entry in entries.items()} | kept

    saved = read_json(run / "config.json")["config"] if (run / "config.json").exists() else {}
    kept = {key: value for key, value in saved.items() if key not in _NOT_TAKEN_OVER}
    config = {key: tupled(value) for key, value in flatten(kept).items()}
    return Trained(f"{run}, step {checkpoints.newest}", config, _finite(status.get("quality")), load)


def _finite(quality: Any) -> Quality | None:
    """What a run's status says of its quality, None if that is no figure."""
    if isinstance(quality, dict):
        return (
            quality if quality and all(_finite(figure) is not None for figure in quality.values()) else None
        )
    return quality if isinstance(quality, float) and math.isfinite(quality) else None
