"""The worked example of the schedule is true."""

from __future__ import annotations

import doctest

from loadgen_py import schedule


def test_the_worked_example():
    results = doctest.testmod(schedule)
    assert results.attempted > 5 and not results.failed
