"""From a trained model to replicas on the devices: one on each, or one over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from loadgen_py.replica import Replica
from mlperf_jax.inference.trained import Trained
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel import mesh
from mlperf_jax.parallel.layout import Layout, Strategy
from mlperf_jax.served_programs import compile_served
from mlperf_jax.workload import ServedWorkload, State


def make_replicas(
    workload: ServedWorkload,
    trained: Trained,
    strategy: Strategy,
    asked: dict[str, int],
    *,
    capacity: Mapping[str, int],
    on_device: bool,
) -> list[Replica]:
    """Loads the model and places it, see `placed`; nothing is compiled yet.

    Args:
        workload, trained, strategy, asked: as `placed` takes them.
        capacity: bucket -> the most of its samples that are loaded together; others are not served.
        on_device: see `Replica`.

    Raises:
        UserError: the model is another one, or the mesh does not fit the devices.
    """
    return [
        replica(workload, state, place, capacity, on_device)
        for state, place in placed(workload, trained, strategy, asked)
    ]


def placed(
    workload: ServedWorkload, trained: Trained, strategy: Strategy, asked: dict[str, int]
) -> Iterator[tuple[State, Layout]]:
    """A model where it belongs, once or several times.

    Data parallelism without a mesh of the user's puts a copy on each device, and they answer
    independently; any other strategy makes one model over the mesh.

    Args:
        workload: whose model it is.
        trained: where its state comes from.
        strategy, asked: as `mesh.make_layout` takes them.

    Raises:
        UserError: the model is another one, or the mesh does not fit the devices.
    """
    if strategy.name == "dp" and not asked:
        places = [mesh.single_device_layout(device) for device in jax.devices()]
    else:
        places = [mesh.make_layout(strategy, asked)]
    state = trained.load(workload, places[0])
    for place in places:
        yield jax.device_put(state, jax.tree.map(lambda x: x.sharding, workload.served_struct(place))), place


def replica(
    workload: ServedWorkload, state: State, layout: Layout, capacity: Mapping[str, int], on_device: bool
) -> Replica:
    def predict(variables: State, inputs: Any) -> jax.Array:
        with layouts.use(layout), jax.default_matmul_precision(workload.policy.matmul):
            return workload.predict(variables, inputs)

    def place(shape: tuple[int, ...]) -> jax.sharding.Sharding:
        return layout.sharding(shape, ("batch",))

    specs = workload.sample_specs()
    return Replica(
        predict,
        state,
        {bucket: specs[bucket] for bucket in capacity},
        capacity=capacity,
        place=place,
        on_device=on_device,
        compile=lambda lowered: compile_served(lowered, layout),
    )
