"""Two processes, and rows of several lengths: at every step all take a batch of the same bucket, or wait for each other for ever."""

import jax

from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout
from mlperf_jax.training.engine import Engine
from tests import pair, toys
from tests.agreement import assert_close
from tests.toys_speech import SECONDS, SmallRNNT


def test_two_processes_train_as_one_by_buckets(tmp_path):
    """An epoch of recordings of two lengths: the state at its end, from one process and as two wrote it."""
    workload = toys.make(SmallRNNT, "float64", data__seconds=SECONDS)
    assert len(workload.dataset.buckets) == 2
    with jax.enable_x64(True):
        engine = Engine(workload, make_layout(STRATEGIES["fsdp"]))
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        flags = (f"--config.data.seconds={SECONDS}".replace(" ", ""), "--config.batch_size=8")
        kind = dict(status=1, devices=2 // processes, processes=processes)
        found[processes] = pair.saved(folder, "tests.toys_speech:SmallRNNT", engine, *flags, **kind)
    (steps, alone), (same, together) = found.values()
    assert steps == same > 5
    assert_close(together, alone, floor=1e-6)
