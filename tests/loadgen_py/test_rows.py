"""Samples of several rows each: batches are of rows, and every sample is answered as it is alone."""

import json
import threading
import time

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

TOTAL, LOADED, MOST = 40, 16, 7
ROWS = np.random.default_rng(2).integers(1, MOST + 1, TOTAL)
ROWS[3] = MOST
SIZES = (2, 7, 16, 60)


def read(indices):
    """Of sample i its rows [i, 0], [i, 1] and so on."""
    pairs = [np.stack([np.full(ROWS[i], i), np.arange(ROWS[i])], axis=1) for i in indices]
    return {"x": np.concatenate(pairs).astype(np.int32)}


def expected(index):
    return [7 * (100 * index + k) for k in range(ROWS[index])]


def make_replicas(count, on_device):
    def predict(variables, inputs):
        return variables["weights"] * (100 * inputs["x"][:, 0] + inputs["x"][:, 1])

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    variables = {"weights": jax.device_put(np.int32(7), here)}
    spec = {"": {"x": ((2,), np.dtype(np.int32))}}
    capacity = {"": int(np.sort(ROWS)[-LOADED:].sum())}
    replicas = [
        Replica(predict, variables, spec, capacity=capacity, place=lambda shape: here, on_device=on_device)
        for _ in range(count)
    ]
    for replica in replicas:
        replica.compile({"": SIZES})
    return replicas


def library(replicas, **fields):
    return Samples("groups", TOTAL, LOADED, read, replicas, rows=ROWS, **fields)


@pytest.fixture(params=[(1, False), (1, True), (3, False)], ids=["one", "on_device", "three"], scope="module")
def served(request):
    replicas = make_replicas(*request.param)
    samples = library(replicas, logged=lambda index, answer: np.append(answer, index).astype(np.int32))
    samples.load(samples.firsts)
    for replica in replicas:
        replica.measure()
    return replicas, samples


@pytest.mark.parametrize("scenario", lg.TestScenario.__members__)
def test_every_sample_is_answered_with_its_own_rows(served, scenario, tmp_path):
    replicas, samples = served
    streams = scenario in ("SingleStream", "MultiStream")
    sut = InlineSut("inline", replicas, samples) if streams else BatchingSut("batching", replicas, samples)
    result = lg.run(sut, samples, run_settings(scenario, "AccuracyOnly"), log_to(tmp_path))
    assert result.valid, result.reasons
    entries = json.loads((tmp_path / "mlperf_log_accuracy.json").read_text())
    answers = {e["qsl_idx"]: np.frombuffer(bytes.fromhex(e["data"]), "<i4").tolist() for e in entries}
    assert answers == {i: [*expected(i), i] for i in range(TOTAL)}


def test_a_pool_holds_rows_and_no_padding():
    (replica,) = make_replicas(1, False)
    samples = library([replica])
    assert samples.most_rows == {"": MOST} and samples.mean_rows[""] == pytest.approx(ROWS.mean())
    samples.load(np.array([5, 39, 3, 5]))
    assert len(replica._pools[""]["x"]) == ROWS[[3, 5, 39]].sum()
    slots = samples.slots[np.array([39, 3, 39])]
    rows = samples.rows("", slots)
    answers = replica.answer("", rows)
    assert answers.tolist() == expected(39) + expected(3) + expected(39)
    entries = samples.entries("", slots, answers)
    assert [entries[k].tolist() for k in range(3)] == [expected(39), expected(3), expected(39)]


class _Told:
    """A replica that notes its batches of rows, and answers with the rows' places."""

    def __init__(self, seconds):
        self.seconds = {"": seconds}
        self.batches = []
        self.go = threading.Event()
        self.go.set()

    def start(self, bucket, rows):
        self.batches.append(len(rows))
        assert self.go.wait(10)
        return rows


class _Recorder:
    def __init__(self):
        self.answered = {}

    def complete(self, ids, answers):
        for k, i in enumerate(ids):
            assert i not in self.answered
            self.answered[i] = answers[k].tolist()


@given(
    queries=st.lists(st.lists(st.integers(0, TOTAL - 1), min_size=1, max_size=30), min_size=1, max_size=12),
    seconds=st.lists(st.floats(1e-4, 1e-1), min_size=4, max_size=4),
    budget=st.none() | st.floats(1e-4, 1e-1),
)
def test_batches_are_of_whole_samples_in_order(queries, seconds, budget):
    """Whatever calls take: each sample once, no batch above the largest, and answers where they belong."""
    replica, recorder = _Told(dict(zip(SIZES, seconds, strict=True))), _Recorder()
    samples = library([])
    samples.load(np.arange(TOTAL))
    bounds = np.concatenate([[0], np.cumsum(ROWS)])
    first, wanted = 1, {}
    with BatchingSut("batching", [replica], samples, latency_budget_s=budget) as sut:
        largest = sut._queues[""].largest
        sut.start(recorder)
        for query in queries:
            for k, index in enumerate(query):
                wanted[first + k] = list(range(bounds[index], bounds[index + 1]))
            sut.issue(range(first, first + len(query)), np.array(query))
            first += len(query)
        sut.flush()
        assert sum(size * count for size, count in sut.batches.items()) == first - 1
        assert sut._count == 0
    assert recorder.answered == wanted
    assert largest >= MOST and max(replica.batches) <= largest
    assert sum(replica.batches) == sum(map(len, wanted.values()))


def test_what_waits_is_one_batch_of_rows():
    replica, recorder, samples = _Told(dict.fromkeys(SIZES, 1e-3)), _Recorder(), library([])
    samples.load(np.arange(TOTAL))
    replica.go.clear()
    with BatchingSut("batching", [replica], samples) as sut:
        sut.start(recorder)
        sut.issue(range(1, 2), np.array([0]))
        while not replica.batches:
            time.sleep(0.001)
        for k in range(1, 6):
            sut.issue(range(k + 1, k + 2), np.array([k]))
        replica.go.set()
        sut.flush()
    assert replica.batches == [ROWS[0], ROWS[1:6].sum()]


def test_batch_sizes_below_a_sample_are_for_smaller_ones():
    seconds = {2: 1e-3, 7: 2e-3, 16: 8e-3, 60: 9e-3}
    assert _BatchSize(seconds, None, most_rows=7).largest == 60
    assert _BatchSize(seconds, 4e-3, most_rows=7).largest == 7  # of those that fit
    assert _BatchSize(seconds, 1e-4, most_rows=7).largest == 7  # a sample must go in one
    choose = _BatchSize(seconds, 16e-3, most_rows=7)
    assert choose.largest == 7
    assert choose(3, oldest=3) == 3 and choose(3, oldest=1) == 2
