"""What is decided before jax is imported."""

import os
import platform as platforms
import subprocess
import sys

import pytest

from mlperf_jax import platform
from mlperf_jax.errors import UserError
from tests import door


@pytest.fixture
def bare(monkeypatch):
    """No platform or flags decided yet; whatever is decided is undone."""
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_our_flags_are_appended_to_the_users(bare):
    bare.setenv("XLA_FLAGS", "--xla_dump_to=/d --xla_cpu_enable_fast_math=false")
    platform.configure("cpu", cpu_devices=4)
    assert os.environ["XLA_FLAGS"].split() == [
        "--xla_dump_to=/d",
        "--xla_cpu_enable_fast_math=false",
        "--xla_force_host_platform_device_count=4",
    ]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("cpu", "--xla_force_host_platform_device_count=2"),
        ("gpu", "--xla_gpu_enable_latency_hiding_scheduler=false"),
    ],
)
def test_the_users_own_value_stands(bare, name, theirs):
    bare.setenv("XLA_FLAGS", theirs)
    platform.configure(name, cpu_devices=8 if name == "cpu" else 0)
    assert os.environ["XLA_FLAGS"] == theirs


def test_configuring_twice_adds_nothing(bare):
    platform.configure("cpu", cpu_devices=8)
    once = os.environ["XLA_FLAGS"]
    platform.configure("cpu", cpu_devices=8)
    assert os.environ["XLA_FLAGS"] == once


def test_the_users_choice_of_backends_stands(bare):
    bare.setenv("JAX_PLATFORMS", "rocm")
    platform.configure("gpu")
    assert os.environ["JAX_PLATFORMS"] == "rocm"


@pytest.mark.parametrize(("name", "backends"), [("cpu", "cpu"), ("gpu", "cuda,cpu")])
def test_backends(bare, name, backends):
    platform.configure(name)
    assert os.environ["JAX_PLATFORMS"] == backends


def test_flags_reach_the_devices(tmp_path):
    """In a process of its own, with the user's number of devices against ours."""
    import subprocess

    script = """
from mlperf_jax import platform
platform.configure("cpu", cpu_devices=4)
import jax
print(len(jax.devices()))
"""
    for theirs, seen in (("", 4), ("--xla_force_host_platform_device_count=3", 3)):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=door.environment(XLA_FLAGS=theirs),
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == [str(seen)], done.stderr


def test_a_plan_compiles_under_the_flags_of_a_run(bare):
    """On the CPU, where jax must not look for the device that is compiled for."""
    platform.configure("cpu", compiles_for="gpu")
    planned = os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"]
    bare.delenv("XLA_FLAGS")
    platform.configure("gpu")
    assert planned == (os.environ["XLA_FLAGS"], "cpu")


def test_xla_knows_our_flags():
    """It ends a process that sets one it does not know; those of GPUs are known without one."""
    ours = " ".join(flag for flags in platform._XLA_FLAGS.values() for flag in flags)
    for flags, status in ((ours, 0), (f"{ours} --xla_gpu_no_such_flag=true", 1)):
        done = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=door.environment(XLA_FLAGS=flags, JAX_PLATFORMS="cpu"),
            capture_output=True,
            text=True,
        )
        assert bool(done.returncode) == status, done.stderr
    assert "no_such_flag" in done.stderr


def test_a_tpu_is_looked_for_before_libtpu_waits_for_one(bare):
    bare.setattr(platform.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs libtpu; install it with: pip install -e '\.\[tpu\]'"):
        platform.configure("tpu")
    bare.setattr(platform.importlib.util, "find_spec", lambda _: object())
    bare.setattr(platform.glob, "glob", lambda _: [])
    with pytest.raises(UserError, match="There is no TPU on this machine .*; use --platform=cpu or gpu"):
        platform.configure("tpu")
    bare.setattr(platform.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    platform.configure("tpu")
    assert os.environ["JAX_PLATFORMS"] == "tpu,cpu"


@pytest.mark.parametrize(
    ("name", "devices", "said"),
    [
        ("cup", 0, "There is no --platform=cup; use cpu, gpu, tpu"),
        ("gpu", 2, "--cpu_devices=2 goes with --platform=cpu"),
        ("cpu", -1, "--cpu_devices=-1 is negative"),
    ],
)
def test_contradictions(bare, name, devices, said):
    with pytest.raises(UserError, match=said):
        platform.configure(name, cpu_devices=devices)
    assert "JAX_PLATFORMS" not in os.environ


def test_no_import_touches_a_device():
    """Else platform, XLA flags and other processes could not be decided any more."""
    script = """
import importlib, pkgutil, sys
import configs, input_pipelines, loadgen_py, mlperf_jax, models
from jax._src import xla_bridge
for package in (configs, input_pipelines, loadgen_py, mlperf_jax, models):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        if xla_bridge.backends_are_initialized():
            sys.exit(f"{module.name} touches devices when it is imported")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=door.ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_the_platform_of_a_topology_is_known_while_it_is_traced():
    script = (
        "import types; from mlperf_jax import platform; from mlperf_jax.parallel import layout; "
        "from mlperf_jax.parallel.mesh import single_device_layout; "
        "print([platform.compiled_for()], end=' ')\n"
        "with layout.use(single_device_layout()): print(platform.compiled_for(), end=' ')\n"
        "tpu = types.SimpleNamespace(flat=[types.SimpleNamespace(platform='tpu')])\n"
        "there = types.SimpleNamespace(mesh=types.SimpleNamespace(devices=tpu))\n"
        "with layout.use(there): print(platform.compiled_for())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["['']", "cpu", "tpu"]


_FREED = """
import resource, sys
import numpy
from mlperf_jax import platform
if sys.argv[1] == "kept":
    platform.keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(100_000_000, numpy.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def _faults(kept: str, **environment: str) -> int:
    """Pages that the kernel gives for 100 MB, of which as many were freed just before."""
    command = [sys.executable, "-c", _FREED, kept]
    return int(subprocess.run(command, env=os.environ | environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platforms.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_unless_the_user_has_set_malloc():
    assert _faults("not") > 40  # 100 MB in pages of 2 MiB, where the kernel has them, or 24,414 small ones
    assert _faults("kept") < 5
    assert _faults("kept", MALLOC_TRIM_THRESHOLD_="0") > 40
