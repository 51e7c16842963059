"""The line that people see while LoadGen runs."""

import io
import types

import pytest

from mlperf_jax.inference.watch import Watch


@pytest.mark.parametrize(
    ("samples", "least_s", "completed", "line"),
    [
        (24_576, 10.0, 8_192, "Offline: 20 s so far | 8,192 of 24,576 samples answered | about 40 s left"),
        (100, 0.0, 0, "Offline: 20 s so far | 0 of 100 samples answered"),
        (0, 60.0, 5, "Offline: 20 s so far | 5 samples answered | at least 40 s left"),
        (0, 10.0, 5, "Offline: 20 s so far | 5 samples answered"),
    ],
)
def test_it_says_how_many_of_how_many_and_what_is_left(samples, least_s, completed, line):
    sut = types.SimpleNamespace(name="sut", issue=None, flush=None, start=lambda responses: None)
    watch = Watch(sut, "Offline", least_s=least_s, samples=samples, stream=io.StringIO())
    watch.start(types.SimpleNamespace(completed=completed))
    assert watch._line(20.0) == line
