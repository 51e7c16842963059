"""The progress line on a terminal and elsewhere, MFU, and TensorBoard's events."""

import io
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mlperf_jax.goals import Goal
from mlperf_jax.rounds import published_curves
from mlperf_jax.training import progress
from mlperf_jax.training.progress import Progress, model_flops_utilization


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """time's stand-in: it stands still unless told."""

    def __init__(self):
        self.now = 1000.0

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def make(stream, **kwargs):
    """100 steps of 4 epochs, batch 8."""
    settings = {
        "total_steps": 100,
        "batch_size": 8,
        "num_train": 200,
        "goals": [Goal("quality", 0.9, metric="top-1")],
    }
    return Progress(**settings, stream=stream, **kwargs)


def test_mfu_by_hand():
    # 3 * 4.1e9 multiply-adds of a ResNet-50 at 2,500 images/s on 8 chips of 10 TFLOP/s.
    assert model_flops_utilization(2500, 24.6e9, 10e12, 8) == pytest.approx(61.5 / 80)
    assert model_flops_utilization(2500, None, 10e12, 8) is None
    assert model_flops_utilization(2500, 24.6e9, None, 8) is None


def test_one_line_says_everything(clock):
    stream = io.StringIO()
    line = make(stream, flops_per_sample=1e9, peak_flops=1e12, num_devices=2, started=940.0, unit="images")
    clock.now += 10
    line.evaluated(25, {"quality": 0.8125})
    clock.now += 2
    line.step(75, 1.23456)
    assert stream.getvalue().splitlines() == [
        "step 25/100 | epoch 1.00 | eval top-1 0.8125 of 0.9000 | 1 min 10 s so far | at most 30.0 s left",
        "step 75/100 | epoch 3.00 | loss 1.2346 | 200.0 images/s | MFU 10.0% | top-1 0.8125 of 0.9000 | 1 min"
        + " 12 s so far | at most 4.0 s left",
    ]


def test_published_runs_stand_beside_an_evaluation(clock):
    stream = io.StringIO()
    line = make(stream)
    line.evaluated(25, {"quality": 3.95}, published_curves.beside("llama31_8b", 16, 4e-4, 36_864))
    assert " | eval top-1 3.9500 of 0.9000 | published runs: 3.910 to 4.000 | " in stream.getvalue()
    line.evaluated(50, {"quality": 3.29}, published_curves.beside("llama31_8b", 16, 4e-4, 300_000))
    assert " | published runs: 140 of 140 had reached the target | " in stream.getvalue()


def test_throughput_leaves_evaluations_out_and_is_of_the_last_steps(clock):
    stream = io.StringIO()
    line = make(stream, interval=0)
    for step in range(1, 61):  # the first ten are slow, and forgotten after fifty more
        clock.now += 100 if step <= 10 else 1
        line.step(step, 1.0)
    assert "samples/s" not in stream.getvalue().splitlines()[0]  # one step has no speed yet
    assert " 8.0 samples/s" in stream.getvalue().splitlines()[-1]
    clock.now += 1000
    line.evaluated(60, {"quality": 0.5})
    clock.now += 2
    line.step(61, 1.0)
    assert " 4.0 samples/s" in stream.getvalue().splitlines()[-1]


def test_elsewhere_than_on_a_terminal_lines_come_at_intervals_and_evals_always(clock):
    stream = io.StringIO()
    line = make(stream, interval=10)
    for step in range(1, 31):
        clock.now += 1
        line.step(step, 1.0)
    assert [text.split()[1] for text in stream.getvalue().splitlines()] == ["1/100", "11/100", "21/100"]
    line.evaluated(30, {"quality": 0.5})
    assert "eval" in stream.getvalue().splitlines()[-1]
    assert "\r" not in stream.getvalue()


def test_on_a_terminal_the_line_is_rewritten_and_never_wraps(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    with make(stream) as line:
        for step in (1, 2, 3):
            clock.now += 0.15
            line.step(step, 1.0)
        assert stream.getvalue().count("\r") == 2 and "\n" not in stream.getvalue()
        line.evaluated(3, {"quality": 0.5})
        assert stream.getvalue().count("\n") == 1
        clock.now += 1
        line.step(4, 1.0)
    assert stream.getvalue().count("\n") == 2  # close ends the open line
    for text in stream.getvalue().replace("\n", "").split("\r")[1:]:
        assert len(text.removesuffix("\x1b[K")) < 40


def test_a_resumed_run_estimates_from_its_own_speed(clock):
    stream = io.StringIO()
    line = make(stream, first_step=50, started=0.0)
    line.evaluated(50, {"quality": 0.5})
    assert "left" not in stream.getvalue()  # nothing is known yet
    clock.now += 20
    line.step(60, 1.0)
    assert "17 min 00 s so far | at most 1 min 20 s left" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (3599.4, "59 min 59 s"),
     (3599.6, "1 h 00 min"), (90000, "25 h 00 min")],
)  # fmt: skip
def test_durations_for_people(seconds, text):
    assert progress._duration(seconds) == text


def test_silence_where_nobody_looks(capfd):
    with make(None) as line:
        line.step(1, math.nan)
        line.evaluated(1, {"quality": 0.5})
    assert capfd.readouterr() == ("", "")


def events_of(folder):
    """TensorBoard's records, unpacked by the format's description: length, crc, data, crc."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


@pytest.mark.parametrize("fails", ["write_event", "flush"])
def test_where_the_disk_is_full_the_curves_end_and_the_run_goes_on(tmp_path, clock, monkeypatch, fails):
    events, summary, writer = progress._tensorboard()

    class Full(writer):
        pass

    def full(*_):
        raise OSError(28, "No space left on device")

    stream = io.StringIO()
    with make(stream, tensorboard_dir=tmp_path) as line:
        line.step(1, 2.0)
        setattr(Full, fails, full)
        line._curves._writer.__class__ = Full
        for step in range(2, 40):  # more than any queue would hold
            clock.now += 20
            line.step(step, 2.0)
        line.evaluated(40, {"quality": 0.5})
    assert stream.getvalue().count("TensorBoard's curves end here (No space left on device)") == 1
    assert "step 39/100" in stream.getvalue()


def test_tensorboard_gets_the_curves(tmp_path, clock):
    with make(None, tensorboard_dir=tmp_path, flops_per_sample=1e9, peak_flops=1e12) as line:
        for step, loss in ((1, 2.5), (2, 9.0), (3, math.nan)):
            line.step(step, loss)
            clock.now += 0.5
        line.evaluated(3, {"quality": 0.75, "loss": 1.5})
    found = {(v.tag, e.step): v.simple_value for e in events_of(tmp_path) for v in e.summary.value}
    # Step 2 came within a second of step 1, which had no speed yet.
    assert found.keys() == {
        ("train/loss", 1),
        *((f"train/{name}", 3) for name in ("loss", "throughput", "mfu")),
        ("eval/quality", 3),
        ("eval/loss", 3),
    }
    assert found["train/loss", 1] == 2.5 and math.isnan(found["train/loss", 3])
    assert found["train/throughput", 3] == 16 and found["train/mfu", 3] == pytest.approx(0.016)
    assert found["eval/quality", 3] == 0.75 and found["eval/loss", 3] == 1.5


def test_a_resumed_run_purges_what_will_happen_again(tmp_path):
    from tensorboardX.proto.event_pb2 import SessionLog

    for first_step in (0, 5):
        with make(None, tensorboard_dir=tmp_path, first_step=first_step) as line:
            line.step(first_step + 1, 1.0)
    starts = [e.step for e in events_of(tmp_path) if e.session_log.status == SessionLog.START]
    assert sorted(starts) == [1, 6]


def test_curves_do_not_import_pytorch(tmp_path):
    """tensorboardX would, which takes seconds; whoever wants it afterwards gets it."""
    code = """
import sys
from mlperf_jax.training.progress import Progress
numbers = dict(total_steps=1, batch_size=1, num_train=1, goals=())
with Progress(**numbers, stream=None, tensorboard_dir=sys.argv[1]) as line:
    line.step(1, 1.0)
assert "tensorboardX" in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    assert any(tmp_path.iterdir())


def test_a_run_that_waits_for_input_says_so(clock):
    """By the steps that are remembered, and not at all where it is less than a tenth."""
    stream = io.StringIO()
    line = make(stream)
    shares = [0.0, 0.05, 0.35, 0.0]  # of ten seconds each, told before the steps that they hold up
    line.step(0, 1.0)
    for number, share in enumerate(shares, 1):
        line.waited(10 * share)
        clock.now += 10
        line.step(10 * number, 1.0)
    said = ["waiting" in text for text in stream.getvalue().splitlines()]
    assert said == [False, False, False, True, True]  # the last steps of all that are remembered still waited
    assert "waiting for input 13% of the time" in stream.getvalue().splitlines()[3]
    line.evaluated(40, {"quality": 0.5})  # what was before is forgotten
    clock.now += 10
    line.step(50, 1.0)
    assert "waiting" not in stream.getvalue().splitlines()[-1]
