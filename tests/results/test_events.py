"""The MLPerf log: judged by the official checker, cut and continued, and read when damaged."""

import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlperf_logging.compliance_checker import mlp_compliance
from mlperf_logging.package_checker.seed_checker import SeedChecker

from mlperf_jax.errors import UserError
from mlperf_jax.goals import Goal
from mlperf_jax.nested import plain
from mlperf_jax.results import events

LARS = {
    "opt_name": "lars",
    "lars_epsilon": 0.0,
    "lars_opt_base_learning_rate": 7.4,
    "lars_opt_end_learning_rate": 1e-4,
    "lars_opt_learning_rate_decay_poly_power": 2,
    "lars_opt_learning_rate_decay_steps": 27476,
    "lars_opt_learning_rate_warmup_epochs": 2,
    "lars_opt_momentum": 0.9,
    "lars_opt_weight_decay": 5e-5,
    "model_bn_span": 1632,
}
SGD = {
    "opt_name": "sgd",
    "sgd_opt_base_learning_rate": 0.1,
    "sgd_opt_end_learning_rate": 1e-4,
    "sgd_opt_learning_rate_decay_poly_power": 2,
    "sgd_opt_learning_rate_decay_steps": 100,
    "sgd_opt_momentum": 0.9,
    "sgd_opt_weight_decay": 1e-4,
    "opt_learning_rate_warmup_epochs": 1,
    "model_bn_span": 256,
}


def write_run(log, *, preset, accuracies, target, hyperparameters, seed=1, benchmark="resnet"):
    """One whole run, as the training loop logs it."""
    with log:
        events.log_preamble(
            log,
            benchmark=benchmark,
            preset=preset,
            system="test-system",
            seed=seed,
            global_batch_size=256,
            gradient_accumulation_steps=1,
            train_samples=60000,
            eval_samples=10000,
            goals=[Goal("quality", target, metric="top-1 accuracy")],
            hyperparameters=hyperparameters,
            cache_clear=(False, "not tried"),
            labels=["fake data"],
        )
        log.start("init_start")
        log.event("compile_time", 12.5, {"unit": "seconds"})
        log.end("init_stop")
        log.start("run_start")
        for epoch, accuracy in enumerate(accuracies, 1):
            block = events.block_metadata(epoch, 1)
            log.start("block_start", metadata=block)
            events.log_stats(log, step=epoch * 235, samples=60000, seconds=2.0, input_seconds=0.1)
            log.end("block_stop", metadata=block)
            done = events.eval_metadata(epoch)
            log.start("eval_start", metadata=done)
            log.event("eval_accuracy", accuracy, done)
            log.end("eval_stop", metadata=done)
        events.log_run_stop(log, "success" if accuracies[-1] >= target else "aborted")


def complaints(path):
    """What the official checker of ruleset 4.0.0 says, with warnings as errors."""
    checker = mlp_compliance.make_checker("training", "4.0.0", False, True)
    mlp_compliance.main(str(path), "training_4.0.0/common.yaml", checker)
    return [*checker.overwritable.values(), *checker.not_overwritable]


@pytest.mark.parametrize("hyperparameters", [LARS, SGD], ids=["lars", "sgd"])
def test_the_official_checker_passes_mini(tmp_path, hyperparameters):
    log = events.EventLog(tmp_path / "result_0.txt")
    write_run(log, preset="mini", accuracies=[0.8, 0.91], target=0.9, hyperparameters=hyperparameters)
    assert complaints(log.path) == []


@pytest.mark.parametrize("hyperparameters", [LARS, SGD], ids=["lars", "sgd"])
def test_the_official_checker_misses_only_the_target_in_a_closed_run_that_did_not_reach_it(
    tmp_path, hyperparameters
):
    log = events.EventLog(tmp_path / "result_0.txt")
    write_run(log, preset="closed", accuracies=[0.01, 0.02], target=0.759, hyperparameters=hyperparameters)
    (complaint,) = complaints(log.path)
    assert complaint.startswith("Failed checks for eval_accuracy") and "0.7590" in complaint


def test_the_official_checker_still_passes_a_log_that_was_resumed(tmp_path):
    path = tmp_path / "result_0.txt"
    write_run(events.EventLog(path), preset="mini", accuracies=[0.8], target=0.9, hyperparameters=LARS)
    position = path.read_bytes().index(b":::MLLOG", path.read_bytes().index(b'"run_start"'))
    log = events.open_log(path, position=position, lost_dir=tmp_path, metadata={"step": 0})
    log.event("eval_accuracy", 0.92, events.eval_metadata(1))
    log.start("block_start", metadata=events.block_metadata(1, 1))
    log.end("block_stop", metadata=events.block_metadata(1, 1))
    events.log_run_stop(log, "success")
    assert complaints(path) == []


def test_the_official_checker_notices_a_missing_hyperparameter(tmp_path):
    log = events.EventLog(tmp_path / "result_0.txt")
    few = {k: v for k, v in LARS.items() if k != "lars_opt_momentum"}
    write_run(log, preset="closed", accuracies=[0.76], target=0.759, hyperparameters=few)
    assert any("lars_opt_momentum" in c for c in complaints(log.path))


def test_the_official_seed_checker_takes_distinct_seeds_and_refuses_equal_ones(tmp_path):
    paths = [tmp_path / f"result_{i}.txt" for i in range(3)]
    for path, seed in zip(paths, (1, 2, 2), strict=True):
        write_run(
            events.EventLog(path),
            preset="mini",
            accuracies=[0.9],
            target=0.9,
            hyperparameters=LARS,
            seed=seed,
        )
    assert SeedChecker("4.0.0").check_seeds(paths[:2])
    assert not SeedChecker("4.0.0").check_seeds(paths)


def test_two_logs_in_one_process_do_not_mix_and_nothing_is_printed_unasked(tmp_path, capfd):
    shown = io.StringIO()
    first, second = events.EventLog(tmp_path / "a.txt"), events.EventLog(tmp_path / "b.txt", echo=shown)
    first.event("seed", 1)
    second.event("seed", 2)
    first.event("seed", 3)
    assert [e.value for e in events.read_events(first.path)] == [1, 3]
    assert [e.value for e in events.read_events(second.path)] == [2]
    assert shown.getvalue() == second.path.read_text()
    assert capfd.readouterr() == ("", "")


def test_an_event_names_the_line_that_logged_it(tmp_path):
    log = events.EventLog(tmp_path / "a.txt")
    log.event("seed", 1)
    assert events.read_events(log.path)[0].metadata["file"].endswith("tests/results/test_events.py")


def test_a_log_is_never_overwritten(tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="a.txt exists and is not overwritten"):
        events.EventLog(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_a_full_disk_is_named_and_leaves_no_half_line(tmp_path, monkeypatch):
    log = events.EventLog(tmp_path / "a.txt")
    log.event("seed", 1)
    before, write = log.path.read_bytes(), events.os.write

    def full(file, data):
        write(file, data[:7])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(events.os, "write", full)
    with pytest.raises(UserError, match="a.txt cannot be written .No space left on device"):
        log.event("seed", 2)
    assert log.path.read_bytes() == before


def test_resuming_moves_what_came_after_the_checkpoint_and_says_so(tmp_path):
    path = tmp_path / "result_0.txt"
    log = events.EventLog(path)
    assert not log.resumed
    log.start("run_start", time_ms=123)
    log.event("eval_accuracy", 0.5)
    position = log.position()
    kept = path.read_bytes()
    for lost, name in (("a", "lost_0.txt"), ("b", "lost_1.txt")):
        log.event("tracked_stats", lost)
        with open(path, "a") as file:
            file.write(":::MLLOG {half a li")  # as a power cut leaves it
        log = events.open_log(path, position=position, lost_dir=tmp_path / "run", metadata={"step": 7})
        assert log.resumed and log.time_of("run_start") == 123
        assert path.read_bytes().startswith(kept)
        assert f'"{lost}"' in (tmp_path / "run" / name).read_text()
        (mark,) = [e for e in events.read_events(path) if e.key == "resumed"]
        assert mark.metadata["lost_file"] == name and mark.metadata["step"] == 7


def test_without_a_checkpoint_the_clock_keeps_its_start(tmp_path):
    path = tmp_path / "result_0.txt"
    log = events.EventLog(path)
    log.event("seed", 1)
    log.start("run_start", time_ms=123)
    log.event("eval_accuracy", 0.5)
    log = events.open_log(path, lost_dir=tmp_path)
    assert log.time_of("run_start") == 123
    assert [e.key for e in events.read_events(path)] == ["seed", "run_start", "resumed"]


def test_a_run_that_never_started_its_clock_begins_its_log_anew(tmp_path):
    path = tmp_path / "result_0.txt"
    events.EventLog(path).event("seed", 1)
    log = events.open_log(path, lost_dir=tmp_path)
    assert not log.resumed and path.read_bytes() == b""
    assert "seed" in (tmp_path / "lost_0.txt").read_text()


@pytest.mark.parametrize("position", [5, 10_000])
def test_a_log_the_checkpoint_does_not_know_is_refused_untouched(tmp_path, position):
    path = tmp_path / "result_0.txt"
    events.EventLog(path).event("seed", 1)
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"not the log that the checkpoint knows .*{position}"):
        events.open_log(path, position=position, lost_dir=tmp_path)
    assert path.read_bytes() == before


def test_a_log_that_vanished_under_its_checkpoint_is_missed(tmp_path):
    with pytest.raises(UserError, match="is missing though its run has a checkpoint"):
        events.open_log(tmp_path / "result_0.txt", position=10, lost_dir=tmp_path)


def test_other_processes_write_nothing(tmp_path):
    log = events.open_log(tmp_path / "result_0.txt", lost_dir=tmp_path, writes=False)
    write_run(log, preset="mini", accuracies=[0.9], target=0.9, hyperparameters=LARS)
    assert list(tmp_path.iterdir()) == [] and log.position() == 0 and log.time_of("seed") is None


def test_every_value_a_run_can_have_becomes_strict_json(tmp_path):
    log = events.EventLog(tmp_path / "a.txt")
    odd = {
        "nan": math.nan,
        "inf": -math.inf,
        "scalar": np.float32(0.5),
        "array": np.arange(2),
        3: {1},
        "path": tmp_path,
    }
    log.event("odd", odd, {"loss": np.float32("nan"), "file": "bad.rec"})

    def refuse(constant):
        raise AssertionError(constant)

    (line,) = log.path.read_text().splitlines()
    said = json.loads(line.removeprefix(events.TOKEN), parse_constant=refuse)
    assert said["value"] == {
        "nan": "nan",
        "inf": "-inf",
        "scalar": 0.5,
        "array": [0, 1],
        "3": [1],
        "path": str(tmp_path),
    }
    assert said["metadata"]["loss"] == "nan" and said["metadata"]["file"] == "bad.rec"


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)  # it writes files
@given(value=json_like)
def test_any_value_comes_back_from_the_log(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("log") / "a.txt"
    with events.EventLog(path) as log:
        log.event("key", value, {"value": value})
    (event,) = events.read_events(path)
    assert event.value == event.metadata["value"] == json.loads(json.dumps(plain(value)))


def test_lines_of_other_kinds_are_passed_over(tmp_path):
    path = tmp_path / "a.txt"
    events.EventLog(path).event("seed", 1)
    path.write_bytes(b"\xff\xfe noise\nstep 3 " + path.read_bytes() + b"\n\n")
    assert [e.key for e in events.read_events(path)] == ["seed"]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "7", '{"key": "a"}', '{"key": 1, "value": 1, "metadata": {}, "time_ms": 1}',
     '{"key": "a", "value": 1, "metadata": [1], "time_ms": 1}',
     '{"key": "a", "value": 1, "metadata": {}, "time_ms": "x"}',
     '{"key": "a", "value": 1, "metadata": {}, "time_ms": 1e999}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_event_is_named_by_file_and_line(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"fine\n:::MLLOG {line}\n")
    with pytest.raises(UserError, match="a.txt, line 2, is damaged"):
        events.read_events(tmp_path / "a.txt")


def test_clearing_caches_says_what_it_did(monkeypatch):
    monkeypatch.setattr(events.os, "sync", lambda: None)
    monkeypatch.setattr(
        events.Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    assert events.clear_caches() == (
        False,
        "page cache not dropped: Permission denied (writing vm.drop_caches needs root)",
    )
    monkeypatch.setattr(events.Path, "write_text", lambda *_: 2)
    assert events.clear_caches()[0] is True


@pytest.mark.parametrize(("benchmark", "division"), [("resnet", "closed"), ("mobilenet", "open")])
def test_a_benchmark_of_no_training_round_is_of_the_open_division(tmp_path, benchmark, division):
    log = events.EventLog(tmp_path / "result_0.txt")
    write_run(log, benchmark=benchmark, preset="closed", accuracies=[0.1], target=0.7, hyperparameters=SGD)
    (said,) = (event.value for event in events.read_events(log.path) if event.key == "submission_division")
    assert said == division
