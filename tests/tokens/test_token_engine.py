"""The engine over a device that is not there: pages, order, failures, threads."""

import threading

import numpy as np
import pytest

from mlperf_jax.tokens.engine import Engine
from mlperf_jax.tokens.pages import Pages
from mlperf_jax.tokens.programs import Sizes
from mlperf_jax.tokens.requests import Request
from tests.tokens.simulated import END, Collected, Simulated

SIZES = Sizes(slots=8, pages=41, page=4, length=64, chunks=(4, 16))


def drawn_request(random, longest=48):
    length = int(random.integers(1, longest))
    most = int(random.integers(1, 64 - length + 1))
    return Request(
        random.integers(1, 1000, size=length).astype(np.int32), most, int(random.integers(0, most + 1))
    )


def run(engine):
    while engine.round():
        pass


def free_pages(engine):
    return engine._scheduler.pages.free


def test_ten_thousand_requests_leak_no_page():
    """Of random lengths, arriving in bursts; some are cancelled, and some listeners raise."""
    random = np.random.default_rng(0)
    device = Simulated(SIZES)
    engine = Engine(device, between_steps=32)
    asked, cancelled = [], set()
    while len(asked) < 10_000:
        for _ in range(random.integers(30)):
            request, heard = drawn_request(random), Collected()
            if random.random() < 0.01:
                heard.token = lambda token, last: 1 / 0
            text = engine.submit(request, heard)
            asked.append((request, heard, text))
        for _ in range(random.integers(30)):
            engine.round()
        if random.random() < 0.1:
            n = int(random.integers(max(0, len(asked) - 40), len(asked))) if asked else 0
            engine.cancel(asked[n][2])
            cancelled.add(n)
    run(engine)
    assert free_pages(engine) == 40 and len(engine._scheduler._slots) == 8 and device.most > 4
    assert all(text.over for _, _, text in asked)
    for n, (request, heard, _) in enumerate(asked):
        if "token" in vars(heard):
            continue
        expected = device.told(request)
        assert heard.why is None
        if n in cancelled and not heard.finished:
            assert heard.tokens == expected[: len(heard.tokens)]
            continue
        assert heard.tokens == expected and heard.lasts == [False] * (len(expected) - 1) + [True]
        assert heard.tokens.count(END) <= 1


def test_requests_that_cannot_be_answered_are_refused_alone():
    engine = Engine(Simulated(SIZES))
    few = Engine(Simulated(Sizes(slots=2, pages=3, page=4, length=64, chunks=(16,))))
    wrong = {
        "at least one token": Request(np.zeros(0, np.int32), 3),
        "none of the model's 1,000": Request(np.array([5, 1000], np.int32), 3),
        "more than the 64": Request(np.ones(60, np.int32), 5),
        "max_tokens is 0": Request(np.ones(6, np.int32), 0),
        "min_tokens is 4": Request(np.ones(6, np.int32), 3, 4),
        "temperature is -1": Request(np.ones(6, np.int32), 3, temperature=-1),
        "top_p is 0": Request(np.ones(6, np.int32), 3, top_p=0.0),
        "seed is -1": Request(np.ones(6, np.int32), 3, seed=-1),
    }
    heard = {words: Collected() for words in wrong}
    good = Collected()
    for words, request in wrong.items():
        engine.submit(request, heard[words])
    engine.submit(Request(np.ones(6, np.int32), 3), good)
    run(engine)
    for words, one in heard.items():
        assert words in one.why and not one.tokens
    assert good.finished
    one = Collected()
    few.submit(Request(np.ones(9, np.int32), 1), one)
    assert "3 pages of the cache, which has 2" in one.why


def test_prompts_are_read_between_steps():
    """A long prompt holds up a text under way by so many tokens a step, and by no more."""
    device = Simulated(SIZES, end_share=0.0)
    engine = Engine(device)
    running, late = Collected(), Collected()
    engine.submit(Request(np.ones(3, np.int32), 20), running)
    for _ in range(3):
        engine.round()
    engine.submit(Request(np.full(48, 2, np.int32), 2), late)
    before = len(running.tokens)
    while not late.tokens:
        engine.round()
    # Three chunks of 16, a round each, and one more until the first token is fetched.
    assert len(running.tokens) - before == 4


def test_short_prompts_are_read_whole_until_there_are_enough_for_a_step():
    device = Simulated(SIZES, end_share=0.0)
    engine = Engine(device, between_steps=16)
    for length in (9, 9, 9, 20, 3):
        engine.submit(Request(np.ones(length, np.int32), 2), Collected())
    read = []
    prefill = device.prefill
    device.prefill = lambda chunk: (read.append(chunk.stop - chunk.start), prefill(chunk))[1]
    rounds = []
    while engine.round():
        rounds.append(tuple(read))
        read.clear()
    assert rounds[:3] == [(9, 9), (9, 16), (4, 3)]


def test_a_place_is_given_on_as_soon_as_the_last_token_is_asked_for():
    """One slot: the next text's prompt is read in the round after the step that makes the last token."""
    sizes = Sizes(slots=1, pages=9, page=4, length=32, chunks=(16,))
    engine = Engine(Simulated(sizes, end_share=0.0))
    first, second = Collected(), Collected()
    engine.submit(Request(np.ones(3, np.int32), 2), first)
    engine.submit(Request(np.ones(5, np.int32), 2), second)
    run(engine)
    assert engine.batches == {1: 2} and first.finished and second.finished


def test_threads_ask_and_a_broken_device_tells_all():
    device = Simulated(SIZES)
    random = np.random.default_rng(3)
    requests = [drawn_request(random) for _ in range(200)]
    done = threading.Semaphore(0)

    class Heard(Collected):
        def token(self, token, last):
            super().token(token, last)
            if last:
                done.release()

        def failed(self, why):
            super().failed(why)
            done.release()

    heard = [Heard() for _ in requests]
    with Engine(device) as engine:

        def ask(start):
            for n in range(start, len(requests), 4):
                engine.submit(requests[n], heard[n])

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for _ in requests:
            assert done.acquire(timeout=30)
        for request, one in zip(requests, heard, strict=True):
            assert one.tokens == device.told(request)
        device.step = lambda slots: 1 / 0
        late, later = Heard(), Heard()
        engine.submit(Request(np.ones(5, np.int32), 9, 9), late)
        assert done.acquire(timeout=30)
        engine.submit(requests[0], later)
        assert "division by zero" in late.why and "division by zero" in later.why
    after = Heard()
    engine.submit(requests[0], after)
    assert after.why


def test_pages_are_counted():
    pages = Pages(6, 4)
    assert pages.free == 5 and [pages.needed(n) for n in (1, 4, 5)] == [1, 1, 2]
    taken = pages.take(3)
    with pytest.raises(ValueError, match="3 pages are asked for, and 2 are free"):
        pages.take(3)
    pages.give_back(taken)
    with pytest.raises(KeyError):
        pages.give_back(taken[:1])
    with pytest.raises(ValueError, match="at least 2"):
        Pages(1, 4)
