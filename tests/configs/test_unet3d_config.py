"""The config's numbers against the table of MLPerf's reference convergence points."""

import json
from pathlib import Path

import pytest

from configs.unet3d import get_config
from mlperf_jax.config import resolve

official = pytest.importorskip("mlperf_logging")
POINTS = json.loads(
    (Path(official.__file__).parent / "rcp_checker/training_4.0.0/rcps_unet3d.json").read_text()
)


@pytest.mark.parametrize("name", POINTS)
def test_reference_points_are_those_published(name):
    """There the warm-up counts samples."""
    point = POINTS[name]["Hyperparams"]
    config = resolve(get_config("closed"), [f"--config.reference_point={POINTS[name]['BS']}"])
    assert config.batch_size == POINTS[name]["BS"]
    assert config.optimizer.base_lr == point["opt_base_learning_rate"]
    assert config.schedule.warmup_epochs * 168 == point["opt_learning_rate_warmup_epochs"]
    assert config.schedule.init_lr == point["opt_initial_learning_rate"]
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 0.0)
    assert tuple(config.schedule.decay_epochs) == ()


def test_closed_as_written_is_the_reference_point_of_its_batch():
    config = get_config("closed")
    assert (
        resolve(config, ["--config.reference_point=56"]).to_dict() | {"reference_point": 0}
        == config.to_dict()
    )
