"""The configs' numbers against MLPerf's own: the installed reference convergence points, and published counts."""

import json
from pathlib import Path

import pytest

from configs import dlrm, dlrm_dcnv2
from mlperf_jax.precision import POLICIES
from mlperf_jax.workloads.recommendation import DLRMDCNv2, DLRMv1

WORKLOADS = {"dlrm": (dlrm, DLRMv1, "2.1.0"), "dlrm_dcnv2": (dlrm_dcnv2, DLRMDCNv2, "6.0.0")}


def closed(name, point=None):
    module, cls, _ = WORKLOADS[name]
    config = module.get_config("closed")
    if point:
        config.update(config.reference_points[str(point)])
    return cls(config, POLICIES["float32"], data_dir=Path("/nonexistent"), synthetic=True)


@pytest.mark.parametrize("name", WORKLOADS)
def test_reference_points_are_those_published(name):
    mlperf_logging = pytest.importorskip("mlperf_logging")
    folder = Path(mlperf_logging.__file__).parent / "rcp_checker" / f"training_{WORKLOADS[name][2]}"
    published = json.loads((folder / f"rcps_{name}.json").read_text()).values()
    points = WORKLOADS[name][0].get_config("closed").reference_points
    assert {record["BS"] for record in published} == {int(batch) for batch in points}
    for record in published:
        logged = closed(name, record["BS"]).hyperparameters()
        assert closed(name, record["BS"]).batch_size == record["BS"]
        hyperparameters = {k.lower(): v for k, v in record["Hyperparams"].items()}
        assert hyperparameters == {k: logged[k] for k in hyperparameters}


@pytest.mark.parametrize("name", WORKLOADS)
def test_closed_as_written_is_the_reference_point_of_its_batch(name):
    workload = closed(name)
    assert workload.hyperparameters() == closed(name, workload.batch_size).hyperparameters()


def test_counts_of_parameters_and_examples():
    one, two = closed("dlrm"), closed("dlrm_dcnv2")
    assert (one.tables.num_parameters, two.tables.num_parameters) == (187_767_399 * 128, 204_184_588 * 128)
    assert (one.tables.look_ups, two.tables.look_ups) == (26, 214)
    for workload in (one, two):
        assert (workload.num_train, workload.num_eval) == (4_195_197_692, 89_137_319)
        _, rows, _ = workload.tables.shape
        assert rows < sum(workload.tables.sizes) * 1.0001  # what only fills up is nothing
    assert [goal.target for workload in (one, two) for goal in workload.goals] == [0.8025, 0.80275]


@pytest.mark.parametrize("name", WORKLOADS)
def test_evaluated_twenty_times_within_an_epoch(name):
    workload = closed(name)
    blocks = list(workload.blocks())
    every = 4_195_197_692 // (workload.batch_size * 20)
    assert [(b.start, b.stop) for b in blocks] == [(i * every, (i + 1) * every) for i in range(20)]
    epochs = [round(workload.eval_epoch(b.stop), 2) for b in blocks]
    first = 1 if name == "dlrm" else 0
    assert epochs == [round(first + 0.05 * (i + 1), 2) for i in range(20)]


@pytest.mark.parametrize("name", WORKLOADS)
def test_presets_hold_the_same_keys(name):
    configs = [WORKLOADS[name][0].get_config(preset) for preset in ("closed", "mini")]
    assert set(configs[0]) == set(configs[1]) and set(configs[0].model) == set(configs[1].model)
