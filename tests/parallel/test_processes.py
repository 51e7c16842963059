"""Two processes of four devices, or four of two, through the real door: against one of eight, killed, and stopped."""

import functools
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.parallel import distributed
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout
from mlperf_jax.results import events
from mlperf_jax.training.checkpoints import Checkpoints
from mlperf_jax.training.engine import Engine
from tests import door, toys

ROOT = Path(__file__).parents[2]
CHANGES = {"model__stages": (1,), "model__width": 8}
STEPS, NUM_TRAIN, BATCH, NUM_EVAL = 10, 104, 32, 44
DEADLINE = 240  # seconds for anything, on a machine that is busy with other tests


class Pair:
    """Two processes of one run, or more, of which the second may get flags of its own."""

    def __init__(self, folder, *overrides, step_seconds=0.0, sharding="fsdp", second=(), count=2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder = folder
        command = [
            *(
                sys.executable,
                "-m",
                "mlperf_jax.main",
                "--workload=tests.toys:RecordingResNet",
                "--platform=cpu",
            ),
            *(
                f"--cpu_devices={8 // count}",
                f"--sharding={sharding}",
                "--seed=1",
                "--system=box",
                f"--results_dir={folder}",
            ),
            *(f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", "--config.precision=float64"),
            *("--config.model.stages=(1,)", "--config.model.width=8", *overrides),
        ]
        lightly = door.LIGHTLY if count > 2 else {}
        environment = door.environment(
            TOY_RECORD=f"{folder}/record", TOY_STEP_SECONDS=str(step_seconds), **lightly
        )
        self.processes = [
            self._start([*command, f"--process_id={i}", *more], environment, i)
            for i, more in enumerate(((), second, (), ())[:count])
        ]

    def _start(self, command, environment, i):
        with open(self.folder / f"stdout.{i}", "w") as out, open(self.folder / f"stderr.{i}", "w") as err:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self):
        """The exit statuses."""
        return [process.wait(DEADLINE) for process in self.processes]

    def output(self, i):
        return "".join((self.folder / f"{name}.{i}").read_text() for name in ("stdout", "stderr"))

    def wait_for(self, happens):
        end = time.monotonic() + DEADLINE
        while not happens():
            assert time.monotonic() < end and all(p.poll() is None for p in self.processes), self.output(0)
            time.sleep(0.02)


def run_folder(folder):
    return folder / "mini" / "runs" / "box" / "resnet" / "run_0"


def log_events(folder):
    return events.read_events(folder / "mini" / "results" / "box" / "resnet" / "result_0.txt")


def records(folder):
    """Per process: {step: rows it trained on} (the last time it did) and its evaluations."""
    found = []
    for i in range(2):
        lines = [json.loads(line) for line in (folder / f"record.{i}").read_text().splitlines()]
        rows = {line["step"]: line["rows"] for line in lines if "step" in line}
        found.append((rows, [line["eval"] for line in lines if "eval" in line]))
    return found


@functools.cache
def alone(micro_batches):
    """One process of eight devices: (engine, final state, evaluation)."""
    changes = CHANGES | {"gradient_accumulation_steps": micro_batches}
    workload = toys.make(toys.SmallResNet, "float64", **changes)
    with jax.enable_x64(True):
        engine = Engine(workload, make_layout(STRATEGIES["fsdp"]))
        engine.compile()
        state = engine.init(1)
        batches = workload.dataset.train_batches(seed=1, batch_size=BATCH, start_step=0, rows=engine.rows)
        for _ in range(STEPS):
            state, _ = engine.train(state, engine.place(next(batches), engine.batch), steps=1)
        batches.close()
        return engine, state, workload.evaluate(engine, state)


def assert_same_state(folder, engine, expected):
    """The last checkpoint that two processes wrote, read by one into its own layout."""
    with jax.enable_x64(True):
        checkpoints = Checkpoints(run_folder(folder) / "checkpoints")
        assert checkpoints.position().step == STEPS
        actual = checkpoints.restore(engine.state)
        checkpoints.close()
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(actual), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        error = np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)
        assert error <= 1e-9, f"{jax.tree_util.keystr(path)} differs by {error:.1e}"


def assert_each_example_once(folder):
    """What both processes read, put together, is the global stream, each example once an epoch."""
    (first, _), (second, _) = records(folder)
    assert sorted(first) == sorted(second) == list(range(STEPS))
    assert all(len(rows[step]) == BATCH // 2 for rows in (first, second) for step in rows)
    stream = [example for step in range(STEPS) for example in first[step] + second[step]]
    for begin in range(0, STEPS * BATCH, NUM_TRAIN):
        epoch = stream[begin : begin + NUM_TRAIN]
        assert len(set(epoch)) == len(epoch)
        assert len(epoch) < NUM_TRAIN or set(epoch) == set(range(NUM_TRAIN))


HSDP = """
shard_params = "fsdp"
[mesh]
data = 2
fsdp = 4
[rules]
batch = [["data", "fsdp"]]
"""


@pytest.mark.parametrize(("micro_batches", "sharding"), [(1, "fsdp"), (2, "hsdp.toml")])
def test_two_processes_agree_with_one(tmp_path, micro_batches, sharding):
    """Of micro-batches each device cuts its own rows, so batch norm sees the same in both."""
    engine, expected, evaluation = alone(micro_batches)
    if sharding.endswith(".toml"):
        sharding = tmp_path / sharding
        sharding.write_text(HSDP)
    parts = f"--config.gradient_accumulation_steps={micro_batches}"
    overrides = "--config.eval_every_epochs=3", "--config.target=0.0", parts
    with Pair(tmp_path, *overrides, sharding=sharding) as pair:
        assert pair.wait() == [0, 0], pair.output(0) + pair.output(1)
    assert_same_state(tmp_path, engine, expected)
    assert_each_example_once(tmp_path)
    # Totals are global in both processes, and padding does not count.
    for _, (seen,) in records(tmp_path):
        assert seen["count"] == NUM_EVAL
        assert seen["accuracy"] == evaluation["accuracy"]
        np.testing.assert_allclose(seen["loss"], evaluation["loss"], rtol=1e-6)  # its total is float32
    # Process 0 alone logs and speaks.
    keys = [event.key for event in log_events(tmp_path)]
    assert keys.count("run_start") == keys.count("run_stop") == keys.count("eval_accuracy") == 1
    assert "training" in pair.output(0) and "result_0.txt" in pair.output(0)
    # Gloo's threads print on their own, and into each other's lines.
    gloo = ("[Gloo]", "connected peer ranks", "peer ranks.")
    spoken = [line for line in pair.output(1).splitlines() if line and not any(word in line for word in gloo)]
    assert spoken == []


def test_killed_and_stopped_processes_end_together_and_the_same_command_resumes(tmp_path):
    engine, expected, evaluation = alone(1)
    with Pair(tmp_path, step_seconds=0.8) as pair:
        pair.wait_for((run_folder(tmp_path) / "checkpoints" / "4").exists)
        pair.processes[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        status = pair.processes[0].wait(DEADLINE)
        assert time.monotonic() - killed < 60
        assert status == 2, pair.output(0)
    last = pair.output(0).splitlines()[-1]
    assert re.match(
        r"mlperf_jax: the work with the other processes failed in process 0 \(.*same command", last
    )
    assert "Traceback" not in pair.output(0)

    # Process 0, without which jax aborts the others.
    before = (tmp_path / "record.1").stat().st_size
    with Pair(tmp_path, step_seconds=0.8) as pair:
        pair.wait_for(lambda: (tmp_path / "record.1").stat().st_size > before)
        pair.processes[0].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        status = pair.processes[1].wait(DEADLINE)
        assert time.monotonic() - killed < 60
        assert status == 2, pair.output(1)
    assert re.search(r"^mlperf_jax: .*process.*the same command in all of them", pair.output(1), re.M)
    assert "Traceback" not in pair.output(1)

    # SIGTERM to one of them; the two steps of a dispatch must not carry them past their agreement.
    before = (tmp_path / "record.1").stat().st_size
    with Pair(tmp_path, "--config.steps_per_dispatch=2", step_seconds=1.5) as pair:
        pair.wait_for(lambda: (tmp_path / "record.1").stat().st_size > before)
        pair.processes[1].send_signal(signal.SIGTERM)
        assert pair.wait() == [143, 143], pair.output(0) + pair.output(1)
    stops = [re.findall(r"Stopped at step (\d+); the same command", pair.output(i)) for i in range(2)]
    assert stops[0] == stops[1] and 4 <= int(stops[0][0]) < STEPS

    with Pair(tmp_path) as pair:
        assert pair.wait() == [1, 1], pair.output(0) + pair.output(1)  # the toy's target is out of reach
    assert re.search(r", (\d+) of \1 programs kept from before; training", pair.output(0))
    assert_same_state(tmp_path, engine, expected)
    assert_each_example_once(tmp_path)
    log = log_events(tmp_path)
    keys = [event.key for event in log]
    assert keys.count("run_start") == keys.count("run_stop") == 1
    assert keys.count("resumed") == 2  # what came after the last checkpoint is lost, in the log too
    qualities = [event.value for event in log if event.key == "eval_accuracy"]
    assert len(qualities) == 3 and qualities[-1] == evaluation["accuracy"]


def test_of_four_processes_any_may_be_killed(tmp_path):
    """While they compile, and process 0 while they train: the others say who is gone, and all resumes."""
    engine, expected, evaluation = alone(1)
    moments = {
        2: lambda four: "compiling" in four.output(0),
        0: lambda _: (run_folder(tmp_path) / "checkpoints" / "4").exists(),
    }
    for victim, moment in moments.items():
        with Pair(tmp_path, step_seconds=0.2, count=4) as four:
            four.wait_for(functools.partial(moment, four))
            four.processes[victim].send_signal(signal.SIGKILL)
            killed = time.monotonic()
            others = [i for i in range(4) if i != victim]
            assert [four.processes[i].wait(DEADLINE) for i in others] == [2, 2, 2], four.output(others[0])
            assert time.monotonic() - killed < 30
        for i in others:
            said = re.findall(
                r"^mlperf_jax: the work with the other processes failed.*", four.output(i), re.M
            )
            assert len(said) == 1 and f"in process {i} (process {victim} ended or was killed)" in said[0]
            assert "the same command in all of them" in said[0] and "Traceback" not in four.output(i)
    with Pair(tmp_path, count=4) as four:
        assert four.wait() == [1] * 4, four.output(0)  # the toy's target is out of reach
    assert_same_state(tmp_path, engine, expected)
    assert [e.value for e in log_events(tmp_path) if e.key == "eval_accuracy"][-1] == evaluation["accuracy"]


def test_a_partner_that_does_not_come_is_named_in_time(tmp_path):
    script = (
        "import sys; from mlperf_jax.parallel import distributed; distributed.JOIN_SECONDS = 2; "
        "from mlperf_jax.main import main; sys.exit(main(sys.argv[1:]))"
    )
    flags = ["--workload=resnet50", "--synthetic_data", "--coordinator=127.0.0.1:{}", "--num_processes=3"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        flags[2] = flags[2].format(probe.getsockname()[1])
    ended = [
        subprocess.Popen(
            [sys.executable, "-c", script, *flags, f"--process_id={i}"],
            cwd=tmp_path,
            env=door.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (0, 2)
    ]
    for process in ended:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2 and said.count("\n") == 1, said
        assert said.startswith("mlperf_jax: Process 1 did not come to 127.0.0.1:") and "within 2 s" in said
    assert not list(tmp_path.iterdir())


def test_a_partner_that_dies_during_a_save_is_told_as_such(monkeypatch, tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for error, gone, said in (
        (
            ValueError("UNAVAILABLE: barrier failed"),
            "",
            r"failed in process 0 \(UNAVAILABLE: barrier failed\)",
        ),
        (
            OSError(5, "Input/output error"),
            "process 1 ended or was killed",
            r"\(process 1 ended or was killed\)",
        ),
        (OSError(28, "No space left on device"), "", "could not be written .*free space"),
    ):
        monkeypatch.setattr(distributed, "_gone", lambda wait=0.0, gone=gone: gone)
        with pytest.raises(UserError, match=said), checkpoints._writing():
            raise error
    monkeypatch.undo()
    checkpoints.close()


def test_one_process_alone_starts_nothing_and_half_an_address_is_refused():
    distributed.start("cpu", coordinator=None, num_processes=0, process_id=-1)
    assert jax.process_count() == 1
    distributed.leave(ValueError("nobody else is there to be left"))
    with pytest.raises(UserError, match="--coordinator, --num_processes and --process_id go together"):
        distributed.start("cpu", coordinator="127.0.0.1:1", num_processes=2, process_id=-1)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (
            "--config.optimizer.base_lr=0.5",
            "--config.optimizer.base_lr is 0.1 in process 0 and 0.5 in process 1",
        ),
        ("--config.batch_size=16", "--config.batch_size is 32 in process 0 and 16 in process 1"),
    ],
)
def test_processes_with_other_settings_do_not_train_together(tmp_path, flag, said):
    with Pair(tmp_path, second=(flag,)) as pair:
        assert pair.wait() == [2, 2]
        for i in range(2):
            last = pair.output(i).strip().splitlines()[-1]
            assert last == f"mlperf_jax: The processes of one run differ: {said}; start all of them alike."
    assert not (tmp_path / "mini" / "runs").exists()


def test_what_processes_agree_on(monkeypatch):
    facts = {"--seed": 1, "--config.batch_size": 32, "the version of jax": "0.10.2", "the data": "patterns"}

    def agree_with(other):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        told = {name: json.dumps(value) for name, value in other.items()}
        monkeypatch.setattr(distributed, "_gather", lambda ours: [ours, json.dumps(told).encode()])
        distributed.agree(facts)

    agree_with(facts)
    for name in facts:
        with pytest.raises(UserError, match=f"differ: {name} is .* in process 0 and .* in process 1"):
            agree_with(facts | {name: "other"})
        with pytest.raises(UserError, match=f"differ: {name} is .* in process 0 and not there in process 1"):
            agree_with({other: value for other, value in facts.items() if other != name})


def test_whether_processes_see_the_same_folder(tmp_path, monkeypatch):
    """Two processes in turn, of which the second sees what the first wrote, or is elsewhere."""

    def second_in(folder, others):
        told = []
        monkeypatch.setattr(distributed, "_gather", lambda ours: told.append(ours) or [ours, *others])
        monkeypatch.setattr(jax, "process_index", lambda: 0)
        agreed = distributed.all_see(tmp_path / "first")
        mark = told[0].decode()
        (tmp_path / "first" / mark).touch()
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        monkeypatch.setattr(distributed, "_gather", lambda ours: told.append(ours) or [mark.encode(), ours])
        distributed.all_see(folder)
        (tmp_path / "first" / mark).unlink()
        return agreed, told[-1]

    assert second_in(tmp_path / "first", [b"1"]) == (True, b"1")
    assert second_in(tmp_path / "other", [b"0"]) == (False, b"0")
    assert second_in(None, [b"0"]) == (False, b"0")
    assert list((tmp_path / "first").iterdir()) == [] and not (tmp_path / "other").exists()
