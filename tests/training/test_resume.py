"""A run that is killed, told to stop or out of disk goes on, and ends where it would have ended."""

import dataclasses
import itertools
import json
import signal
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mlperf_jax.results.events import Event, read_events
from mlperf_jax.results.summary import summarize
from tests import door

# Ten blocks of 80 steps; no accuracy reaches 2, so every run goes to its end.
RUN = (
    *door.TINY,
    "--seed=5",
    "--results_dir=results",
    "--config.target=2",
    "--config.eval_offset_epochs=4",
    "--config.eval_every_epochs=4",
    "--config.max_epochs=40",
)
STEPS = 800


@dataclasses.dataclass
class Ended:
    """How one command ended, and what it left."""

    status: int
    stderr: str
    log: bytes
    checkpoints: set[int]


def log_text(cwd: Path) -> bytes:
    found = door.logs(cwd / "results")
    return found[0].read_bytes() if found else b""


def saved(cwd: Path) -> set[int]:
    folder = door.run_folder(cwd / "results") / "checkpoints"
    return {int(p.name) for p in folder.glob("*") if p.name.isdigit()} if folder.exists() else set()


def stop(cwd: Path, which: signal.Signals, condition) -> Ended:
    process = door.start(cwd, *RUN)
    door.wait_for(process, condition)
    process.send_signal(which)
    _, stderr = process.communicate(timeout=300)
    return Ended(process.returncode, stderr, log_text(cwd), saved(cwd))


def final_state(cwd: Path) -> dict[str, np.ndarray]:
    with ocp.CheckpointManager(door.run_folder(cwd / "results") / "checkpoints") as manager:
        restored = manager.restore(
            manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )
    leaves = jax.tree_util.tree_leaves_with_path(restored["state"])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def qualities(events: list[Event]) -> list[tuple[float, float]]:
    return [(e.metadata["epoch_num"], e.value) for e in events if e.key == "eval_accuracy"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbs."""
    cwd = tmp_path_factory.mktemp("whole")
    assert door.run(cwd, *RUN).returncode == 1  # the target was not reached
    return cwd


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """The same command four times: killed before a checkpoint, after one, told to stop, left alone."""
    cwd = tmp_path_factory.mktemp("pieces")
    before = stop(cwd, signal.SIGKILL, lambda: b'"run_start"' in log_text(cwd))
    after = stop(
        cwd, signal.SIGKILL, lambda: bool(saved(cwd)) and log_text(cwd).count(b'"eval_accuracy"') >= 2
    )
    resumed = log_text(cwd).count(b'"resumed"')

    def in_a_block() -> bool:
        parts = log_text(cwd).split(b'"resumed"')
        return len(parts) > resumed + 1 and b'"block_start"' in parts[-1]

    told = stop(cwd, signal.SIGTERM, in_a_block)
    last = door.run(cwd, *RUN)
    return cwd, before, after, told, Ended(last.returncode, last.stderr, log_text(cwd), saved(cwd))


def test_the_fixture_stopped_where_it_meant_to(pieces):
    _, before, after, told, last = pieces
    assert (before.status, after.status, told.status, last.status) == (-9, -9, 143, 1)
    assert not before.checkpoints and after.checkpoints and max(after.checkpoints) < STEPS


def test_kill_and_resume_give_exactly_the_metrics_of_a_whole_run(whole, pieces):
    cwd, *_ = pieces
    expected = door.events_of(whole / "results")
    found = door.events_of(cwd / "results")
    assert len(qualities(expected)) == 10
    assert qualities(found) == qualities(expected)
    for key in ("init_start", "init_stop", "run_start", "run_stop", "seed", "global_batch_size"):
        assert len(door.values(found, key)) == 1, key
    for key in ("block_start", "block_stop", "eval_start", "eval_stop"):
        assert [
            e.metadata.get("epoch_num", e.metadata.get("first_epoch_num")) for e in found if e.key == key
        ] == [
            e.metadata.get("epoch_num", e.metadata.get("first_epoch_num")) for e in expected if e.key == key
        ], key
    times = [event.time_ms for event in found]
    assert times == sorted(times)


def test_kill_and_resume_give_bit_identical_parameters(whole, pieces):
    cwd, *_ = pieces
    expected, found = final_state(whole), final_state(cwd)
    assert expected.keys() == found.keys() and expected["['step']"] == STEPS
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    moved = [name for name in expected if "params" in name and np.any(expected[name] != 0)]
    assert moved


def test_every_stop_is_marked_in_the_log_and_what_was_cut_is_kept(pieces):
    cwd, before, after, told, last = pieces
    found = door.events_of(cwd / "results")
    marks = [event for event in found if event.key == "resumed"]
    assert [mark.metadata["step"] for mark in marks] == [0, max(after.checkpoints), max(told.checkpoints)]
    folder = door.run_folder(cwd / "results")
    lost = sorted(folder.glob("lost_*.txt"))
    assert lost  # the kill came after its checkpoint
    for mark in marks:
        if mark.metadata["lost_file"]:
            assert (folder / mark.metadata["lost_file"]).stat().st_size == mark.metadata["lost_bytes"]
    # Every line that any of the commands wrote is in the log or in one of the lost files, once.
    kept = set(last.log.splitlines()) | set(
        itertools.chain.from_iterable(f.read_bytes().splitlines() for f in lost)
    )
    for ended in (before, after, told):
        whole_lines = ended.log[: ended.log.rfind(b"\n") + 1].splitlines()
        assert set(whole_lines) <= kept


def test_sigterm_saves_and_says_so(pieces):
    cwd, _, after, told, last = pieces
    stopped = max(told.checkpoints)
    assert stopped > max(
        after.checkpoints
    )  # after one of the 80 steps that were under way, if not all of them
    assert f"mlperf_jax: Stopped at step {stopped}; the same command continues from there." in told.stderr
    assert "Traceback" not in told.stderr
    marks = [e.metadata["step"] for e in read_events(door.logs(cwd / "results")[0]) if e.key == "resumed"]
    assert marks[-1] == stopped
    status = json.loads((door.run_folder(cwd / "results") / "status.json").read_text())
    assert (status["state"], status["step"], status["starts"]) == ("aborted", STEPS, 4)


def test_a_resumed_run_has_no_score_and_its_clock_holds_the_downtime(whole, pieces):
    cwd, *_, last = pieces
    summary = summarize(door.logs(cwd / "results")[0])
    assert summary.resumed and not summarize(door.logs(whole / "results")[0]).resumed
    events = door.events_of(cwd / "results")
    begin, end = ([e.time_ms for e in events if e.key == key][0] for key in ("run_start", "run_stop"))
    assert summary.time_to_train == pytest.approx((end - begin) / 1e3, rel=1e-12)  # counted in minutes


def test_another_configuration_does_not_continue_an_unfinished_run(tmp_path):
    def begun(*more):
        return (*RUN, *more)

    process = door.start(tmp_path, *begun())
    door.wait_for(process, lambda: b'"run_start"' in log_text(tmp_path))
    process.kill()
    process.communicate()
    ended = door.run(tmp_path, *begun("--config.optimizer.base_lr=0.1", "--config.label_smoothing=0.0"))
    assert ended.returncode == 2
    assert "run_0 holds an unfinished run of another configuration" in ended.stderr
    assert (
        "optimizer.base_lr is 0.1 and was 0.05" in ended.stderr
        and "label_smoothing is 0.0 and was 0.1" in ended.stderr
    )
    assert "batch_size" not in ended.stderr and "Traceback" not in ended.stderr


def test_a_full_disk_stops_the_run_in_a_sentence_and_it_continues_with_room(tmp_path):
    """Files may not outgrow 64 KiB: logs fit, a checkpoint does not."""
    arguments = (*RUN, "--config.model.width=64", "--config.max_epochs=8", "--config.data.num_train=256")
    full = door.run(tmp_path, *arguments, largest_file=64 * 1024)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    (sentence,) = [line for line in full.stderr.splitlines() if "could not be written" in line]
    assert (
        "checkpoints" in sentence
        and "File too large" in sentence
        and "run the same command again" in sentence
    )
    after = door.run(tmp_path, *arguments)
    assert after.returncode == 1 and len(door.logs(tmp_path / "results")) == 1
    assert len(qualities(door.events_of(tmp_path / "results"))) == 2
