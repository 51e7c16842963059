"""Which run a command continues or begins, and what its folder's files survive."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from mlperf_jax.errors import UserError
from mlperf_jax.results import events, folders
from mlperf_jax.results.folders import Runs, read_json, write_json

CONFIG = {"optimizer": {"name": "lars", "lr": 7.4}, "global_batch_size": 1632, "mesh": {"data": 4}}


def runs(tmp_path, preset="mini", system="box", benchmark="resnet"):
    return Runs(tmp_path, preset, system, benchmark)


def begin(tmp_path, config=CONFIG, preset="mini", **kwargs):
    """The next run, as one command after another finds it."""
    with runs(tmp_path, preset) as found:
        return found.next(config, **kwargs)


def test_a_new_run_has_its_files(tmp_path):
    run = begin(tmp_path, seed=5, versions={"jax": "0.10"}, devices={"kind": "cpu", "count": 2})
    assert run.folder == tmp_path / "mini/runs/box/resnet/run_0"
    assert run.log_path == tmp_path / "mini/results/box/resnet/result_0.txt"
    assert run.config == CONFIG and run.seed == 5 and not run.resuming
    assert read_json(run.folder / "versions.json")["jax"] == "0.10"
    assert read_json(run.folder / "devices.json")["count"] == 2
    assert read_json(run.folder / "status.json")["state"] == "running"
    assert all(json.loads(f.read_text())["schema_version"] == 1 for f in run.folder.glob("*.json"))
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "config.json",
        "devices.json",
        "status.json",
        "versions.json",
    ]


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_an_unfinished_run_continues_with_its_seed(tmp_path, state):
    first = begin(tmp_path)
    first.update(state, step=3)
    second = begin(tmp_path)
    assert second.index == 0 and second.seed == first.seed and second.resuming
    assert second.status["state"] == "running" and second.status["step"] == 3


def test_a_run_that_failed_before_its_first_checkpoint_does_not_bind_another_configuration(tmp_path):
    log = '{"key": "run_start"}\n'
    for first_log, config in ((log, {"batch": 1}), (log + log, {"batch": 2})):
        run = begin(tmp_path, config | {"lr": 0.1})
        assert run.index == 0 and run.config == config | {"lr": 0.1}
        run.log_path.write_text(first_log)
        run.update("failed", reason="memory ran out")
    again = begin(tmp_path, {"batch": 2, "lr": 0.1})  # the same goes on
    assert again.index == 0 and again.log_path.read_text() == log + log
    # Nothing is lost: what the first logged lies beside it.
    assert (run.folder / "lost_0.txt").read_text() == log and not (run.folder / "lost_1.txt").exists()


@pytest.mark.parametrize(("state", "saved"), [("failed", True), ("stopped", False), ("running", False)])
def test_a_run_with_something_to_continue_from_binds_the_next(tmp_path, state, saved):
    run = begin(tmp_path, {"batch": 1})
    run.log_path.write_text('{"key": "run_start"}\n')
    if saved:
        (run.checkpoint_dir / "20").mkdir(parents=True)
    run.update(state)
    with pytest.raises(UserError, match="unfinished run of another configuration .batch is 2 and was 1"):
        begin(tmp_path, {"batch": 2})


@pytest.mark.parametrize("state", folders.FINISHED)
def test_a_finished_run_is_kept_and_the_next_index_used(tmp_path, state):
    first = begin(tmp_path)
    first.update(state)
    before = {f: f.read_bytes() for f in first.folder.iterdir()}
    assert begin(tmp_path).index == 1
    assert {f: f.read_bytes() for f in first.folder.iterdir()} == before


def test_a_run_killed_between_its_run_stop_and_its_status_is_finished(tmp_path):
    run = begin(tmp_path)
    with events.EventLog(run.log_path) as log:
        events.log_run_stop(log, "success")
    assert begin(tmp_path).index == 1
    assert runs(tmp_path).open(0).status["state"] == "success"


def test_a_result_without_its_run_folder_is_not_overwritten(tmp_path):
    logs = runs(tmp_path).logs
    logs.mkdir(parents=True)
    (logs / "result_3.txt").write_text("of another day")
    assert begin(tmp_path).index == 4


def start_clock(run):
    run.log_path.write_text(':::MLLOG {"key": "run_start", "value": null, "metadata": {}, "time_ms": 1}\n')


def test_another_config_is_refused_with_the_difference_named(tmp_path):
    start_clock(begin(tmp_path, seed=1))
    changed = {
        "optimizer": {"name": "sgd", "lr": 7.4},
        "global_batch_size": 1632,
        "mesh": {"data": 4},
        "extra": 1,
    }
    with pytest.raises(UserError) as caught:
        begin(tmp_path, changed, seed=2)
    message = str(caught.value)
    assert "run_0" in message and "--results_dir" in message
    assert "optimizer.name is 'sgd' and was 'lars'" in message
    assert "extra is 1 and was 'not set'" in message
    assert "seed is 2 and was 1" in message
    assert "lr" not in message
    begin(tmp_path, seed=1)  # with its own flags it continues


def test_what_may_differ_may(tmp_path):
    start_clock(begin(tmp_path))
    other = {**CONFIG, "mesh": {"data": 2, "model": 2}}
    assert begin(tmp_path, other, may_differ=["mesh"]).index == 0
    with pytest.raises(UserError, match=r"mesh\.data is 2 and was 4, mesh\.model is 2"):
        begin(tmp_path, other, may_differ=["mes"])


def test_a_finished_run_does_not_bind_the_next_config(tmp_path):
    begin(tmp_path).update("success")
    assert begin(tmp_path, {"other": True}).config == {"other": True}


def test_configs_compare_as_they_are_stored(tmp_path):
    odd = {"stages": (1, 1), "limit": math.inf, "rate": np.float32(0.5)}
    begin(tmp_path, odd)
    assert begin(tmp_path, ConfigDict(odd)).resuming


def test_presets_systems_and_benchmarks_share_nothing(tmp_path):
    places = [
        ("mini", "box", "resnet"),
        ("closed", "box", "resnet"),
        ("closed", "rack", "resnet"),
        ("closed", "box", "ssd"),
    ]
    found = []
    for place in places:
        with runs(tmp_path, *place) as at:
            found.append(at.next(CONFIG))
    assert [run.index for run in found] == [0] * 4
    assert len({run.folder for run in found}) == len({run.log_path for run in found}) == 4
    assert found[1].log_path == tmp_path / "results/box/resnet/result_0.txt"


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden", "a b", "x" * 101, "a\n"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot name a folder"):
        runs(tmp_path, system=name)
    with pytest.raises(UserError, match="cannot name a folder"):
        runs(tmp_path, benchmark=name)


def test_two_processes_cannot_work_in_one_folder(tmp_path):
    with runs(tmp_path) as first:
        first.next(CONFIG)
        first.next(CONFIG)  # one process may ask again
        with pytest.raises(UserError, match="Another process is running in .*resnet; wait for it"):
            runs(tmp_path).next(CONFIG)
        assert runs(tmp_path).open(0).seed == first.open(0).seed  # reading needs no lock
    assert begin(tmp_path).index == 0


def test_the_lock_of_a_killed_process_vanishes_with_it(tmp_path):
    script = f"""
import os, signal
from mlperf_jax.results.folders import Runs
Runs({str(tmp_path)!r}, "mini", "box", "resnet").next({CONFIG!r})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert begin(tmp_path).resuming


def test_seeds_of_a_folder_are_distinct(tmp_path):
    def finished(seed):
        run = begin(tmp_path, seed=seed)
        run.update("success")
        return run.seed

    assert [finished(7), finished(7), finished(8)] == [7, 8, 9]
    entropy = [finished(None) for _ in range(3)]
    assert len({7, 8, 9, *entropy}) == 6 and all(0 <= seed < 2**31 for seed in entropy)


def test_entropy_never_repeats_an_earlier_seed(tmp_path, monkeypatch):
    begin(tmp_path, seed=4)
    drawn = iter([4, 4, 6])
    monkeypatch.setattr(folders.secrets, "randbits", lambda _: next(drawn))
    assert runs(tmp_path).choose_seed(None) == 6


def test_an_unknown_schema_is_refused_in_a_sentence(tmp_path):
    run = begin(tmp_path)
    status = run.folder / "status.json"
    status.write_text(json.dumps({**run.status, "schema_version": 99}))
    with pytest.raises(
        UserError, match=r"status.json has schema_version 99 and this version of mlperf_jax reads 1"
    ):
        begin(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00", '{"state": "running"}', "[" * 100_000])
def test_a_damaged_json_is_named(tmp_path, text):
    run = begin(tmp_path)
    (run.folder / "status.json").write_text(text)
    with pytest.raises(UserError, match="status.json"):
        begin(tmp_path)


def test_a_status_without_a_seed_is_refused(tmp_path):
    run = begin(tmp_path)
    write_json(run.folder / "status.json", {"state": "dancing", "seed": 1})
    with pytest.raises(UserError, match="holds no state and seed"):
        begin(tmp_path)


def test_a_state_that_is_none_is_the_callers_mistake(tmp_path):
    with pytest.raises(ValueError, match="dancing"):
        begin(tmp_path).update("dancing")


def test_a_results_dir_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/mini/runs/box/resnet: Not a directory"):
        begin(tmp_path / "file")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(UserError, match="a.json: No space left on device"):
        write_json(path, {"n": 2})
    assert read_json(path)["n"] == 1 and list(tmp_path.iterdir()) == [path]


@settings(deadline=None, max_examples=50)  # it writes files
@given(
    value=st.dictionaries(
        st.text(max_size=5),
        st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.floats(), max_size=2),
        max_size=4,
    )
)
def test_what_is_written_is_read(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, {"value": value})
    assert read_json(path)["value"] == folders.plain(value)
