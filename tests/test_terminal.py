"""What commands print: control characters shown, any encoding, readers that go away, names that are too long."""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys

import pytest

from mlperf_jax import terminal
from tests import door

COMMANDS = (
    "main", "prepare", "plan", "compare", "report", "check", "package", "import_weights", "serve", "gtp", "predict_moves",
)  # fmt: skip


def run(name, *arguments):
    return importlib.import_module(f"mlperf_jax.{name}").main(list(arguments))


@contextlib.contextmanager
def gone():
    """A stream whose reader has gone."""
    ours, theirs = os.pipe()
    os.close(ours)
    stream = os.fdopen(theirs, "w", buffering=1)
    yield stream
    stream.close()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_goes_away_is_no_error(name, capsys):
    with gone() as stream, contextlib.redirect_stdout(stream):
        assert run(name, "--help") in (0, 1, 128 + signal.SIGPIPE)
    assert capsys.readouterr().err == ""


def test_so_it_is_in_a_shell():
    command = f"{sys.executable} -P -m mlperf_jax.main --help | head -n 1"
    ended = subprocess.run(
        ["bash", "-c", command], env=door.environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0 and ended.stderr == "" and ended.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_that_has_ascii_alone(name, capsys):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(stream):
        assert run(name, "--help") == 0
    assert b"Flags:" in stream.buffer.getvalue()


def test_what_ascii_lacks_is_written_out():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(stream):
        assert terminal.command(lambda: print("8 × TPU, \udcff") or 0)() == 0
    assert stream.buffer.getvalue() == b"8 \\xd7 TPU, \\udcff\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä × 日本\n\tx", "plain ä × 日本\n\tx"),
        ("\x1b]0;title\x07\x1b[31mred", "\\x1b]0;title\\x07\\x1b[31mred"),
        ("a\x9b2Jb\x7f\x00", "a\\x9b2Jb\\x7f\\x00"),
        ("over\rwritten", "over\\x0dwritten"),
        ("\u202eturned\u2066", "\\u202eturned\\u2066"),
        ("\r step 3\x1b[K", "\r step 3\x1b[K"),
        ("\r\x1b[K", "\r\x1b[K"),
        ("\r step \x1b[2J3\x1b[K", "\r step \\x1b[2J3\x1b[K"),
    ],
)
def test_control_characters_are_shown(text, shown):
    assert terminal.shown(text) == shown


def test_escapes_of_a_log_do_not_reach_the_terminal(tmp_path, capsys):
    folder = tmp_path / "results" / "a\x1b[31msystem" / "resnet"
    folder.mkdir(parents=True)
    lines = [
        ("submission_org", "acme\x1b]0;title\x07", 1), ("submission_benchmark", "resnet", 2), ("run_start", None, 3),
        ("eval_accuracy", "\x1b[2J", 4), ("run_stop", None, 5),
    ]  # fmt: skip
    (folder / "result_0.txt").write_text(
        "".join(
            f':::MLLOG {{"key": "{key}", "value": {json.dumps(value)}, "time_ms": {time}, "metadata": {{}}}}\n'
            for key, value, time in lines
        )
    )
    for name in ("report", "check"):
        run(name, str(tmp_path))
        said = "".join(capsys.readouterr())
        assert "[31msystem" in said and "\x1b" not in said and "\x07" not in said


@pytest.mark.parametrize("length", [300, 5000])
def test_names_longer_than_the_file_system_takes(length, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = "a" * length
    for name, arguments in (
        ("main", ["--workload=resnet50", "--platform=cpu", f"--results_dir={long}", "--synthetic_data"]),
        ("main", ["--workload=resnet50", "--platform=cpu", f"--data_dir={long}"]),
        ("main", ["--workload=resnet50", "--platform=cpu", f"--system={long}", "--synthetic_data"]),
        ("main", ["--workload=resnet50", "--platform=cpu", f"--org={long}"]),
        ("main", [f"--workload={long}", "--platform=cpu"]),
        ("main", ["--workload=resnet50", "--platform=cpu", f"--sharding={long}.toml"]),
        ("main", ["--workload=resnet50", "--platform=cpu", "--scenario=Offline", f"--weights={long}"]),
        ("main", ["--workload=resnet50", "--platform=cpu", "--scenario=Offline", f"--checkpoint={long}"]),
        ("prepare", ["--workload=resnet50", f"--data_dir={long}", "--preset=closed"]),
        ("prepare", ["--workload=resnet50", f"--data_dir={long}", "--preset=closed", "--fake=8"]),
        ("report", [long]),
        ("report", [".", f"--html={long}"]),
        ("check", [long]),
        ("package", [f"--training={long}", "--org=acme", "--division=closed"]),
        ("import_weights", ["--workload=resnet50", f"--from={long}"]),
        ("predict_moves", ["--platform=cpu", f"--sgf_dir={long}"]),
        ("gtp", ["--platform=cpu", f"--results_dir={long}"]),
    ):
        status = run(name, *arguments)
        said = capsys.readouterr().err
        assert status in (1, 2), (name, arguments, said)
        assert "Traceback" not in said and said.count("\n") <= 2, (name, arguments, said)
