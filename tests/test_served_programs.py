"""What a program that is served is compiled with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax import served_programs
from mlperf_jax.parallel.mesh import single_device_layout


def looked_up(table, rows):
    return jnp.tanh(table[rows]).sum(0)


def lowered(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))


def test_little_work_stays_on_one_thread():
    """A few rows of a large table, for all of which XLA:CPU would wake a second one."""
    program = lowered(looked_up, ((100_000, 64), np.float32), ((40,), np.int32))
    options = served_programs.compiler_options(program, single_device_layout())
    usual = program.compile().as_text()
    if "outer_dimension_partitions" not in usual:
        pytest.skip("one core, or an XLA that asks no second thread for this")
    compiled = program.compile(compiler_options=options)
    assert "outer_dimension_partitions" not in compiled.as_text()
    table = np.random.default_rng(0).normal(size=(100_000, 64)).astype(np.float32)
    rows = np.arange(0, 80_000, 2_000, dtype=np.int32)
    np.testing.assert_allclose(compiled(table, rows), np.tanh(table[rows]).sum(0), rtol=1e-5, atol=1e-5)


def test_much_work_may_have_all_threads():
    program = lowered(lambda a, b: jnp.tanh(a @ b), ((512, 512), np.float32), ((512, 512), np.float32))
    assert served_programs.compiler_options(program, single_device_layout()) == {}
