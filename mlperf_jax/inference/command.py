"""The inference command: finds the model, places it, and measures what was asked for."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from loadgen_py import TestScenario
from loadgen_py.official import side_by_side
from loadgen_py.replica import Samples
from mlperf_jax import config as configs
from mlperf_jax import platform as platforms
from mlperf_jax import workload as registry
from mlperf_jax.errors import UserError
from mlperf_jax.inference import compliance, summary, trained
from mlperf_jax.inference.measure import Outcome, Session, say
from mlperf_jax.inference.replicas import make_replicas
from mlperf_jax.inference.settings import SCENARIOS, Asked, defaults
from mlperf_jax.inference.trained import Trained
from mlperf_jax.parallel import mesh
from mlperf_jax.precision import resolve_policy
from mlperf_jax.results import system
from mlperf_jax.results.events import run_labels
from mlperf_jax.results.folders import Runs
from mlperf_jax.workload import Workload

_MOST_LOADED = 1024  # samples in memory, where LoadGen's defaults name no number


@dataclasses.dataclass(frozen=True)
class InferOptions:
    """What the flags say beside the config.

    Attributes:
        workload: as `--workload` names it.
        preset: mini or closed.
        platform: cpu, gpu or tpu.
        data_dir, synthetic, prepare: where the samples come from.
        results_dir: RESULTS.
        sharding, mesh: how a model lies on the devices.
        scenario: one of `SCENARIOS`, or "all".
        mode: one of `MODES`, or "compliance" for the tests of closed; None runs performance and accuracy.
        asked: numbers that the user fixed.
        count: samples of the data set in use; 0 all.
        checkpoint, weights: another model than the newest trained one.
        system: name of the system; None takes one from the machine.
        org: who runs it.
        official: compare with the official package.
        profile: trace a second of each performance run.
        command: what was typed, for whoever wants to repeat it.
    """

    workload: str
    preset: str
    platform: str
    data_dir: Path
    results_dir: Path
    scenario: str
    synthetic: bool = False
    prepare: bool = False
    sharding: str = "dp"
    mesh: str | None = None
    mode: str | None = None
    asked: Asked = Asked()
    count: int = 0
    checkpoint: Path | None = None
    weights: Path | None = None
    system: str | None = None
    org: str = "mlperf_jax"
    official: bool = False
    profile: bool = False
    command: tuple[str, ...] = ()


def find_model(options: InferOptions, benchmark: str) -> Trained:
    """The model that the options name.

    Raises:
        UserError: there is none.
    """
    if options.checkpoint and options.weights:
        raise UserError("--checkpoint and --weights each name a model; give one of them.")
    if options.checkpoint:
        return trained.from_checkpoint(options.checkpoint)
    if options.weights:
        return trained.from_weights(options.weights, options.workload)
    train = f"python -m mlperf_jax.main --workload={options.workload} --platform={options.platform}"
    if options.preset != configs.default_preset(options.platform):
        train += f" --preset={options.preset}"
    return trained.find(
        options.results_dir, options.preset, benchmark, f"{train} --results_dir={options.results_dir}"
    )


def model_config(base: ConfigDict, model: Trained, overrides: list[str]) -> ConfigDict:
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


def infer_command(options: InferOptions, overrides: list[str]) -> int:
    """Measures, and tells what was found.

    Args:
        options: the flags.
        overrides: `--config.KEY=value` arguments.

    Returns:
        The exit status: 0 if every run is VALID and good enough, 130 after Ctrl-C, else 1.

    Raises:
        UserError: see the modules that raise it.
    """
    scenarios = _scenarios(options)
    if options.official and options.mode not in (None, "performance"):
        raise UserError(
            f"--loadgen=official compares performance; it does not go with --mode={options.mode}."
        )
    session = _session(options, overrides)
    say(f"measuring {session.facts['model']}; compiling")
    session.prepare(scenarios)
    patience = session.numbers["sut_timeout_s"]
    say(
        f"measuring; a run is given up after {patience:g} s without an answer (config.inference.sut_timeout_s)"
    )
    if options.profile:
        say("performance runs are traced for a second, and their figures suffer from that")
    passed = True
    for outcome in _runs(session, scenarios, options):
        print("\n".join(summary.lines(outcome, session.workload.metric)), flush=True)
        passed &= outcome.passed
        if outcome.result.interrupted:
            return 128 + signal.SIGINT
    print(" ".join(f"[{label}]" for label in session.facts["labels"]), flush=True)
    return int(not passed)


def _scenarios(options: InferOptions) -> list[TestScenario]:
    names = SCENARIOS if options.scenario == "all" else (options.scenario,)
    if options.mode == "find_peak":
        if options.scenario not in ("all", "Server"):
            raise UserError(
                f"--mode=find_peak searches Server's rate; it does not go with --scenario={options.scenario}."
            )
        names = ("Server",)
    return [TestScenario[name] for name in names]


def _runs(session: Session, scenarios: Sequence[TestScenario], options: InferOptions) -> Iterator[Outcome]:
    for scenario in scenarios:
        if options.mode == "find_peak":
            yield from session.find_peak()
        elif options.mode == "submission":
            yield from session.submission(scenario)
        elif options.mode == "compliance":
            yield from compliance.run_tests(session, scenario)
        else:
            if options.mode in (None, "performance"):
                for outcome in session.performance(scenario):
                    yield outcome
                if options.official and outcome.kind == "performance" and not outcome.result.errors:
                    official = session.official(outcome)
                    yield official
                    print("\n".join(side_by_side(outcome.result, official.result)), flush=True)
            if options.mode in (None, "accuracy"):
                yield from session.accuracy(scenario)


def open_model(options: InferOptions, overrides: list[str]) -> tuple[Workload, Trained]:
    """The model that the options name, and the workload with the config that goes with it.

    Raises:
        UserError: there is no such model, or its data is not there.
    """
    platforms.require_devices(options.platform)
    cls = registry.find(options.workload)
    model = find_model(options, cls.benchmark)
    config = model_config(configs.base_config(options.workload, options.preset), model, overrides)
    if "inference" not in config:
        raise UserError(
            f"The config of {options.workload} has no `inference` section, so nothing can be measured."
        )
    policy = resolve_policy(config.precision, options.platform)
    if policy.needs_x64:
        jax.config.update("jax_enable_x64", True)
    if options.prepare and not options.synthetic:
        cls.prepare(config, options.data_dir)
    workload = cls(config, policy, data_dir=options.data_dir, synthetic=options.synthetic)
    workload.check_data()
    return workload, model


def _session(options: InferOptions, overrides: list[str]) -> Session:
    workload, model = open_model(options, overrides)
    if (own := workload.make_samples(model.load)) is not None:
        model = dataclasses.replace(model, quality=own)
    total = options.count or workload.num_samples
    if total > workload.num_samples:
        raise UserError(
            f"--count={total} is more than the {workload.num_samples} samples there are; give at most those."
        )
    numbers = workload.config.inference
    loaded = (
        defaults(numbers.loadgen_model, TestScenario.Offline).performance_sample_count_override
        or _MOST_LOADED
    )
    loaded = min(loaded, total)
    replicas = make_replicas(
        workload,
        model,
        mesh.find_strategy(options.sharding),
        mesh.parse_mesh(options.mesh) if options.mesh else {},
        capacity=loaded,
        on_device=numbers.samples_on_device,
    )
    name = options.system or system.default_system_name(jax.devices())
    facts = _facts(workload, model, options, name, replicas=len(replicas))
    return Session(
        workload,
        replicas,
        Samples(
            workload.config.data.name,
            total,
            loaded,
            workload.read_samples,
            replicas,
            logged=workload.logged_answer,
        ),
        options.asked,
        quality_target=numbers.quality_share * facts["trained_quality"],
        root=_root(options, name),
        facts=facts,
        sut_name=f"mlperf_jax {options.workload} on {name}",
        profile=options.profile,
    )


def _facts(
    workload: Workload, model: Trained, options: InferOptions, name: str, *, replicas: int
) -> dict[str, Any]:
    """What every result records; also writes the system's description."""
    made_up = [workload.data_description] if workload.made_up_data else []
    labels = run_labels(options.preset, made_up)
    devices = jax.devices()
    path = Runs(options.results_dir, options.preset, name, workload.benchmark).system_path
    system.write_system(
        path,
        system.describe_system(
            devices, name=name, preset=options.preset, submitter=options.org, labels=made_up
        ),
    )
    numbers = workload.config.inference
    return {
        "system": name,
        "model": model.description,
        "loadgen_model": numbers.loadgen_model,
        "inputs": {name: str(rows.dtype) for name, rows in workload.read_samples(np.arange(1)).items()},
        "trained_quality": model.quality or numbers.published_quality or workload.target,
        "precision": dataclasses.asdict(workload.policy),
        "sharding": options.sharding,
        "replicas": replicas,
        "samples_on_device": numbers.samples_on_device,
        "devices": system.describe_devices(devices),
        "versions": system.versions(),
        "labels": labels,
        "command": options.command,
    }


def _root(options: InferOptions, system_name: str) -> Path:
    results = options.results_dir / "mini" if options.preset == "mini" else options.results_dir
    return results / "inference" / system_name / options.workload.replace(":", ".")
