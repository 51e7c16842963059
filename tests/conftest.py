"""The tests' process shows eight virtual CPU devices; that must be decided before jax is imported.

It compiles lightly: tests spend their time compiling, and what they judge does not depend on it.
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"  # also on machines with an accelerator

from mlperf_jax import platform
from tests import door

_flags_before = os.environ.get("XLA_FLAGS")
assert "jax" not in sys.modules, "something imports jax before its environment is set"
os.environ["XLA_FLAGS"] = f"{door.LIGHT_FLAGS} {_flags_before or ''}"  # of the same flag the last counts
platform.configure("cpu", cpu_devices=8)

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.devices()  # The flags are read here, once.

# Commands that the tests start see what a user's would.
if _flags_before is None:
    del os.environ["XLA_FLAGS"]
else:
    os.environ["XLA_FLAGS"] = _flags_before
# Nor do tests touch the programs that the user's own commands keep.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ[door.CACHE]

# How long an example takes says more about the machine's load than about the code.
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")


def pytest_collection_modifyitems(config, items):
    """Where several workers share the tests, what takes longest comes first, so that they end together.

    That is training to a real target, then the files that start commands.
    """
    if hasattr(config, "workerinput"):
        items.sort(
            key=lambda item: (not item.get_closest_marker("convergence"), not hasattr(item.module, "door"))
        )
