"""A model with random weights under LoadGen, as the commands serve it: what a query costs, and latency by rate."""

from __future__ import annotations

import collections
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import loadgen_py as lg
from benchmarks.speed.training import Training
from loadgen_py.jax_sut import BatchingSut, InlineSut
from loadgen_py.official import run_official
from loadgen_py.replica import Replica, Samples
from mlperf_jax.inference.measure import Harness
from mlperf_jax.inference.options import InferOptions
from mlperf_jax.inference.replicas import make_replicas
from mlperf_jax.inference.settings import Asked, capacity, make_settings
from mlperf_jax.inference.trained import Trained
from mlperf_jax.parallel.layout import STRATEGIES

LOADED = 1024


class Serving(Training):
    """Copies of a model on `spec["devices"]`; speed depends neither on weights nor on samples, so both are random."""

    def prepare(self) -> dict[str, Any]:
        facts = super().prepare()
        workload, spec = self.workload, self.spec
        total = min(LOADED, workload.num_samples)
        buckets, rows = workload.sample_buckets(np.arange(total)), workload.sample_rows(np.arange(total))
        held: collections.Counter[str] = collections.Counter()
        for bucket, count in zip(buckets, rows.tolist(), strict=True):
            held[bucket] += count
        numbers = workload.config.inference
        served = workload.served_state(self.state)
        self.replicas = make_replicas(
            workload,
            Trained("random weights", {}, None, lambda *_: served),
            STRATEGIES["dp"],
            {},
            capacity=held,
            on_device=numbers.samples_on_device,
        )
        self.samples = Samples(
            workload.config.data.name,
            total,
            total,
            workload.read_samples,
            self.replicas,
            buckets=buckets,
            rows=rows if workload.most_rows > 1 else None,
        )
        options = InferOptions(
            spec["workload"],
            spec["preset"],
            spec["platform"],
            self.folder,
            asked=Asked(duration_s=spec["server_seconds"]),
        )
        platform = {"platform": spec["platform"]}
        self.harness = Harness(
            workload, self.replicas, self.samples, options, {"system": "benchmark", "devices": platform}
        )
        return facts | {"replicas": len(self.replicas)}

    def compile(self, program: str) -> None:
        """Compiles what Server and SingleStream call."""
        scenario = lg.TestScenario[program]
        self.harness.prepare([scenario])
        timings = self.harness.timings(scenario)
        self.settings = make_settings(
            scenario,
            lg.TestMode.PerformanceOnly,
            self.workload.config.inference,
            self.harness.options.asked,
            timings,
            len(self.replicas),
        )
        self.capacity = capacity(timings, len(self.replicas))

    def peak(self) -> dict[str, Any]:
        """The highest rate of Server that meets its bound, as the commands search it; 0 where there is none."""
        search = self.harness.find_peak()
        try:
            while True:
                next(search)
        except StopIteration as found:
            rate = found.value
        bound = self.settings.server_target_latency_ns / 1e9
        return {"peak": rate, "bound": bound, "capacity": self.capacity}

    def load(self, rate: float) -> dict[str, Any]:
        """Latencies in seconds, of Server at a rate."""
        settings = dataclasses.replace(self.settings, server_target_qps=rate)
        bound = settings.server_target_latency_ns / 1e9
        with BatchingSut("benchmark", self.replicas, self.samples, latency_budget_s=bound) as sut:
            metrics = run(sut, self.samples, settings)
        return {f"p{percent}": percentile_us(metrics, percent) / 1e6 for percent in (50, 90, 99)}

    def queries(self, seconds: float) -> dict[str, Any]:
        """p50 in seconds of queries of one sample, through LoadGen and as bare calls of the compiled function."""
        (bucket,) = self.samples.buckets
        pool = self.workload.read_samples(np.arange(self.samples.total_count))
        self.samples.load(np.arange(self.samples.total_count))
        bare, _ = bare_calls(self.replicas[0], pool, seconds, bucket)
        through, _ = stream(self.replicas[0], self.samples, seconds, bucket)
        return {"bare": bare / 1e6, "query": through / 1e6}


def bare_calls(
    replica: Replica, pool: dict[str, np.ndarray], seconds: float, bucket: str
) -> tuple[float, float]:
    """(p50, p90) in us of calls of one sample, from host to host, of a loop that does nothing else.

    Args:
        replica: compiled for one sample.
        pool: samples [N, ...] by name.
        seconds: how long.
        bucket: whose samples they are.
    """
    function, variables = replica._compiled[bucket][1], replica._held
    count = len(next(iter(pool.values())))
    inputs = [{name: rows[i : i + 1].copy() for name, rows in pool.items()} for i in range(count)]
    taken: list[int] = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter_ns()) < end * 1e9:
        np.asarray(function(variables, inputs[len(taken) % count]))
        taken.append(time.perf_counter_ns() - begin)
    p50, p90 = np.quantile(taken, (0.5, 0.9)) / 1e3
    return p50, p90


def stream(replica: Replica, samples: Samples, seconds: float, bucket: str) -> tuple[float, float]:
    """(p50, p90) in us of SingleStream through the system under test."""
    settings = lg.TestSettings(
        scenario=lg.TestScenario.SingleStream,
        min_duration_ms=round(1000 * seconds),
        single_stream_expected_latency_ns=0.5e9 * replica.seconds[bucket][1],
    )
    metrics = run(InlineSut("benchmark", [replica], samples), samples, settings)
    return percentile_us(metrics, 50), percentile_us(metrics, 90)


def percentile_us(metrics: dict[str, Any], percent: int) -> float:
    return metrics[f"result_{percent}.00_percentile_latency_ns"] / 1e3


def run(
    sut: lg.SystemUnderTest, samples: Samples, settings: lg.TestSettings, *, official: bool = False
) -> dict[str, Any]:
    """LoadGen's figures of a performance run; the samples are loaded afterwards."""
    settings.mode = lg.TestMode.PerformanceOnly
    with tempfile.TemporaryDirectory() as folder:
        if official:
            result = run_official(sut, samples, settings, folder)
        else:
            logs = lg.LogSettings(log_output=lg.LogOutputSettings(outdir=folder))
            result = lg.run(sut, samples, settings, logs, audit_config=Path(folder) / "audit.config")
    samples.load(np.arange(samples.total_count))  # the run has unloaded them
    if result.errors:
        raise SystemExit("; ".join(result.errors))
    return result.metrics
