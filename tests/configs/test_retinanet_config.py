"""The config's numbers against the table of MLPerf's reference convergence points."""

import json
from importlib import resources

import pytest

from configs.retinanet import get_config
from mlperf_jax.config import resolve


def points():
    path = resources.files("mlperf_logging") / "rcp_checker" / "training_5.1.0" / "rcps_retinanet.json"
    return {point["BS"]: point for point in json.loads(path.read_text()).values()}


def test_reference_points_are_those_published():
    published = points()
    assert set(map(int, get_config("closed").reference_points)) == set(published)
    for batch, point in published.items():
        config = resolve(get_config("closed"), [f"--config.reference_point={batch}"])
        said = point["Hyperparams"]
        assert config.batch_size == batch
        assert config.optimizer.base_lr == said["opt_base_learning_rate"]
        assert config.optimizer.weight_decay == said["opt_weight_decay"] == 0
        assert config.schedule.warmup_epochs == said["opt_learning_rate_warmup_epochs"]
        assert config.schedule.warmup_factor == pytest.approx(said["opt_learning_rate_warmup_factor"])
        assert config.max_epochs > max(point["Epochs to converge"])
        assert (config.eval_offset_epochs, config.eval_every_epochs) == (0, 1)


def test_closed_as_written_is_the_reference_point_of_its_batch():
    config = get_config("closed")
    assert resolve(config, ["--config.reference_point=256"]).to_dict() | {"reference_point": 0} == (
        config.to_dict()
    )
