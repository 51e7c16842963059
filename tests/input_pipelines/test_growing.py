"""Processes take over where the reader waits for threads, with the same batches, and only there."""

import itertools

import pytest

from input_pipelines import base, growing


class Clock:
    """time's stand-in: it stands still unless told."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Numbers:
    """Batches that are their numbers, each of which a reader waits for so long."""

    def __init__(self, clock, wait, first):
        self.clock, self.wait, self.numbers, self.closed = clock, wait, itertools.count(first), False

    def __next__(self):
        assert not self.closed
        self.clock.now += self.wait
        return next(self.numbers)

    def close(self):
        self.closed = True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(growing, "time", clock)
    return clock


def read(clock, wait, step, count, start=7):
    """What a reader gets whose step takes so long, and who made it."""
    made = []

    def maker(wait):
        def make(first):
            made.append(Numbers(clock, wait, first))
            return made[-1]

        return make

    batches = growing.Growing(maker(wait), maker(0.0), start)
    found = []
    for _ in range(count):
        found.append(next(batches))
        clock.now += step
    batches.close()
    assert all(source.closed for source in made)
    return found, made


@pytest.mark.parametrize(
    ("wait", "step", "makers"), [(0.1, 0.9, 1), (0.0, 0.1, 1), (0.3, 0.7, 2), (1.0, 0.0, 2)]
)
def test_processes_come_where_more_than_a_fifth_of_the_time_is_waited(clock, wait, step, makers):
    found, made = read(clock, wait, step, 200)
    assert found == list(range(7, 207))
    assert len(made) == makers


def test_threads_go_on_while_processes_start(clock):
    """Batches of a second each: processes have ten to start in, after the look at the first 32."""
    found, made = read(clock, 1.0, 0.0, 60)
    assert found == list(range(7, 67))
    threads, processes = made
    assert next(threads.numbers) == 7 + 1 + 32 + 10  # the first was waited for by everybody
    assert next(processes.numbers) == 67


def test_a_reader_who_stops_before_the_processes_come_ends_them_too(clock):
    _, made = read(clock, 1.0, 0.0, 35)
    assert len(made) == 2


@pytest.mark.parametrize(
    ("there", "options", "expected"),
    [
        (2, {}, (2, 0, 0)),
        (15, {}, (8, 0, 0)),
        (64, {}, (8, 0, 8)),
        (64, {"num_threads": 0, "num_workers": 0}, (8, 0, 8)),
        (64, {"num_threads": 3}, (3, 0, 0)),
        (64, {"num_workers": 5}, (8, 5, 0)),
    ],
)
def test_what_was_not_chosen_follows_the_cores(there, options, expected, monkeypatch):
    monkeypatch.setattr(base, "cores", lambda: there)
    threads, workers, more = expected
    assert base.background(options) == {"num_threads": threads, "num_workers": workers, "more_workers": more}
