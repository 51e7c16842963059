"""The inference command: finds the model, places it, and measures what was asked for."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from loadgen_py import TestScenario
from loadgen_py.official import require_official, side_by_side
from loadgen_py.replica import Samples
from mlperf_jax.errors import UserError, first_line, ran_out_of_memory
from mlperf_jax.goals import Quality, targets
from mlperf_jax.inference import compliance, summary
from mlperf_jax.inference.measure import Harness, Measurement, say
from mlperf_jax.inference.options import InferOptions
from mlperf_jax.inference.replicas import make_replicas, placed
from mlperf_jax.inference.settings import INTERACTIVE, SCENARIOS, defaults, require_room
from mlperf_jax.inference.token_harness import TokenHarness
from mlperf_jax.inference.token_sut import TokenReplica, TokenSamples
from mlperf_jax.inference.trained import Trained, open_model
from mlperf_jax.parallel import mesh
from mlperf_jax.parallel.layout import Layout, Strategy
from mlperf_jax.results import system
from mlperf_jax.results.events import run_labels
from mlperf_jax.results.folders import Runs
from mlperf_jax.workload import ServedWorkload, State, TokenWorkload

_MOST_LOADED = 1024  # samples in memory, where LoadGen's defaults name no number


def infer_command(options: InferOptions) -> int:
    """Measures, and tells what was found.

    Returns:
        The exit status: 0 if every run is VALID and good enough, 130 after Ctrl-C, else 1.

    Raises:
        UserError: see the modules that raise it.
    """
    scenarios = _scenarios(options)
    if options.loadgen == "official" and options.mode not in (None, "performance"):
        raise UserError(
            f"--loadgen=official compares performance; it does not go with --mode={options.mode}."
        )
    if options.loadgen == "official":
        require_official()
    try:
        return _measure(options, scenarios)
    except (RuntimeError, MemoryError, OSError) as error:
        if not ran_out_of_memory(error):
            raise
        raise UserError(
            f"Memory ran out ({first_line(error)[:200]}); give the largest batches less, as with "
            "--config.inference.batch_sizes='(1, 8)', keep the samples with --config.inference.samples_on_device=false "
            "on the host, or use fewer with --count."
        ) from error


def _measure(options: InferOptions, scenarios: Sequence[str]) -> int:
    harness = _make_harness(options, scenarios)
    scenarios = _offered(harness.numbers, scenarios, options)
    say(f"measuring {harness.facts['model']}; compiling")
    harness.prepare([_in_loadgen(name) for name in scenarios])
    if programs := harness.facts.get("programs"):
        say(f"{programs['cached']} of {programs['needed']} programs kept from before")
    patience = harness.numbers["sut_timeout_s"]
    say(
        f"measuring; a run is given up after {patience:g} s without an answer (--config.inference.sut_timeout_s)"
    )
    if options.profile:
        say("performance runs are traced for a second, and their figures suffer from that")
    passed = True
    for measured in _runs(harness, scenarios):
        print("\n".join(summary.lines(measured)), flush=True)
        passed &= measured.passed
        if measured.result.interrupted:
            return 128 + signal.SIGINT
    print(" ".join(f"[{label}]" for label in harness.facts["labels"]), flush=True)
    return int(not passed)


def _in_loadgen(scenario: str) -> TestScenario:
    """What LoadGen calls it."""
    return TestScenario.Server if scenario == INTERACTIVE else TestScenario[scenario]


def _scenarios(options: InferOptions) -> Sequence[str]:
    """What was asked for, under MLPerf's names."""
    names = SCENARIOS if options.scenario == "all" else (options.scenario,)
    if options.mode == "find_peak":
        if options.scenario not in ("all", "Server"):
            raise UserError(
                f"--mode=find_peak searches Server's rate; it does not go with --scenario={options.scenario}."
            )
        names = ("Server",)
    return names


def _offered(numbers: Mapping[str, Any], scenarios: Sequence[str], options: InferOptions) -> Sequence[str]:
    """Those of them in which the workload is measured: all, or those that its `inference` numbers name.

    Raises:
        UserError: one was asked for by name in which it is not.
    """
    names = numbers.get("scenarios", SCENARIOS)
    if options.scenario == "all" and len(scenarios) > 1:
        return names
    offered = [scenario for scenario in scenarios if scenario in names]
    if len(offered) < len(scenarios) and (options.scenario != "all" or not offered):
        raise UserError(
            f"{options.workload} is measured in {' and '.join(names)} only, as in MLPerf, not in {scenarios[0]}; "
            f"use --scenario={names[0]}, or --scenario=all for each of them."
        )
    return offered


def _runs(harness: Harness, scenarios: Sequence[str]) -> Iterator[Measurement]:
    options = harness.options
    for name in scenarios:
        harness, scenario = harness.under(name), _in_loadgen(name)
        if options.mode == "find_peak":
            yield from harness.find_peak()
        elif options.mode == "submission":
            yield from harness.submission(scenario)
        elif options.mode == "compliance":
            yield from compliance.run_tests(harness, scenario)
        else:
            if options.mode in (None, "performance"):
                for measured in harness.performance(scenario):
                    yield measured
                compares = options.loadgen == "official" and measured.kind == "performance"
                if compares and not measured.result.errors:
                    official = harness.official(measured)
                    yield official
                    print("\n".join(side_by_side(measured.result, official.result)), flush=True)
            if options.mode in (None, "accuracy"):
                yield from harness.accuracy(scenario)


def _make_harness(options: InferOptions, scenarios: Sequence[str]) -> Harness:
    """Loads and places the model; nothing is compiled yet.

    Raises:
        UserError: there is no such model, or not its data, or not so many samples, or it is not measured so.
    """
    workload, model = open_model(options)
    _offered(workload.config.inference, scenarios, options)
    require_room(workload.config.inference, options.asked)
    if (own := workload.make_samples(lambda layout: model.load(workload, layout))) is not None:
        model = dataclasses.replace(model, quality=own)
    total = options.count or workload.num_samples
    if total > workload.num_samples:
        raise UserError(
            f"--count={total} is more than the {workload.num_samples} samples there are; give at most those."
        )
    numbers = workload.config.inference
    official = defaults(numbers.loadgen_model, TestScenario.Offline)
    loaded = min(official.performance_sample_count_override or _MOST_LOADED, total)
    if isinstance(workload, TokenWorkload):
        return _token_harness(workload, model, options, total, loaded)
    buckets = workload.sample_buckets(np.arange(total))
    rows = workload.sample_rows(np.arange(total))
    replicas = make_replicas(
        workload,
        model,
        *_strategy(options),
        capacity=_capacity(buckets, rows, loaded),
        on_device=numbers.samples_on_device,
    )
    samples = Samples(
        workload.config.data.name,
        total,
        loaded,
        workload.read_samples,
        replicas,
        buckets=buckets,
        rows=rows if workload.most_rows > 1 else None,
        logged=workload.logged_answer,
    )
    return Harness(
        workload, replicas, samples, options, _facts(workload, model, options, replicas=len(replicas))
    )


def _token_harness(
    workload: TokenWorkload, model: Trained, options: InferOptions, total: int, loaded: int
) -> TokenHarness:
    """As `_make_harness`, of models that answer token by token."""
    if options.asked.max_latency_s:
        raise UserError(
            "--max_latency bounds whole answers, and here tokens have bounds of their own; give "
            "--config.inference.max_first_s or --config.inference.max_each_s."
        )

    def places() -> Iterator[tuple[State, Layout]]:
        return placed(workload, model, *_strategy(options))

    replicas = [TokenReplica(workload.token_programs(state, layout)) for state, layout in places()]
    samples = TokenSamples(workload.config.data.name, total, loaded, workload.request)
    facts = _facts(workload, model, options, replicas=len(replicas))
    return TokenHarness(
        workload, cast(Any, replicas), cast(Any, samples), options, facts, lambda: next(places())
    )


def _strategy(options: InferOptions) -> tuple[Strategy, dict[str, int]]:
    """How a model lies on the devices, and on which mesh, as asked."""
    return mesh.find_strategy(options.sharding), mesh.parse_mesh(options.mesh) if options.mesh else {}


def _capacity(buckets: Sequence[str], rows: np.ndarray, loaded: int) -> dict[str, int]:
    """Bucket -> the most rows that `loaded` of its samples can have, of which `rows` says how many each has."""
    of = np.asarray(buckets)
    return {name: int(np.sort(rows[of == name])[-loaded:].sum()) for name in dict.fromkeys(buckets)}


def _facts(
    workload: ServedWorkload, model: Trained, options: InferOptions, *, replicas: int
) -> dict[str, Any]:
    """What every result records of model and machine; also writes the system's description."""
    made_up = [workload.data_description] if workload.made_up_data else []
    devices = jax.devices()
    name = options.system or system.default_system_name(devices)
    described = system.describe_system(
        devices, name=name, preset=options.preset, submitter=options.org, labels=made_up
    )
    system.write_system(
        Runs(options.results_dir, options.preset, name, workload.benchmark).system_path, described
    )
    numbers = workload.config.inference
    return {
        "system": name,
        "model": model.description,
        "loadgen_model": numbers.loadgen_model,
        "inputs": {name: str(rows.dtype) for name, rows in workload.read_samples(np.arange(1)).items()},
        "trained_quality": _reference_quality(workload, model),
        "precision": dataclasses.asdict(workload.policy),
        **workload.implementations(devices[0].platform),
        "sharding": options.sharding,
        "replicas": replicas,
        "samples_on_device": numbers.samples_on_device,
        "devices": system.describe_devices(devices),
        "versions": system.versions(),
        "labels": run_labels(options.preset, made_up),
        "command": options.command,
    }


def _reference_quality(workload: ServedWorkload, model: Trained) -> Quality:
    """What answers are held against: what training reached, else what is published, else the targets."""
    if model.quality is not None:
        return model.quality
    published = workload.config.inference.get("published_quality")
    if isinstance(published, ConfigDict):  # of several goals, by name
        published = published.to_dict()
    return published or targets(workload.served_goals)
