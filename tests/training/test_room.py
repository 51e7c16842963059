"""Memory that runs out: what would fit, by the compiler's own count."""

import functools
import re

import jax
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout
from mlperf_jax.training import room
from mlperf_jax.training.engine import Engine
from tests import toys


@functools.cache
def compiled(**changes) -> Engine:
    changes = {"model__stages": (1,), "model__width": 8, "batch_size": 64} | changes
    workload = toys.make(toys.SmallResNet, "float32", **changes)
    engine = Engine(workload, make_layout(STRATEGIES["dp"]))
    engine.compile("train_step")
    engine.programs = {"train_step": engine.programs["train_step"]}
    return engine


def test_what_is_advised_does_fit(monkeypatch):
    engine = compiled()
    there = int(0.6 * room.need(engine, "train_step").total)
    monkeypatch.setattr(room, "capacity", lambda device: there)
    with pytest.raises(UserError, match="A step of batch 64 needs .* of each device, which has ") as caught:
        room.require(engine)
    batch = int(re.search(r"--config\.batch_size=(\d+) fits", str(caught.value))[1])
    parts = int(re.search(r"--config\.gradient_accumulation_steps=(\d+)", str(caught.value))[1])
    assert 8 <= batch < 64 and batch % jax.device_count() == 0
    room.require(compiled(batch_size=batch))
    room.require(compiled(gradient_accumulation_steps=parts))


def test_a_state_that_is_too_large_is_not_mended_by_a_batch(monkeypatch):
    engine = compiled()
    monkeypatch.setattr(room, "capacity", lambda device: room.need(engine, "train_step").fixed)
    with pytest.raises(UserError, match="its state alone takes .* --sharding=fsdp"):
        room.require(engine)


def test_an_error_of_the_device_becomes_a_sentence(monkeypatch):
    engine = compiled()
    said = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory allocating 68719476736 bytes.\nat ..."
    )
    with (
        pytest.raises(
            UserError, match=r"with a batch of 64 \(RESOURCE_EXHAUSTED.*--config.batch_size=32"
        ) as one,
        room.explained(engine.workload) as known,
    ):
        known.append(engine)
        raise said
    assert "\n" not in str(one.value)
    # Before anything is compiled nothing is counted.
    with (
        pytest.raises(UserError, match="try half of it, --config.batch_size=32"),
        room.explained(engine.workload),
    ):
        raise MemoryError
    for other in (jax.errors.JaxRuntimeError("INTERNAL: x"), OSError(28, "No space left on device")):
        with pytest.raises(type(other)), room.explained(engine.workload):
            raise other
