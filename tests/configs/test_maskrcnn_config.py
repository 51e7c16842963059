"""The config's numbers against the table of MLPerf's reference convergence points."""

import json
from importlib import resources

import pytest

from configs.maskrcnn import get_config
from mlperf_jax.config import resolve
from mlperf_jax.precision import POLICIES
from mlperf_jax.workloads.instance_segmentation import MaskRCNNSegmentation
from tests import door


def points():
    path = resources.files("mlperf_logging") / "rcp_checker" / "training_3.1.0" / "rcps_maskrcnn.json"
    return {point["BS"]: point for point in json.loads(path.read_text()).values()}


def workload_at(batch):
    config = resolve(get_config("closed"), [f"--config.reference_point={batch}"])
    return MaskRCNNSegmentation(config, POLICIES["float32"], data_dir=door.ROOT / "nowhere", synthetic=True)


def test_reference_points_are_those_published():
    published = points()
    assert set(map(int, get_config("closed").reference_points)) == set(published)
    for batch, point in published.items():
        workload, said = workload_at(batch), point["Hyperparams"]
        schedule, ours = workload.config.schedule, workload.hyperparameters()
        assert workload.config.batch_size == batch
        assert ours["opt_base_learning_rate"] == said["opt_base_learning_rate"]
        assert ours["opt_learning_rate_decay_steps"] == said["opt_learning_decay_steps"]
        assert ours["opt_learning_rate_warmup_factor"] == said["opt_learning_rate_warmup_factor"]
        # Of batch 48 the table has 800, with which the first rates are below 0.
        assert schedule.warmup_steps == (625 if batch == 48 else said["opt_learning_rate_warmup_steps"])
        assert workload.config.max_epochs > max(point["Epochs to converge"])
        assert said["num_image_candidates"] % ours["num_image_candidates"] == 0


@pytest.mark.parametrize("batch", sorted(points()))
def test_the_rate_rises_by_the_factor_a_step(batch):
    """As the reference's "mlperf_linear": below the base rate by the steps that are left times the factor."""
    workload = workload_at(batch)
    rate, schedule = workload.schedule(), workload.config.schedule
    base = workload.config.optimizer.base_lr
    for step in (0, 1, schedule.warmup_steps // 2, schedule.warmup_steps - 1):
        expected = base - (schedule.warmup_steps - step) * schedule.warmup_factor
        assert float(rate(step)) == pytest.approx(expected, abs=1e-7) and expected > -1e-12
    first, second = schedule.decay_steps
    found = [float(rate(step)) for step in (schedule.warmup_steps, first - 1, first, second)]
    assert found == pytest.approx([base, base, base / 10, base / 100], rel=1e-5)


def test_closed_as_written_is_the_reference_point_of_its_batch():
    config = get_config("closed")
    assert resolve(config, ["--config.reference_point=128"]).to_dict() | {"reference_point": 0} == (
        config.to_dict()
    )
