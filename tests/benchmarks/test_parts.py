"""The parts of `benchmarks.run` around the step: what they measure, small, and what is kept and shown of it."""

import json
import types

import numpy as np
import pytest

from benchmarks import run
from benchmarks.speed import measure, page, parts, side
from benchmarks.speed.parts import loadgen, scaling, start
from benchmarks.speed.reading import BARE, PIPELINE, Reading
from benchmarks.speed.serving import Serving
from benchmarks.speed.training import Training
from mlperf_jax import report
from mlperf_jax.reporting import measured
from mlperf_jax.results.events import Event

HOSTILE = "<script>alert(1)</script>|[x](javascript:y)\n\x1b[31m`"


def told(*values):
    return measure.told(list(values))


def timing(seconds):
    return {"wall": told(seconds, 2 * seconds), "cpu": told(seconds)}


def facts(name):
    return {
        "command": "python -m benchmarks.run --part=x",
        "date": "2026-01-01 00:00 UTC",
        "commit": "abc",
        "machine": f"2 cores of {name}",
        "python": "3.11",
        "versions": {"jax": "0"},
        "load_before": [0.5],
        "load_after": [1.0],
        "seconds": 9.0,
        "device": "cpu",
    }


def a_record(name="a case"):
    """One case of every part, with round figures."""
    programs = {"bare": timing(0.1), "pipeline": timing(0.2), "step": timing(0.05)}
    variants = dict.fromkeys(measured.VARIANTS, told(100.0)) | {"native": told(400.0)}
    points = [{"share": s, "rate": 100 * s, "p50": s / 100, "p90": s / 50, "p99": s / 10} for s in (0.1, 0.9)]
    sizes = [{"at": at, **timing(at / 1000)} for at in (1, 2, 4)]
    rows = {
        "input": {"batch": 10, "data": name, "bare": "JPEGs", "programs": programs},
        "loadgen": {"figures": {"p99_us": variants, "queries_per_s": variants}},
        "server": {"replicas": 2, "bound": 0.015, "peak": 100.0, "capacity": 200.0, "points": points},
        "start": {"unit": "s", "figures": {f"to the first step {name}": told(3.0, 4.0)}},
        "scaling": {
            "variable": "batch",
            "preset": name,
            "points": sizes,
            "fits": dict.fromkeys(("wall", "cpu"), {"exponent": 1.0, "low": 0.9, "high": 1.1}),
        },
    }
    return {"systems": {}, "parts": {"here": {part: {name: row | facts(name)} for part, row in rows.items()}}}


def test_every_part_is_shown():
    assert set(parts.PARTS) == set(measured.TITLES)
    assert [panel.part for panel in measured.panels(a_record()["parts"]["here"])] == list(parts.PARTS)


def test_figures_of_the_page(tmp_path):
    page.write(tmp_path, a_record())
    written = (tmp_path / "README.md").read_text()
    assert written == page.text(page.read(tmp_path))
    # 10 examples in 0.2 s of a core, 0.1 s bare; the step's 10 take 0.075 s by the clock.
    assert "| a case | a case | 100 | JPEGs | 50 | 0.50 | 133 | 2.67 |" in written
    assert "| a case p99_us | 100 | 100 | 100 | 100 | 400 | **1.00** | **0.25** |" in written
    assert "| a case queries_per_s | 100 | 100 | 100 | 100 | 400 | **1.00** | **4.00** |" in written
    assert "| a case | 2 | 15 | 100 | 50% | 1 / 2 / 10 | 9 / 18 / 90 |" in written
    assert "| a case: to the first step a case | 3.5 (3.25 to 3.75) | s |" in written
    assert (
        "| a case (a case) | batch | 1: 1.5; 2: 3; 4: 6 | 1.00 (0.90 to 1.10) | 1.00 (0.90 to 1.10) |"
        in written
    )
    assert written.count("| a case | 2026-01-01 00:00 UTC | abc | 2 cores of a case |") == len(parts.PARTS)
    for part in parts.PARTS:
        drawn = (tmp_path / f"run_here_{part}.svg").read_text()
        assert drawn.startswith("<svg ") and "sans-serif" in drawn[:80]
        assert f"(run_here_{part}.svg)" in written


def test_what_has_nothing_to_draw_has_no_picture():
    row = {"unit": "ms", "figures": {"a step": told(1.0)}} | facts("it")
    record = {"systems": {}, "parts": {"here": {"start": {"Python of a step": row}}}}
    assert not page.pictures(record) and "![" not in page.text(record)


def test_a_drawing_is_the_same_twice():
    assert page.pictures(a_record()) == page.pictures(a_record())


def test_strings_of_strangers_stay_text(tmp_path, capsys):
    record = a_record(HOSTILE)
    written = page.text(record)
    assert "<script" not in written and "\x1b" not in written
    lines = [line for line in written.splitlines() if "alert" in line]
    assert len(lines) >= 8 and all(
        line.startswith("| &lt;script>") or "2 cores" in line or ":" in line for line in lines
    )
    assert "[x](java" not in written
    for svg in page.pictures(record).values():
        assert "<script" not in svg
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"schema_version": 1} | record | {"systems": {HOSTILE: {HOSTILE: HOSTILE}}}))
    assert report.main([f"--benchmarks={path}", f"--html={tmp_path}/out.html"]) == 0
    html = (tmp_path / "out.html").read_text()
    assert html.count("<script") == 1 and "&lt;script&gt;alert(1)" in html  # the page's own script
    assert "\x1b" not in capsys.readouterr().out


def test_a_system_cannot_name_a_file_elsewhere(tmp_path):
    record = a_record()
    with pytest.raises(Exception, match="cannot name a folder"):
        page.write(tmp_path / "in", {"systems": {}, "parts": {"../out": record["parts"]["here"]}})
    assert not list(tmp_path.glob("*out*"))


WRONG = [None, "1", [], {}, True, float("nan"), float("inf"), -1, 0, 10**400, [[]], {"median": {}}]


@pytest.mark.parametrize("part", parts.PARTS)
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:8])
def test_a_row_that_tells_something_else_is_left_out_and_named(part, wrong):
    """Each of a row's entries is replaced in turn; the other case stays."""
    good = a_record()["parts"]["here"][part]["a case"]
    for key in ("programs", "figures", "points", "fits"):
        if key in good:
            (panel,) = measured.panels({part: {"a case": good, "broken": good | {key: wrong}}})
            empty = (part, wrong) == ("start", {}) or (part, wrong) == (
                "loadgen",
                {},
            )  # says nothing, properly
            assert panel.left_out == ([] if empty else ["broken"])
            assert "a case" in panel.rows and len(panel.table) > 1


def test_records_of_anything_are_read():
    for wrong in (
        *WRONG,
        {"parts": []},
        {"parts": {"x": {"input": 3}}},
        {"systems": 4, "parts": {"x": None}},
    ):
        assert measured.section(wrong) == "" and not list(measured.to_text(wrong))


def test_the_report_shows_ratios_and_curves(tmp_path, capsys):
    ratio = {"cpu": {"low": 1.0, "median": 2.0, "high": 3.0}}
    row = {"programs": {"train": {"ratios": {"eager": ratio, "unknown": HOSTILE}}}}
    page.write_json(
        tmp_path / "run.json", a_record() | {"systems": {"here": {"dlrm": row, "broken": {"programs": 3}}}}
    )
    assert report.main([f"--benchmarks={tmp_path}/run.json", f"--html={tmp_path}/out.html"]) == 0
    html = (tmp_path / "out.html").read_text()
    assert html.count('<img src="data:image/svg+xml;base64,') == 1
    assert html.count('<svg role="img"') == len(parts.PARTS)
    for title in measured.TITLES.values():
        assert f"<summary>{title}</summary>" in html
    assert "Scaling of the train step, on here" in capsys.readouterr().out


def test_a_report_of_nothing_says_what_to_name(tmp_path, capsys):
    assert report.main([f"--benchmarks={tmp_path}/none.json"]) == 2
    assert "none.json" in capsys.readouterr().err
    assert report.main([f"--benchmarks={tmp_path}/none.json", "--serve"]) == 2
    assert "leave one out" in capsys.readouterr().err


class _Worker:
    """Takes its time by its own clock."""

    def __init__(self, name, seconds, asked):
        self.name, self.seconds, self.asked = name, seconds, asked

    def ask(self, do, program, calls):
        self.asked.append((self.name, calls))
        return {"wall": self.seconds, "cpu": 2 * self.seconds, "peak": 0}


def test_turns_are_as_long_for_all_and_each_round_begins_with_another():
    asked = []
    programs = {
        name: (_Worker(name, seconds, asked), "x") for name, seconds in (("slow", 0.3), ("fast", 0.01))
    }
    found = measure.in_turns(programs, rounds=3, seconds=0.25, say=lambda text: None)
    assert asked[:2] == [("slow", 1), ("fast", 1)]
    assert asked[2:] == [("slow", 1), ("fast", 25), ("fast", 25), ("slow", 1), ("slow", 1), ("fast", 25)]
    assert found["fast"] == {"wall": told(0.01, 0.01, 0.01), "cpu": told(0.02, 0.02, 0.02)}


def made_up_part(monkeypatch, rows):
    """A part whose cases are rows, or what is raised in their place, on a system that no process is asked for."""

    def measure_case(case, how):
        how.say("at work")
        if isinstance(rows[case], Exception):
            raise rows[case]
        return rows[case]

    monkeypatch.setattr(
        run, "find", lambda part: types.SimpleNamespace(CASES=list(rows), measure_case=measure_case)
    )
    monkeypatch.setattr(measure.Worker, "__init__", lambda self, spec: None)
    monkeypatch.setattr(measure.Worker, "ask", lambda self, do: {"system": "here", "device": "cpu"})
    monkeypatch.setattr(measure.Worker, "end", lambda self: None)


def test_cases_are_kept_after_each_and_one_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    row = a_record()["parts"]["here"]["scaling"]["a case"]
    made_up_part(
        monkeypatch, {"one": row, "two": measure.Failed("it took more than 7 minutes"), "three": row}
    )
    where = [f"--out={tmp_path}", "--platform=cpu", "--part=scaling"]
    assert run.main(where) == 1
    said = capsys.readouterr()
    assert "two is not measured: it took more than 7 minutes." in said.err
    assert "three (3 of 3): at work, about 0 min left" in said.err
    assert said.out.splitlines()[0].startswith("one (a case) | batch | 1: 1.5;")
    assert page.read(tmp_path)["parts"]["here"]["scaling"].keys() == {"one", "three"}
    made_up_part(monkeypatch, {"one": row | {"preset": "another"}, "two": row})
    assert run.main([*where, "--only=one"]) == 0
    kept = page.read(tmp_path)["parts"]["here"]["scaling"]
    assert kept.keys() == {"one", "three"} and kept["one"]["preset"] == "another"
    assert kept["one"]["command"].endswith("--part=scaling --only=one") and kept["one"]["seconds"] < 60


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--part=cache"], "--part=cache is none of rows, input, loadgen, server, start, scaling"),
        (["--part=input,server", "--only=dlrm"], "give one --part with it"),
        (
            ["--part=scaling", "--only=dlrm"],
            "--only=dlrm is no case of scaling; there are batch of resnet50, ",
        ),
    ],
)
def test_mistakes_end_in_a_sentence(capsys, arguments, said):
    assert run.main(arguments) == 2
    assert said in capsys.readouterr().err


def spec(workload, folder, *overrides, preset="mini", **more):
    config = [f"--config.{override}" for override in overrides]
    return {
        "workload": workload,
        "preset": preset,
        "platform": "cpu",
        "overrides": config,
        "folder": str(folder),
        "seed": 1,
        **more,
    }


@pytest.mark.parametrize(
    ("workload", "preset", "fake", "bare", "overrides"),
    [
        ("resnet50", "closed", 4, "JPEGs", ["batch_size=2"]),
        ("dlrm", "mini", 0, "bytes", ["data.num_train=512", "data.num_eval=64"]),
    ],
)
def test_input_is_read_and_decoded(tmp_path, workload, preset, fake, bare, overrides):
    reading = Reading(spec(workload, tmp_path, *overrides, preset=preset, fake=fake))
    told_of = reading.prepare()
    assert told_of["bare"] == bare and len(reading.jpegs) == fake
    reading.compile(PIPELINE)
    for program in (PIPELINE, BARE):
        found = reading.turn(program, 2)
        assert found["wall"] > 0 and found["cpu"] >= 0
    assert {len(rows) for rows in reading.made.values()} == {told_of["batch"]}
    assert reading.position == (1 + 1 + 2) * told_of["batch"]  # each batch another


SMALL = ("model.stages=(1,)", "batch_size=8", "data.num_train=32", "data.num_eval=16")


def test_a_step_of_each_size_and_a_query_and_a_load(tmp_path, monkeypatch):
    """The three sides of one small model, in this process."""
    overrides = (*SMALL, "inference.batch_sizes=(1,2)", "eval_batch_size=16")
    serving = Serving(spec("resnet50", tmp_path, *overrides, devices=1, server_seconds=0.05))
    assert serving.prepare() == {
        "unit": "images",
        "precision": "float32",
        "batch": 8,
        "replicas": len(serving.replicas),
    }
    serving.compile("SingleStream")
    found = serving.queries(0.02)
    assert 0 < found["bare"] < 1 and 0 < found["query"] < 1
    serving.compile("Server")
    monkeypatch.setattr(serving.harness.__class__, "find_peak", lambda self: _found(50.0))
    assert serving.peak()["peak"] == 50.0
    latencies = serving.load(4000.0)
    assert 0 < latencies["p50"] <= latencies["p90"] <= latencies["p99"]
    Training.compile(serving, side.TRAIN)
    assert serving.turn(side.TRAIN, 2)["wall"] > 0


def _found(rate):
    yield "a probe"
    return rate


def test_sweeps_are_configs_that_there_are():
    """Every change of every sweep is one that its workload's config takes."""
    from mlperf_jax import config as configs

    for sweep in scaling._SWEEPS.values():
        for value in sweep.values:
            made = scaling._spec(sweep, value, {"overrides": [], "seed": 1})
            configs.resolve(configs.base_config(made["workload"], made["preset"]), made["overrides"])
    assert scaling._spec(scaling._SWEEPS["devices of resnet50"], 2, {"overrides": []})["devices"] == 2


def test_the_fit_takes_every_round():
    points = [{"at": at, "wall": told(at * 1.0, at * 2.0)} for at in (1, 10)]
    fit = scaling._fit(points, "wall")
    assert fit["exponent"] == pytest.approx(1) and fit["low"] < 0.8 and fit["high"] > 1.2


def test_loadgen_is_measured_in_rounds_of_all_variants(monkeypatch):
    asked = []

    def once(case, variant):
        asked.append(variant)
        return {"p50_us": float(len(asked)), "p99_us": 10.0}

    monkeypatch.setattr(loadgen.loadgen_speed, "once", once)
    found = loadgen.measure_case("server_1k", parts.Run({}, 2, 0.1, lambda text: None))
    assert asked == [*loadgen.loadgen_speed.VARIANTS] * 2
    assert found["figures"]["p50_us"]["official"]["rounds"] == [1.0, 6.0]
    assert "server_peak" not in loadgen.CASES


def event(key, seconds, value=None):
    return Event(key, value, {}, round(1000 * seconds))


def test_shares_of_a_runs_time():
    stats = {"seconds": 4.0, "input_wait_seconds": 1.0}
    log = [
        event("run_start", 10),
        event("tracked_stats", 14, stats),
        event("eval_start", 14),
        event("eval_stop", 16),
        event("tracked_stats", 20, stats),
        event("eval_start", 20),
        event("eval_stop", 22),
        event("run_stop", 30),
    ]
    shares = start.shares_of_time(log)
    assert shares == {
        "steps": pytest.approx(0.3),
        "waiting for input": pytest.approx(0.1),
        "evaluation": pytest.approx(0.2),
        "else (checkpoints, log)": pytest.approx(0.4),
    }
    assert np.isclose(sum(shares.values()), 1)
