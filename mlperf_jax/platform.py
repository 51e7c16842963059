"""What must be decided before jax is imported: the platform, XLA's flags, and what freed memory becomes.

This is the only place that sets `XLA_FLAGS`. Ours are appended to the user's; where the user has
set the same flag, the user's stands. XLA ends a process that sets a flag it does not know.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import os
import resource

from mlperf_jax.errors import UserError

PLATFORMS = ("cpu", "gpu", "tpu")

_JAX_PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}

# What else is set elsewhere, and what it did here: benchmarks/NOTES.md, "Compiler flags".
_XLA_FLAGS = {
    "cpu": (),
    # Overlaps collectives with computation (JAX documentation, "GPU performance tips"); the one flag that
    # NVIDIA's JAX-Toolbox sets in its images. Collectives are asynchronous without a flag.
    "gpu": ("--xla_gpu_enable_latency_hiding_scheduler=true",),
    # What MaxText's flags for asynchronous collectives ask for is libtpu's default.
    "tpu": (),
}

# glibc's parameters (mallopt, malloc.h): no arena but the first, which alone grows without end; maps of their own for
# allocations above 1 GiB only; and what is freed stays. Between steps the kernel else takes XLA's temporaries back, to
# fill them with zeros in the next: a third of a step (benchmarks/NOTES.md, "Pages that the kernel zeroes").
_MALLOC = {"M_ARENA_MAX": (-8, 1), "M_MMAP_THRESHOLD": (-3, 1 << 30), "M_TRIM_THRESHOLD": (-1, (1 << 31) - 1)}
_USERS_MALLOC = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


# Address space that jax takes for itself, measured with prlimit --as: the libraries, and for each core threads.
_LIBRARIES_BYTES, _CORE_BYTES = 1_500_000_000, 250_000_000


def configure(platform: str, *, cpu_devices: int = 0, compiles_for: str | None = None) -> None:
    """Points jax at `platform`; to be called before anything imports jax.

    Args:
        platform: one of `PLATFORMS`.
        cpu_devices: how many virtual devices the CPU shall show; 0 leaves it at one.
        compiles_for: whose flags to set, where programs are compiled for another platform than runs them.

    Raises:
        UserError: the platform is not there or the flags contradict each other.
    """
    if platform not in PLATFORMS:
        raise UserError(f"There is no --platform={platform}; use {', '.join(PLATFORMS)}.")
    if cpu_devices and platform != "cpu":
        raise UserError(f"--cpu_devices={cpu_devices} goes with --platform=cpu, not {platform}.")
    if cpu_devices < 0:
        raise UserError(f"--cpu_devices={cpu_devices} is negative; leave it out for one device.")
    _require_address_space()
    if platform == "tpu":
        _require_tpu()
    if platform == "cpu":
        keep_freed_memory()
    os.environ.setdefault("JAX_PLATFORMS", _JAX_PLATFORMS[platform])
    ours = list(_XLA_FLAGS[compiles_for or platform])
    if cpu_devices:
        ours.append(f"--xla_force_host_platform_device_count={cpu_devices}")
    _append_xla_flags(ours)


def keep_freed_memory() -> None:
    """Lets this process keep what it frees, for what it allocates next; where the user has set malloc, nothing changes."""
    if any(os.environ.get(name) for name in _USERS_MALLOC):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries than glibc have none
    if mallopt is not None:
        for parameter, value in _MALLOC.values():
            mallopt(parameter, value)


def compiled_for() -> str:
    """The platform of the layout in use, "cpu" or another, for code of which each wants its own form.

    Known while functions are traced, for a topology that is not there too. Outside a layout (tests of one
    layer), and where only shapes are asked for, it is "", which stands for the form that holds everywhere.
    """
    from jax.sharding import AbstractMesh

    from mlperf_jax.parallel import layout

    in_use = layout.active()
    if in_use is None or isinstance(in_use.mesh, AbstractMesh):
        return ""
    return in_use.mesh.devices.flat[0].platform


def _append_xla_flags(ours: list[str]) -> None:
    users = os.environ.get("XLA_FLAGS", "").split()
    named = {flag.split("=")[0] for flag in users}
    os.environ["XLA_FLAGS"] = " ".join(users + [flag for flag in ours if flag.split("=")[0] not in named])


def _require_address_space() -> None:
    """Looks at the limit before jax does, which would abort the process in a thread of its own, without a word."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    least = _LIBRARIES_BYTES + _CORE_BYTES * (os.cpu_count() or 1)
    if 0 <= limit < least:
        raise UserError(
            f"The address space is limited to {limit / 1e9:.2g} GB (ulimit -v), and jax's libraries and threads alone "
            f"want {least / 1e9:.2g} GB here; raise it, as with ulimit -v unlimited."
        )


def _require_tpu() -> None:
    """Looks for a TPU before libtpu does: libtpu would ask a metadata server and wait for minutes."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--platform=tpu needs libtpu; install it with: pip install -e '.[tpu]' -c constraints.txt"
        )
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
        raise UserError(
            "There is no TPU on this machine (no /dev/accel* or /dev/vfio/*); use --platform=cpu or gpu."
        )


def require_devices(platform: str) -> None:
    """Starts the backend and checks that it is the one asked for.

    Raises:
        UserError: jax finds no such device.
    """
    import jax

    try:
        found, reason = jax.devices()[0].platform, ""
    except RuntimeError as error:
        found, reason = "cpu", f" ({str(error).splitlines()[0]})"
    if found != platform:
        extra = {"gpu": "cuda", "tpu": "tpu"}.get(platform)
        install = (
            f", or install what {platform} needs with: pip install -e '.[{extra}]' -c constraints.txt"
            if extra
            else ""
        )
        raise UserError(f"jax finds no {platform} here{reason}; use --platform={found}{install}")
