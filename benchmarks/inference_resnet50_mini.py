"""What LoadGen and the JAX system under test cost over the bare compiled function: ResNet-50 mini on a CPU.

    python -m benchmarks.inference_resnet50_mini        writes inference_resnet50_mini.{json,md} beside this file

Speed does not depend on weights and pixels, so both are random. Everything that is compared runs in
turns within each round; the tables hold medians over the rounds.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from pathlib import Path

from mlperf_jax import platform as platforms

platforms.configure("cpu")

import jax  # noqa: E402  after the platform is decided
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import loadgen_py as lg  # noqa: E402
from benchmarks.speed.serving import bare_calls, percentile_us, run, stream  # noqa: E402
from loadgen_py.jax_sut import BatchingSut  # noqa: E402
from loadgen_py.replica import ONE_BUCKET, Replica, Samples  # noqa: E402
from mlperf_jax import making  # noqa: E402
from mlperf_jax.inference.replicas import make_replicas  # noqa: E402
from mlperf_jax.inference.trained import Trained  # noqa: E402
from mlperf_jax.parallel.layout import STRATEGIES  # noqa: E402
from mlperf_jax.results import system  # noqa: E402
from mlperf_jax.results.folders import write_json  # noqa: E402
from mlperf_jax.workload import State  # noqa: E402
from mlperf_jax.workloads.image_classification import ResNet50  # noqa: E402

ROUNDS = 15
SECONDS = 0.3
SERVER_SECONDS = 1.0  # tails need more queries
LOADED = 1024
SERVER_SHARES = (0.03, 0.1)  # of the capacity at the best batch size
BOUND_S = 0.015


def main() -> int:
    workload = _workload()
    (replica,) = make_replicas(
        workload,
        Trained("random", {}, None, lambda workload, layout: _random_state()),
        STRATEGIES["dp"],
        {},
        capacity={ONE_BUCKET: LOADED},
        on_device=False,
    )
    replica.compile({ONE_BUCKET: workload.config.inference.batch_sizes})
    samples = Samples("random", LOADED, LOADED, workload.read_samples, [replica])
    images = workload.read_samples(np.arange(LOADED))["image"]
    samples.load(np.arange(LOADED))
    replica.measure()
    seconds = replica.seconds[ONE_BUCKET]
    best = max(seconds, key=lambda size: size / seconds[size])
    capacity = best / seconds[best]
    measured: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        measured.setdefault(name, []).append(value)

    for round_ in range(ROUNDS):
        load = os.getloadavg()[0]
        print(f"round {round_ + 1} of {ROUNDS}, load {load:.1f}", file=sys.stderr, flush=True)
        note("load", load)
        note("offline_bare", _bare_offline(replica, images, best, capacity))
        note("offline_sut", _offline(replica, samples, capacity))
        for name, p50, p90 in (
            ("bare", *bare_calls(replica, {"image": images}, SECONDS, ONE_BUCKET)),
            ("sut", *stream(replica, samples, SECONDS, ONE_BUCKET)),
        ):
            note(f"single_{name}_p50", p50)
            note(f"single_{name}_p90", p90)
        for share in SERVER_SHARES:
            for who in ("loadgen_py", "official"):
                p50, p99 = _server(replica, samples, share * capacity, who)
                note(f"server_{share}_{who}_p50", p50)
                note(f"server_{share}_{who}_p99", p99)
    _report(measured, best, capacity)
    return 0


def _workload() -> ResNet50:
    recipe = making.choose("resnet50", "mini", "cpu", ["--config.precision=float32"], kind=ResNet50)
    return recipe.make(synthetic=True)


def _random_state() -> State:
    workload = _workload()
    state = jax.jit(workload.init)(jnp.uint32(0))
    return workload.served_state(state)


def _bare_offline(replica: Replica, images: np.ndarray, size: int, capacity: float) -> float:
    """Samples/s of a loop that does nothing else, on batches that lie ready."""
    function, variables = replica._compiled[ONE_BUCKET][size], replica._held
    batches = [{"image": images[i : i + size].copy()} for i in range(0, LOADED - size + 1, size)]
    count = max(int(SECONDS * capacity / size), 1)
    begin = time.perf_counter()
    for i in range(count):
        np.asarray(function(variables, batches[i % len(batches)]))
    return count * size / (time.perf_counter() - begin)


def _offline(replica: Replica, samples: Samples, capacity: float) -> float:
    settings = lg.TestSettings(
        scenario=lg.TestScenario.Offline, min_query_count=int(SECONDS * capacity), min_duration_ms=1
    )
    with BatchingSut("benchmark", [replica], samples) as sut:
        return run(sut, samples, settings)["result_samples_per_second"]


def _server(replica: Replica, samples: Samples, qps: float, who: str) -> tuple[float, float]:
    settings = lg.TestSettings(
        scenario=lg.TestScenario.Server,
        server_target_qps=qps,
        server_target_latency_ns=round(1e9 * BOUND_S),
        min_duration_ms=round(1000 * SERVER_SECONDS),
    )
    with BatchingSut("benchmark", [replica], samples, latency_budget_s=BOUND_S) as sut:
        metrics = run(sut, samples, settings, official=who == "official")
    return percentile_us(metrics, 50), percentile_us(metrics, 99)


def _report(measured: dict[str, list[float]], best: int, capacity: float) -> None:
    median = {name: statistics.median(values) for name, values in measured.items()}

    def ratio(name: str, base: str) -> float:
        """The median of the rounds' own ratios: both sides of one saw the same load."""
        return statistics.median(a / b for a, b in zip(measured[name], measured[base], strict=True))

    rows = [
        ("what", "compared with", "system under test", "ratio", "wanted"),
        (
            f"Offline, batches of {best}, samples/s",
            f"bare loop {median['offline_bare']:,.0f}",
            f"{median['offline_sut']:,.0f}",
            f"{ratio('offline_sut', 'offline_bare'):.3f}",
            ">= 0.95",
        ),
    ]
    for p, wanted in (("p50", ""), ("p90", "<= 1.05")):
        name, base = f"single_sut_{p}", f"single_bare_{p}"
        cells = (f"bare call {median[base]:,.0f}", f"{median[name]:,.0f}", f"{ratio(name, base):.3f}", wanted)
        rows.append((f"SingleStream {p}, us", *cells))
    for share in SERVER_SHARES:
        for p in ("p50", "p99"):
            name, base = f"server_{share}_loadgen_py_{p}", f"server_{share}_official_{p}"
            cells = (
                f"official {median[base]:,.0f}",
                f"{median[name]:,.0f}",
                f"{ratio(name, base):.3f}",
                "<= 1",
            )
            rows.append((f"Server at {share * capacity:,.0f} queries/s, {p}, us", *cells))
    table = ["| " + " | ".join(row) + " |" for row in rows]
    table.insert(1, "|---" * len(rows[0]) + "|")
    machine = f"{system.default_system_name(jax.devices())}, Python {platform.python_version()}, jax {jax.__version__}"
    text = [
        "# Inference of ResNet-50 mini on a CPU: what measuring costs",
        "",
        f"`python -m benchmarks.inference_resnet50_mini` on {machine}. Medians of {ROUNDS} rounds in turns, {SECONDS:g} s",
        f"a measurement ({SERVER_SECONDS:g} s in Server); ratios are medians of each round's own. Load average of the machine (1 is one busy core), lowest and",
        f"highest: {min(measured['load']):.1f} and {max(measured['load']):.1f}.",
        "mini: not MLPerf's data or model. Unverified, not reviewed by MLCommons.",
        "",
        *table,
    ]
    here = Path(__file__).with_suffix("")
    here.with_suffix(".md").write_text("\n".join(text) + "\n")
    write_json(here.with_suffix(".json"), {"machine": machine, "best_batch": best, "rounds": measured})
    print("\n".join(table))


if __name__ == "__main__":
    sys.exit(main())
