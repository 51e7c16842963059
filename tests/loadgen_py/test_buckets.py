"""Samples of two shapes: each is answered in its own, in batches of one bucket, and no bucket starves."""

import json
import threading
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import log_to
from systems import settings as run_settings

import loadgen_py as lg
from loadgen_py.jax_sut import BatchingSut, InlineSut, _BatchSize
from loadgen_py.replica import Replica, Samples

TOTAL, LOADED = 40, 16
WIDTHS = {"long": 5, "short": 3}
BUCKETS = ["long" if i % 3 else "short" for i in range(TOTAL)]
SIZES = {"long": (1, 2, 8), "short": (1, 2, 4, 8)}


def read(indices):
    (bucket,) = {BUCKETS[i] for i in indices}
    return {"x": (np.arange(WIDTHS[bucket]) + 100 * np.asarray(indices)[:, None]).astype(np.int32)}


def expected(index):
    return 7 * sum(100 * index + k for k in range(WIDTHS[BUCKETS[index]]))


def make_replicas(count, on_device, shapes):
    """Replicas whose `predict` notes in `shapes` what it is traced with."""

    def predict(variables, inputs):
        shapes.add(inputs["x"].shape)
        return variables["weights"] * inputs["x"].sum(1)

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    variables = {"weights": jax.device_put(np.int32(7), here)}
    replicas = [
        Replica(
            predict,
            variables,
            {bucket: {"x": ((width,), np.dtype(np.int32))} for bucket, width in WIDTHS.items()},
            capacity=dict.fromkeys(WIDTHS, LOADED),
            place=lambda shape: here,
            on_device=on_device,
        )
        for _ in range(count)
    ]
    for replica in replicas:
        replica.compile(SIZES)
    return replicas


def make_sut(scenario, replicas, samples):
    if scenario in ("SingleStream", "MultiStream"):
        return InlineSut("inline", replicas, samples)
    return BatchingSut("batching", replicas, samples)


@pytest.fixture(params=[(1, False), (1, True), (3, False)], ids=["one", "on_device", "three"], scope="module")
def served(request):
    """Replicas that are compiled and timed, their samples, and the shapes that `predict` was traced with."""
    count, on_device = request.param
    shapes = set()
    replicas = make_replicas(count, on_device, shapes)
    samples = Samples("two shapes", TOTAL, LOADED, read, replicas, buckets=BUCKETS)
    samples.load(samples.firsts)
    for replica in replicas:
        replica.measure()
    return replicas, samples, shapes


@pytest.mark.parametrize("scenario", lg.TestScenario.__members__)
def test_every_sample_is_answered_in_its_own_shape_and_nothing_compiles(served, scenario, tmp_path):
    replicas, samples, shapes = served
    assert shapes == {(size, WIDTHS[bucket]) for bucket, sizes in SIZES.items() for size in sizes}
    events = []
    listener = lambda name, seconds, **_: events.append(name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        jax.jit(lambda x: x + 1).lower(np.zeros(3)).compile()
        assert any("backend_compile" in name for name in events)  # the listener hears
        events.clear()
        sut = make_sut(scenario, replicas, samples)
        accuracy = lg.run(sut, samples, run_settings(scenario, "AccuracyOnly"), log_to(tmp_path))
        assert accuracy.valid, accuracy.reasons
        (tmp_path / "performance").mkdir()
        performance = lg.run(sut, samples, run_settings(scenario), log_to(tmp_path / "performance"))
        assert performance.metrics["result_query_count"] and not performance.errors
        assert [name for name in events if "/compile/" in name] == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    answers = {e["qsl_idx"]: int(np.frombuffer(bytes.fromhex(e["data"]), "<i4").item()) for e in entries}
    assert answers == {i: expected(i) for i in range(TOTAL)}


def test_pools_hold_each_bucket_in_its_own_shape():
    (replica,) = make_replicas(1, False, set())
    samples = Samples("two shapes", TOTAL, LOADED, read, [replica], buckets=BUCKETS)
    assert samples.buckets == ("long", "short") and samples.counts.tolist() == [26, 14]
    samples.load(np.array([5, 0, 39, 5, 4]))
    assert {bucket: pool["x"].shape for bucket, pool in replica._pools.items()} == {
        "short": (2, 3),
        "long": (2, 5),
    }
    parts = samples.parts(range(10, 15), np.array([39, 5, 4, 39, 0]))
    assert [(bucket, list(ids)) for bucket, ids, _ in parts] == [("long", [11, 12]), ("short", [10, 13, 14])]
    for bucket, ids, slots in parts:
        asked = dict(zip(range(10, 15), [39, 5, 4, 39, 0], strict=True))
        assert replica.answer(bucket, slots).tolist() == [expected(asked[i]) for i in ids]
    samples.load(np.array([1]))  # none of the short ones
    assert set(replica._pools) == {"long"}


# How batches are formed.


class Told:
    """A replica that notes its batches, and answers with slots when `go` is set."""

    def __init__(self, seconds=1e-3):
        self.seconds = {bucket: dict.fromkeys(sizes, seconds) for bucket, sizes in SIZES.items()}
        self.batches = []
        self.busy, self.go = threading.Event(), threading.Event()

    def start(self, bucket, slots):
        self.batches.append((bucket, slots.tolist()))
        return _Later(self, slots)


class _Later:
    def __init__(self, replica, slots):
        self._replica, self._slots = replica, slots

    def __array__(self, dtype=None, copy=None):
        self._replica.busy.set()
        assert self._replica.go.wait(10)
        return self._slots


class Recorder:
    def __init__(self):
        self.answered = Counter()

    def complete(self, ids, answers):
        self.answered.update(int(i) for i in ids)


def indices_of(bucket, count):
    return np.array([i for i in range(TOTAL) if BUCKETS[i] == bucket][:count])


def library():
    samples = Samples("two shapes", TOTAL, TOTAL, read, [], buckets=BUCKETS)
    samples.load(np.arange(TOTAL))
    return samples


def test_the_bucket_that_has_waited_longest_comes_next_though_another_has_full_batches():
    replica, recorder, samples = Told(), Recorder(), library()
    with BatchingSut("batching", [replica], samples) as sut:
        sut.start(recorder)
        sut.issue(range(1, 2), indices_of("short", 1))
        assert replica.busy.wait(10)
        first = 2
        for bucket, count in (("short", 8), ("long", 1), ("short", 8), ("long", 1), ("short", 8)):
            sut.issue(range(first, first + count), indices_of(bucket, count))
            first += count
        replica.go.set()
        sut.flush()
    assert [(bucket, len(slots)) for bucket, slots in replica.batches] == [
        ("short", 1),
        ("short", 8),
        ("long", 2),
        ("short", 8),
        ("short", 8),
    ]
    assert recorder.answered == Counter(range(1, first))


@given(
    queries=st.lists(st.lists(st.integers(0, TOTAL - 1), min_size=1, max_size=20), min_size=1, max_size=20),
    threads=st.integers(1, 2),
)
def test_batches_have_one_bucket_oldest_first_and_each_sample_once(queries, threads):
    replica, recorder, samples = Told(), Recorder(), library()
    replica.go.set()
    first, asked = 1, {bucket: [] for bucket in WIDTHS}
    with BatchingSut("batching", [replica], samples, threads=threads) as sut:
        sut.start(recorder)
        for query in queries:
            sut.issue(range(first, first + len(query)), np.array(query))
            first += len(query)
            for index in query:
                asked[BUCKETS[index]].append(int(samples.slots[index]))
        sut.flush()
        assert sum(size * count for size, count in sut.batches.items()) == first - 1
    assert recorder.answered == Counter(range(1, first))
    assert all(len(slots) <= max(SIZES[bucket]) for bucket, slots in replica.batches)
    if threads == 1:
        for bucket in WIDTHS:
            assert [s for its, slots in replica.batches if its == bucket for s in slots] == asked[bucket]


def test_under_a_budget_a_call_of_every_other_bucket_fits_in_between():
    seconds = {1: 1e-3, 2: 1.5e-3, 4: 2e-3, 8: 3e-3}
    assert _BatchSize(seconds, 6e-3).largest == 8
    assert _BatchSize(seconds, 6e-3, calls=3).largest == 4
    replica = Told(1e-3)
    replica.seconds = {bucket: {size: seconds[size] for size in sizes} for bucket, sizes in SIZES.items()}
    with BatchingSut("batching", [replica], library(), latency_budget_s=6e-3) as sut:
        assert {bucket: queue.largest for bucket, queue in sut._queues.items()} == {"long": 2, "short": 4}


def test_a_mixed_query_is_divided_evenly_over_replicas():
    replicas = [Told() for _ in range(4)]
    for replica in replicas:
        replica.go.set()
    recorder, samples = Recorder(), library()
    sut = InlineSut("inline", replicas, samples)
    sut.start(recorder)
    sut.issue(range(1, 9), np.array([0, 1, 3, 2, 4, 5, 7, 8]))  # two short, six long
    assert recorder.answered == Counter(range(1, 9))
    told = [[(bucket, len(slots)) for bucket, slots in replica.batches] for replica in replicas]
    assert told == [
        [("long", 2), ("short", 1)],
        [("long", 2), ("short", 1)],
        [("long", 1)],
        [("long", 1)],
    ]
