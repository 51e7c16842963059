"""Rows between devices: against a plain loop over what each has for each; and what a TPU's compiler makes of it."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.layout import use as use_layout
from mlperf_jax.parallel.mesh import make_layout
from mlperf_jax.planning import topology
from models.row_exchange import exchanged

DEVICES, ROWS, ROOM, WIDTH = 4, 12, 30, 3
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'"
)


def there_and_back(layout):
    """[P, N, D] of all devices to [P, room, D], and that to where it came from."""

    def local(rows, sizes):
        came = exchanged(rows[0], sizes, ROOM, "expert")
        return came[None], exchanged(came, sizes.T, ROWS, "expert")[None]

    split = PartitionSpec("expert")
    specs = dict(in_specs=(split, PartitionSpec()), out_specs=(split, split))
    return jax.jit(jax.shard_map(local, mesh=layout.mesh, check_vma=False, **specs))


@functools.cache
def on_cpus():
    layout = make_layout(STRATEGIES["expert"], {"data": 1, "expert": DEVICES}, jax.devices()[:DEVICES])
    return layout, there_and_back(layout)


@pytest.mark.parametrize("seed", range(8))
def test_rows_go_where_they_belong_and_come_back(seed):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(DEVICES, ROWS, WIDTH)).astype(np.float32)
    sizes = random.integers(0, 4, size=(DEVICES, DEVICES)).astype(np.int32)
    sizes[:, random.integers(DEVICES)] *= random.integers(2)  # some get nothing at all
    layout, run = on_cpus()
    with use_layout(layout):
        came, back = jax.device_get(run(rows, sizes))
    ends = np.cumsum(sizes, 1)
    for to in range(DEVICES):
        wanted = [
            rows[source, ends[source, to] - sizes[source, to] : ends[source, to]] for source in range(DEVICES)
        ]
        wanted = np.concatenate(wanted)
        np.testing.assert_array_equal(came[to, : len(wanted)], wanted)
        assert not came[to, len(wanted) :].any()
        np.testing.assert_array_equal(back[to, : ends[to, -1]], rows[to, : ends[to, -1]])
        assert not back[to, ends[to, -1] :].any()


@needs_libtpu
def test_a_tpu_sends_no_more_than_there_is():
    devices = topology.devices(topology.parse("v5e:2x2"))
    layout = make_layout(STRATEGIES["expert"], {"data": 1, "expert": DEVICES}, devices)
    rows = layout.struct((DEVICES, ROWS, 128), jnp.float32, ("expert", None, None))
    sizes = layout.struct((DEVICES, DEVICES), jnp.int32, (None, None))
    with use_layout(layout):
        text = there_and_back(layout).lower(rows, sizes).compile().as_text()
    assert text.count(" ragged-all-to-all(") + text.count(" ragged-all-to-all-start(") == 2
    assert "all-gather" not in text
