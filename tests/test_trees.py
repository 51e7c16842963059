"""Names of leaves."""

import numpy as np
import optax

from mlperf_jax.trees import named_leaves


def test_leaves_are_named_by_their_paths():
    tree = {"params": {"w": np.ones(2)}, "opt_state": (optax.ScaleByScheduleState(count=np.int32(3)),)}
    named = named_leaves(tree)
    assert list(named) == ["opt_state.0.count", "params.w"]
    assert named["params.w"] is tree["params"]["w"]
