"""How a layout is held against one device: the same steps in float64, from one initial state, on the same batches."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mlperf_jax.parallel.layout import STRATEGIES, Layout
from mlperf_jax.parallel.mesh import make_layout, single_device_layout
from mlperf_jax.training.engine import Engine, named
from mlperf_jax.workload import State, TrainedWorkload

STEPS = 10
DEVICES = 4
"""For an axis of four, or two of two; more make steps longer, and show nothing more but in `tests/parallel`."""
PARTS = ("params", "frozen", "model_state", "opt_state")


def layout_of(strategy: str | None) -> Layout:
    """A strategy over `DEVICES`, or one device."""
    return (
        make_layout(STRATEGIES[strategy], devices=jax.devices()[:DEVICES])
        if strategy
        else single_device_layout()
    )


class Layouts:
    """A workload on one device (None) and under every strategy. Engines and what they trained are kept: they take seconds.

    Args:
        make: the workload, in float64; a strategy, or None, is given it.
        programs: what is compiled beside the train step under a strategy; all of an engine, which is given it.
        bucket: that all batches are of, where there are buckets.
    """

    def __init__(
        self,
        make: Callable[[str | None], TrainedWorkload],
        programs: Callable[[str | None, Engine], Sequence[str]] = lambda strategy, engine: (),
        bucket: str = "",
    ) -> None:
        self._make, self._programs, self._bucket = make, programs, bucket
        self.places = functools.cache(self._places)
        self.engine = functools.cache(self._engine)
        self.trained = functools.cache(self._trained)

    def _places(self, strategy: str | None) -> Engine:
        """An engine that has compiled nothing: where the state is to be read into."""
        with jax.enable_x64(True):
            return Engine(self._make(strategy), layout_of(strategy))

    def _engine(self, strategy: str | None) -> Engine:
        engine = self.places(strategy)
        with jax.enable_x64(True):
            step = named("train_step", self._bucket)
            engine.compile(step, *self._programs(strategy, engine), *(() if strategy else ("init",)))
            return engine

    @functools.cached_property
    def start(self) -> State:
        """One device's initial state of seed 1, as numpy arrays."""
        with jax.enable_x64(True):
            return jax.device_get(self.engine(None).init(1))

    def _trained(self, strategy: str | None, steps: int = STEPS) -> tuple[np.ndarray, State]:
        """Losses, and the state in its places."""
        engine = self.engine(strategy)
        with jax.enable_x64(True):
            places = jax.tree.map(lambda x: x.sharding, engine.state)
            return train(engine, jax.device_put(self.start, places), 0, steps, self._bucket)

    def agree(self, strategy: str, floor: float = 1e-30) -> State:
        """Holds ten steps of a strategy against one device's, to 1e-9, and returns the strategy's state."""
        expected_losses, expected = self.trained(None)
        losses, state = self.trained(strategy)
        assert {x.dtype for x in jax.tree.leaves(expected["params"])} == {np.dtype(np.float64)}
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
        assert_close(state, expected, floor)
        return state


def train(engine: Engine, state: State, start: int, stop: int, bucket: str = "") -> tuple[np.ndarray, State]:
    """Steps [start, stop) of a workload whose batches are all of one bucket; the losses, and the state after them."""
    batches = engine.workload.dataset.train_batches(
        seed=1, batch_size=engine.workload.batch_size, start_step=start, rows=engine.rows
    )
    losses = []
    for batch in itertools.islice(batches, stop - start):
        state, metrics = engine.train(state, engine.place(batch, engine.batch), steps=1, bucket=bucket)
        losses.append(float(metrics["loss"]))
    batches.close()
    return np.array(losses), state


def assert_close(actual: Any, expected: Any, floor: float = 1e-30, relative: float = 1e-9) -> None:
    """Every array of two states, relative to the largest number in it, but to `floor` at least."""
    parts = [part for part in PARTS if part in expected]
    assert parts and parts == [part for part in PARTS if part in actual]
    for part in parts:
        named = jax.tree_util.tree_leaves_with_path(expected[part])
        for (path, a), b in zip(named, jax.tree.leaves(actual[part]), strict=True):
            if not np.size(a):
                continue
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            close = np.abs(a - b).max() <= relative * max(np.abs(a).max(), floor)
            assert close, part + jax.tree_util.keystr(path)
