"""A wall clock that is set while a run goes on: the log keeps its times, and nobody counts them."""

import itertools
import json

import pytest

from mlperf_jax import report
from mlperf_jax.results import clock, events, summary
from mlperf_jax.rounds.scoring import score_runs
from mlperf_jax.rounds.training_logs import read_run
from mlperf_jax.rounds.training_rules import LOCAL, benchmark_called
from tests.reporting import result_trees


class Time:
    """Both clocks, each second later than the last time it was asked; `set_by` moves the one on the wall."""

    def __init__(self):
        self.ticks, self.set_by = itertools.count(1000), 0.0

    def time(self):
        return next(self.ticks) / 1000 + self.set_by

    def monotonic(self):
        return next(self.ticks) / 1000


@pytest.mark.parametrize("set_by", [-3600.0, 3600.0])
def test_what_the_clock_was_set_by_is_told_once(monkeypatch, set_by):
    time = Time()
    monkeypatch.setattr(clock, "time", time)
    wall = clock.WallClock()
    assert wall.moved() == 0.0
    time.set_by = set_by
    assert wall.moved() == pytest.approx(set_by, abs=0.1) and wall.moved() == 0.0
    time.set_by += 0.5
    assert wall.moved() == 0.0


@pytest.mark.parametrize("set_by", [-3600, 3600])
def test_a_run_whose_clock_was_set_is_counted_without_and_has_no_score(tmp_path, monkeypatch, set_by):
    time = Time()
    monkeypatch.setattr(clock, "time", time)
    path = tmp_path / "result_0.txt"
    result_trees._own_log(tmp_path / "plain.txt", "mini", 10)
    plain = read_run(tmp_path / "plain.txt")
    with events.EventLog(path) as log:
        for line in (tmp_path / "plain.txt").read_text().splitlines():
            raw = json.loads(line.partition(":::MLLOG ")[2])
            kinds = {"INTERVAL_START": log.start, "INTERVAL_END": log.end, "POINT_IN_TIME": log.event}
            metadata = {k: v for k, v in raw["metadata"].items() if k not in ("file", "lineno")}
            late = 1000 * set_by if time.set_by else 0
            if raw["key"] == "eval_accuracy" and not time.set_by:
                time.set_by, late = set_by, 1000 * set_by
            kinds[raw["event_type"]](raw["key"], raw["value"], metadata, time_ms=raw["time_ms"] + late)
    run = read_run(path)
    assert run.minutes == pytest.approx(plain.minutes, abs=0.01)
    assert run.clock.startswith(
        f"ran under a clock that was set {'back' if set_by < 0 else 'forward'} by 3,600"
    )
    told = "\n".join(summary._run_lines(summary.summarize(path)))
    assert "time to train  10.00 min" in told and "ran under a clock that was set" in told
    score = score_runs([run, *(plain for _ in range(4))], benchmark_called("resnet"), LOCAL)
    assert score.minutes is None and "result_0.txt ran under a clock that was set" in score.remarks[0]


def test_a_report_says_the_clock_of_runs_that_end_before_they_begin(tmp_path, capsys):
    root = tmp_path / "acme" / "results" / "sysA" / "resnet"
    root.mkdir(parents=True)
    for i in range(5):
        result_trees._own_log(root / f"result_{i}.txt", "closed", 10)
        lines = (root / f"result_{i}.txt").read_text().splitlines()
        begun = next(n for n, line in enumerate(lines) if '"run_start"' in line)
        back = [line.replace('"time_ms": 178', '"time_ms": 177') for line in lines[begun + 1 :]]
        (root / f"result_{i}.txt").write_text("\n".join([*lines[: begun + 1], *back]) + "\n")
    systems = tmp_path / "acme" / "systems"
    systems.mkdir()
    (systems / "sysA.json").write_text("{}")
    page = tmp_path / "page.html"
    assert report.main([str(tmp_path / "acme"), f"--html={page}"]) == 0
    told = capsys.readouterr().out + page.read_text()
    assert "clock that was set back" in told and ">did not converge<" not in told
