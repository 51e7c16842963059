"""Systems under test of compiled functions: right answers, whatever the batches; nothing compiled in a run."""

import json
import random
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import log_to
from systems import settings as run_settings

import loadgen_py as lg
from loadgen_py.jax_sut import BatchingSut, InlineSut, _BatchSize
from loadgen_py.replica import ONE_BUCKET, Replica, Samples
from mlperf_jax.parallel import mesh

TOTAL, LOADED, WIDTH = 40, 16, 3
SPEC = {"x": ((WIDTH,), np.dtype(np.int32))}


def read(indices):
    return {"x": np.stack([np.arange(WIDTH) + 100 * i for i in indices]).astype(np.int32)}


def expected(index):
    return 7 * sum(100 * index + k for k in range(WIDTH))


def make_replicas(count=1, batch_sizes=(1, 2, 4, 8), on_device=False):
    def predict(variables, inputs):  # a new function each time, so that jax knows nothing of it
        return variables["weights"] * inputs["x"].sum(1)

    layout = mesh.single_device_layout()
    variables = {"weights": jax.device_put(np.int32(7), layout.replicated)}
    replicas = [
        Replica(
            predict,
            variables,
            {ONE_BUCKET: SPEC},
            capacity={ONE_BUCKET: LOADED},
            place=lambda shape: layout.sharding(shape, ("batch",)),
            on_device=on_device,
        )
        for _ in range(count)
    ]
    for replica in replicas:
        replica.compile({ONE_BUCKET: batch_sizes})
        replica.hold({ONE_BUCKET: read(range(LOADED))})
        replica.measure()
    return replicas


class Recorder:
    """Stands in for LoadGen: what was answered, and how often."""

    def __init__(self):
        self.answers, self.lock = {}, threading.Lock()

    def complete(self, ids, answers):
        with self.lock:
            for i, answer in zip(ids, answers, strict=True):
                assert i not in self.answers
                self.answers[i] = int(answer)


def scenario_sut(scenario, replicas, samples, threads=1):
    if scenario in ("SingleStream", "MultiStream"):
        return InlineSut("inline", replicas, samples)
    return BatchingSut("batching", replicas, samples, threads=threads)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("scenario", lg.TestScenario.__members__)
@pytest.mark.parametrize("count, threads", [(1, 1), (3, 2)])
def test_every_logged_answer_is_that_of_its_sample(scenario, count, threads, on_device, tmp_path):
    replicas = make_replicas(count, on_device=on_device)
    # The last of three sets is ragged: 40 samples, 16 at a time.
    samples = Samples("numbers", TOTAL, LOADED, read, replicas)
    sut = scenario_sut(scenario, replicas, samples, threads)
    result = lg.run(sut, samples, run_settings(scenario, "AccuracyOnly"), log_to(tmp_path))
    assert result.valid, result.reasons
    entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    answers = {e["qsl_idx"]: int(np.frombuffer(bytes.fromhex(e["data"]), "<i4").item()) for e in entries}
    assert answers == {i: expected(i) for i in range(TOTAL)}


@pytest.mark.parametrize("scenario", lg.TestScenario.__members__)
def test_answers_of_varying_length(scenario, tmp_path):
    """The log holds of each answer what the library is told to log, whatever batch it came in."""
    asked = []

    def logged(index, answer):
        asked.append(index)
        return int(answer).to_bytes(8, "little")[: 1 + index % 8]

    replicas = make_replicas(2, on_device=False)
    samples = Samples("numbers", TOTAL, LOADED, read, replicas, logged=logged)
    sut = scenario_sut(scenario, replicas, samples)
    assert lg.run(sut, samples, run_settings(scenario), log_to(tmp_path)).metrics
    assert asked == []  # nothing is made that nobody reads
    lg.run(sut, samples, run_settings(scenario, "AccuracyOnly"), log_to(tmp_path))
    entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    answers = {e["qsl_idx"]: bytes.fromhex(e["data"]) for e in entries}
    assert answers == {i: expected(i).to_bytes(8, "little")[: 1 + i % 8] for i in range(TOTAL)}


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("scenario", lg.TestScenario.__members__)
def test_nothing_compiles_or_traces_in_a_measured_run(scenario, on_device, tmp_path):
    events = []
    listener = lambda name, seconds, **_: events.append(name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        replicas = make_replicas(2, on_device=on_device)
        assert any("backend_compile" in name for name in events)  # the listener hears
        samples = Samples("numbers", TOTAL, LOADED, read, replicas)
        sut = scenario_sut(scenario, replicas, samples)
        events.clear()
        result = lg.run(sut, samples, run_settings(scenario), log_to(tmp_path))
        assert result.metrics["result_query_count"] and not result.errors
        assert [name for name in events if "/compile/" in name] == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=30),
    replicas=st.integers(1, 3),
    threads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_batching_answers_each_sample_once_and_no_padding(sizes, replicas, threads, seed):
    draw = random.Random(seed)
    made = [_FakeReplica() for _ in range(replicas)]
    samples = _FakeSamples()
    recorder, wanted, first = Recorder(), {}, 1
    with BatchingSut("batching", made, samples, threads=threads) as sut:
        sut.start(recorder)
        for size in sizes:
            ids = range(first, first + size) if draw.random() < 0.5 else list(range(first, first + size))
            indices = np.array([draw.randrange(TOTAL) for _ in ids])
            wanted |= dict(zip(ids, indices.tolist(), strict=True))
            first += size
            sut.issue(ids, indices)
            if draw.random() < 0.2:
                sut.flush()
        sut.flush()
    assert recorder.answers == wanted
    assert sum(size * count for size, count in sut.batches.items()) == sum(sizes)
    assert max(sut.batches) <= 8


class _FakeSamples:
    buckets = (ONE_BUCKET,)
    most_rows = {ONE_BUCKET: 1}

    def sizes(self, bucket, slots):
        return None

    def rows(self, bucket, slots):
        return slots

    def parts(self, ids, indices):
        return [(ONE_BUCKET, ids, indices.astype(np.int32))]

    def entries(self, bucket, slots, answers):
        return answers


class _FakeReplica:
    """Answers a slot with its number, in a time that the test decides."""

    def __init__(self, answer=None):
        self.seconds = {ONE_BUCKET: {1: 1e-3, 2: 1e-3, 4: 1e-3, 8: 1e-3}}
        self.answer = answer or (lambda slots: slots.copy())

    def start(self, bucket, slots):
        return _Later(self.answer, slots)


class _Later:
    """An array that is computed when it is fetched."""

    def __init__(self, answer, slots):
        self._answer, self._slots = answer, slots

    def __array__(self, dtype=None, copy=None):
        return self._answer(self._slots)


def test_what_arrives_during_a_call_makes_the_next_batch():
    busy, go = threading.Event(), threading.Event()

    def answer(slots):
        busy.set()
        assert go.wait(10)
        return slots.copy()

    recorder = Recorder()
    with BatchingSut("batching", [_FakeReplica(answer)], _FakeSamples()) as sut:
        sut.start(recorder)
        sut.issue(range(1, 2), np.array([0]))
        assert busy.wait(10)
        for i in range(2, 7):
            sut.issue(range(i, i + 1), np.array([i]))
        go.set()
        sut.flush()
        assert sut.batches == {1: 1, 5: 1}
    assert recorder.answers == {1: 0} | {i: i for i in range(2, 7)}


def test_the_next_full_batch_is_started_before_the_last_is_fetched():
    told = []

    class Told(_FakeReplica):
        def start(self, bucket, slots):
            told.append(f"start {slots[0]}")
            return super().start(bucket, slots)

    def answer(slots):
        told.append(f"fetch {slots[0]}")
        return slots.copy()

    with BatchingSut("batching", [Told(answer)], _FakeSamples()) as sut:
        sut.start(Recorder())
        sut.issue(range(1, 26), np.arange(25))  # the last one is not full
        sut.flush()
    assert told == [
        "start 0",
        "start 8",
        "fetch 0",
        "start 16",
        "fetch 8",
        "start 24",
        "fetch 16",
        "fetch 24",
    ]


def test_two_threads_keep_two_batches_under_way():
    busy, both = threading.Event(), threading.Barrier(2)

    def answer(slots):
        busy.set()
        both.wait(10)  # breaks unless a second batch is under way
        return slots.copy()

    with BatchingSut("batching", [_FakeReplica(answer)], _FakeSamples(), threads=2) as sut:
        sut.start(Recorder())
        sut.issue(range(1, 2), np.array([1]))
        assert busy.wait(10)
        sut.issue(range(2, 3), np.array([2]))
        sut.flush()
        assert sut.batches == {1: 2}


@pytest.mark.timing
def test_a_batch_waits_as_long_as_it_may_and_no_longer():
    began = time.perf_counter()
    recorder = Recorder()
    with BatchingSut("batching", [_FakeReplica()], _FakeSamples(), max_wait_s=0.2) as sut:
        sut.start(recorder)
        for i in range(1, 4):
            sut.issue(range(i, i + 1), np.array([i]))
        while len(recorder.answers) < 3:
            assert time.perf_counter() - began < 10
            time.sleep(0.005)
        assert time.perf_counter() - began >= 0.2
        assert sut.batches == {3: 1}


@given(
    seconds=st.dictionaries(st.integers(1, 64), st.floats(1e-4, 1.0), min_size=1, max_size=6),
    waiting=st.integers(1, 200),
    budget=st.none() | st.floats(1e-3, 2.0),
)
def test_batch_sizes_are_the_fastest_within_the_budget(seconds, waiting, budget):
    choose = _BatchSize(seconds, budget)
    fits = {b for b, s in seconds.items() if budget is None or 2 * s <= budget} or {min(seconds)}
    fits |= {min(seconds)}
    assert choose.largest in fits
    assert all(choose.largest / seconds[choose.largest] >= b / seconds[b] for b in fits)
    size = choose(waiting)
    assert 1 <= size <= min(waiting, choose.largest)

    def rate(n):  # of n samples in the smallest batch size that holds them
        return n / seconds[min(b for b in fits if n <= b <= choose.largest)]

    if waiting < choose.largest:
        below = [b for b in fits if b <= waiting]
        assert rate(size) >= max([rate(waiting), *map(rate, below[-1:])]) * (1 - 1e-12) or size in (
            waiting,
            *below,
        )


def test_a_call_that_raises_ends_the_run_with_its_reason(tmp_path, capsys):
    calls = []

    def answer(slots):
        calls.append(len(slots))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return slots.copy()

    for scenario in ("Server", "Offline"):
        calls.clear()
        library = Samples("numbers", TOTAL, LOADED, read, [])
        with BatchingSut("batching", [_FakeReplica(answer)], library) as sut:
            result = lg.run(sut, library, run_settings(scenario), log_to(tmp_path))
        assert not result.valid
        assert "RuntimeError: out of memory" in " ".join(result.errors)


def test_a_call_that_hangs_ends_the_run_and_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("loadgen_py.jax_sut._PATIENCE_SECONDS", 0.05)
    never = threading.Event()
    library = Samples("numbers", TOTAL, LOADED, read, [])
    with BatchingSut("batching", [_FakeReplica(lambda slots: never.wait(60) and slots)], library) as sut:
        result = lg.run(sut, library, run_settings("Server", sut_timeout_ms=200), log_to(tmp_path))
    assert not result.valid and "gave no answer for 0.2 s" in " ".join(result.errors)
    never.set()


def test_device_memory_holds_the_loaded_samples_and_no_more():
    (replica,) = make_replicas(on_device=True)
    samples = Samples("numbers", TOTAL, LOADED, read, [replica])
    samples.load(np.array([5, 39, 5, 0]))  # MultiStream's padding repeats samples
    assert {a.shape for a in replica._pools[ONE_BUCKET].values()} == {(LOADED, WIDTH)}
    slots = samples.slots[np.array([39, 5])]
    assert replica.answer(ONE_BUCKET, slots).tolist() == [expected(39), expected(5)]
    samples.unload(np.array([5, 39, 5, 0]))
    assert not replica._pools and (samples.slots == -1).all()


@pytest.mark.parametrize("devices", [1, 8])
def test_small_weights_are_passed_together_and_mean_the_same(devices):
    """Of every dtype and shape, whole or split: what the function sees is what it was given, in fewer arrays."""
    random = np.random.default_rng(3)
    devices = np.array(jax.devices()[:devices])
    mesh_ = jax.sharding.Mesh(devices, ("data",))
    whole, split = (jax.NamedSharding(mesh_, spec) for spec in (jax.P(), jax.P("data")))
    dtypes = (np.float32, np.int32, np.dtype("bfloat16"), np.bool_)
    shapes = ((), (3,), (8, 2), (1, 5, 1), (0,), (40, 40))
    given = {f"{d}": [random.integers(0, 2, s).astype(d) for s in shapes] for d in map(np.dtype, dtypes)}
    axes = jax.NamedSharding(mesh_, jax.P(None, None))
    variables = jax.device_put(given, whole) | {
        "split": jax.device_put(np.arange(16.0), split),
        "axes": jax.device_put(np.ones((2, 2), np.float32), axes),
        "key": jax.device_put(jax.random.key(5), whole),
        "number": 4,
    }
    seen = []

    def predict(variables, inputs):
        seen.append(jax.tree.map(lambda x: (np.shape(x), getattr(x, "dtype", None)), variables))
        numbers = [
            x for x in jax.tree.leaves(variables) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        ]
        every = jax.numpy.concatenate([x.astype(np.float32).ravel() for x in numbers])
        return inputs["x"][:, :1] + every

    replica = Replica(predict, variables, {"": SPEC}, capacity={"": 4}, place=lambda shape: whole)
    replica.compile({"": (2,)})
    replica.hold({"": {"x": np.array([[1, 0, 0], [2, 0, 0]], np.int32)}})
    leaves = jax.tree.leaves(variables)
    numbers = [
        np.asarray(x, np.float32).ravel() for x in leaves if not isinstance(x, jax.Array) or x.dtype in dtypes
    ]
    expected = np.array([[1], [2]]) + np.concatenate(numbers)
    np.testing.assert_array_equal(replica.answer("", np.arange(2)), expected)
    shapes_of = jax.tree.map(lambda x: np.shape(x), variables)
    assert jax.tree.map(lambda x: x[0], seen[0], is_leaf=lambda x: isinstance(x, tuple)) == shapes_of
    assert len(replica._held) < len(leaves) - 10
