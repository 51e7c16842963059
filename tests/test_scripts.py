"""The two commands, as copies with stand-ins for Python: a real installation takes minutes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import door

# Stands in for a base interpreter: tells its version, and "makes an environment" with another stand-in in it.
BASE = """#!/bin/sh
echo "{name} $*" >> "{calls}"
if [ "$1" = -c ]; then exit {fit}; fi
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "{venv_python}" "$3/bin/python"; fi
"""
# Stands in for the environment's interpreter: notes what it was called with, and where.
VENV = """#!/bin/sh
echo "venv $*" >> "{calls}"
case "$*" in
  *"pip install"*) if [ -e "{root}/no_network" ]; then exit 1; fi ;;
  *mlperf_jax.main*) echo "ran in $PWD" ;;
  *"not timing"*) if [ -e "{root}/failing" ]; then exit 1; fi ;;
esac
"""


class Checkout:
    """The scripts in a folder of their own, with notes of every call of a stand-in."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.calls = folder / "check out", folder / "bin", folder / "calls"
        self.root.mkdir()
        self.bin.mkdir()
        for name in (
            "run_and_time.sh",
            "run_tests.sh",
            ".ci",
            "setup.cfg",
            "constraints.txt",
            "pyproject.toml",
        ):
            copy = shutil.copytree if (door.ROOT / name).is_dir() else shutil.copy
            copy(door.ROOT / name, self.root / name)
        self.venv_python = folder / "venv_python"
        self.write(self.venv_python, VENV.format(calls=self.calls, root=self.root))

    def write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def python(self, name: str, *, fit: bool = True) -> Path:
        """Puts an interpreter on PATH; `fit` is what it says of its own version."""
        text = BASE.format(name=name, calls=self.calls, fit=int(not fit), venv_python=self.venv_python)
        self.write(self.bin / name, text)
        return self.bin / name

    def run(self, script: str, *arguments: str, cwd: Path | None = None, **environment: str):
        """Runs a script; the notes of earlier calls are thrown away."""
        self.calls.write_text("")
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.root), **environment}
        for name in ("python3.11", "python3.12", "python3.13", "python3"):  # hide the machine's own
            if not (self.bin / name).exists():
                self.write(self.bin / name, "#!/bin/sh\nexit 1\n")
        return subprocess.run(
            [str(self.root / script), *arguments],
            cwd=cwd or self.root,
            env=env,
            capture_output=True,
            text=True,
        )

    def noted(self, what: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if what in line]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_the_first_time_installs_and_the_second_only_runs(checkout):
    checkout.python("python3.11")
    first = checkout.run("run_and_time.sh", "--workload=resnet50", "--platform=cpu")
    assert first.returncode == 0, first.stderr
    upgrade, install = checkout.noted("pip install")
    assert "--upgrade pip" in upgrade
    assert "--constraint" in install and "constraints.txt" in install and "--editable" in install
    second = checkout.run("run_and_time.sh", "--workload=resnet50", "--platform=cpu")
    assert second.returncode == 0 and second.stderr == ""
    assert checkout.calls.read_text().splitlines() == [
        "venv -P -m mlperf_jax.main --prepare --workload=resnet50 --platform=cpu"
    ]


def test_an_installation_that_failed_is_done_again(checkout):
    checkout.python("python3.11")
    (checkout.root / "no_network").write_text("")
    assert checkout.run("run_and_time.sh", "--list").returncode != 0
    assert not checkout.noted("mlperf_jax.main")
    (checkout.root / "no_network").unlink()
    assert checkout.run("run_and_time.sh", "--list").returncode == 0
    assert checkout.noted("--editable") and checkout.noted("mlperf_jax.main")


def test_changed_requirements_install_again(checkout):
    checkout.python("python3.11")
    checkout.run("run_and_time.sh", "--list")
    with open(checkout.root / "constraints.txt", "a") as file:
        file.write("# later\n")
    checkout.run("run_and_time.sh", "--list")
    assert checkout.noted("--editable")
    checkout.run("run_and_time.sh", "--list")
    assert not checkout.noted("pip")


def test_extras_add_up(checkout):
    checkout.python("python3.11")
    checkout.run("run_and_time.sh", "--platform=tpu")
    assert checkout.noted("check out[tpu]")
    checkout.run("run_tests.sh")
    assert checkout.noted("check out[test,tpu]")
    for script, flag in (
        ("run_and_time.sh", "--platform=tpu"),
        ("run_and_time.sh", "--list"),
        ("run_tests.sh", "-x"),
    ):
        checkout.run(script, flag)
        assert not checkout.noted("pip"), script
    checkout.run("run_and_time.sh", "--platform", "gpu")
    assert checkout.noted("check out[cuda,test,tpu]")


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        ({"python3": True}, "python3"),
        ({"python3.11": True, "python3.12": True, "python3": True}, "python3.12"),
        ({"python3.12": False, "python3.13": True}, "python3.13"),
        ({"python3.11": True, "python3": False}, "python3.11"),
    ],
)
def test_the_interpreter_is_one_that_fits(checkout, found, taken):
    for name, fit in found.items():
        checkout.python(name, fit=fit)
    assert checkout.run("run_and_time.sh", "--list").returncode == 0
    assert [line.split()[0] for line in checkout.noted("-m venv")] == [taken]


def test_the_interpreter_that_the_user_names_comes_first(checkout):
    checkout.python("python3.12")
    mine = checkout.python("mine")
    checkout.run("run_and_time.sh", "--list", MLPERF_JAX_PYTHON=str(mine))
    assert [line.split()[0] for line in checkout.noted("-m venv")] == ["mine"]


def test_no_interpreter_that_fits_is_a_sentence(checkout):
    checkout.python("python3.12", fit=False)
    ended = checkout.run("run_and_time.sh", "--list")
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert "needs Python 3.11, 3.12 or 3.13" in ended.stderr and "MLPERF_JAX_PYTHON" in ended.stderr
    assert not (checkout.root / ".venv").exists()


def test_tests_run_in_the_checkout_and_training_where_the_user_is(checkout, tmp_path):
    checkout.python("python3.11")
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    assert f"ran in {elsewhere}" in checkout.run("run_and_time.sh", "--list", cwd=elsewhere).stdout
    checkout.run("run_tests.sh", "tests/models", "-x", cwd=elsewhere)
    assert checkout.noted("-m pytest tests/models -x")


def test_all_tests_are_those_that_share_the_cores_and_then_those_that_measure_time(checkout):
    checkout.python("python3.11")
    reports = checkout.root / "re ports"
    assert checkout.run("run_tests.sh", REPORTS=str(reports)).returncode == 0
    together, alone = checkout.noted("-m pytest")
    assert "-m not timing --numprocesses=logical" in together and "--dist=loadfile" in together
    assert together.endswith(f"--junitxml={reports}/together.xml")
    assert alone == f"venv -m pytest -m timing --junitxml={reports}/alone.xml"
    (checkout.root / "failing").touch()
    assert checkout.run("run_tests.sh").returncode == 1
    assert checkout.noted("-m pytest")[1:] == ["venv -m pytest -m timing"]


def test_shares_of_the_workloads(tmp_path):
    for name, clock, cases in (
        (
            "together",
            45,
            (("models.test_dlrm", 30), ("workloads.test_recommendation", 20), ("test_main", 40)),
        ),
        ("alone", 20, (("test_main", 5), ("models.test_ssd_resnet", 5))),
    ):
        lines = "".join(f'<testcase classname="tests.{file}" time="{s}" />' for file, s in cases)
        (tmp_path / f"{name}.xml").write_text(
            f'<testsuites><testsuite time="{clock}">{lines}</testsuite></testsuites>'
        )
    command = [sys.executable, door.ROOT / ".ci/shares.py", tmp_path / "together.xml", tmp_path / "alone.xml"]
    head, *rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert head == "share of the tests' 65 s:"
    assert [" ".join(row.split()) for row in rows] == [
        "spine 46% 30 s in 1 files, of which 30 s in tests.test_main",
        "dlrm, dlrm_dcnv2 38% 25 s in 2 files, of which 15 s in tests.models.test_dlrm",
        "ssd_resnet34 15% 10 s in 1 files, of which 10 s in tests.models.test_ssd_resnet",
    ]


def test_generic_names_where_the_user_stands_do_not_hide_ours(tmp_path):
    """The real command, with this environment, in a folder with its own models/ and configs/."""
    root = tmp_path / "checkout"
    root.mkdir()
    for path in door.ROOT.iterdir():
        if path.name not in (".venv", "results"):
            (root / path.name).symlink_to(path)
    (root / "run_and_time.sh").unlink()
    shutil.copy(door.ROOT / "run_and_time.sh", root)  # it finds its checkout by its own place
    (root / ".venv/bin").mkdir(parents=True)
    # Stands for the editable installation, which puts the checkout on the path after the interpreter's own.
    script = f'#!/bin/sh\nPYTHONPATH="{door.ROOT}" exec "{sys.executable}" "$@"\n'
    (root / ".venv/bin/python").write_text(script)
    (root / ".venv/bin/python").chmod(0o755)
    stamp = subprocess.run(
        ["bash", "-c", "cat setup.cfg constraints.txt pyproject.toml | cksum"],
        cwd=door.ROOT,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (root / ".venv/installed").write_text(f" {stamp}")
    user = tmp_path / "user"
    for name in ("models", "configs", "input_pipelines", "mlperf_jax"):
        (user / name).mkdir(parents=True)
        (user / name / "__init__.py").write_text("raise RuntimeError('the decoy was imported')")
    env = {**door.environment(), "PYTHONPATH": ""}
    # A poisoned index: an attempt to install would fail.
    env |= {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_FIND_LINKS": "", "PATH": os.environ["PATH"]}
    ended = subprocess.run(
        [str(root / "run_and_time.sh"), "--list"], cwd=user, env=env, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "resnet50" in ended.stdout and ended.stderr == ""
    bad = subprocess.run(
        [str(root / "run_and_time.sh"), "--workload=resnet5"],
        cwd=user,
        env=env,
        capture_output=True,
        text=True,
    )
    assert bad.returncode == 2 and "did you mean resnet50?" in bad.stderr
