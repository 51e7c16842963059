"""What a preset too large for a test's machine is held to: its shapes."""

import jax
import jax.numpy as jnp

from mlperf_jax.parallel.mesh import single_device_layout
from mlperf_jax.training.engine import tracing
from mlperf_jax.workload import Buckets


def assert_step_keeps_shapes(workload):
    """Traces a training step of the whole model on a whole batch, after which the state has the shapes that it had."""
    layout = single_device_layout()
    with tracing(layout, workload.policy):
        state = jax.eval_shape(workload.init, jax.ShapeDtypeStruct((), jnp.uint32))
        batch = workload.batch_struct(layout)
        if isinstance(batch, Buckets):
            batch = next(iter(batch.values()))
        after, metrics = jax.eval_shape(workload.train_step, state, batch)
    before, after = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (state, after))
    assert after == before and metrics["loss"].shape == ()
