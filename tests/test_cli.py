"""What the commands say where something runs out, and what ends a process that a library aborts."""

import subprocess
import sys

import pytest

from mlperf_jax import __version__, cli
from mlperf_jax.__main__ import COMMANDS
from mlperf_jax.__main__ import main as list_commands
from tests import door


class JaxRuntimeError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 73.0 GiB"), "Memory ran out (Unable to allocate 73.0 GiB); "),
        (MemoryError(), "Memory ran out (MemoryError); "),
        (
            JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\n at x"),
            "ran out (RESOURCE_EXHAUSTED: Out of memory);",
        ),
        (RuntimeError("can't start new thread"), "Memory ran out (can't start new thread); "),
        (ImportError("libx.so: failed to map segment from shared object"), "Memory ran out (libx.so: "),
        (OSError(12, "Cannot allocate memory"), "Memory ran out ("),
        (
            OSError(28, "No space left on device", "here/x"),
            "here/x cannot be written (No space left on device); ",
        ),
        (OSError(27, "File too large"), "A file cannot be written (File too large); free space"),
    ],
)
def test_what_ran_out_is_a_sentence(capsys, error, said):
    def command(arguments):
        raise error

    assert cli.run(command, []) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mlperf_jax: ") and said in lines[0]


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a fault"):
        cli.run(lambda arguments: (_ for _ in ()).throw(RuntimeError("a fault")), [])


def test_a_process_that_a_library_aborts_ends_in_a_sentence():
    script = "import os; from mlperf_jax import cli; cli.run(lambda a: os.abort(), [])"
    done = subprocess.run(
        [sys.executable, "-c", script], env=door.environment(), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mlperf_jax: a library ended this process") and "ulimit -v" in done.stderr
    # Afterwards all is as it was.
    script = "import os; from mlperf_jax import cli; cli.run(lambda a: 0, []); os.abort()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=door.environment(), capture_output=True, text=True
    )
    assert done.returncode == -6 and done.stderr == ""


def test_the_package_lists_its_commands(capsys):
    for arguments in ([], ["-h"], ["--help"]):
        assert list_commands(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"python -m mlperf_jax.{name} " in out for name in COMMANDS)
    assert list_commands(["--version"]) == 0
    assert capsys.readouterr().out == f"mlperf_jax {__version__}\n"
    assert list_commands(["main", "--list"]) == 2
    assert "python -m mlperf_jax.main --list" in capsys.readouterr().err
