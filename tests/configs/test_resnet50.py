"""The config's numbers against the table of MLPerf's reference convergence points."""

import dataclasses
import math

import pytest

from configs.resnet50 import get_config
from models.resnet import ResNetConfig

# Global batch: (base rate, momentum, weight decay, warm-up epochs, decay steps, span), (epochs mean, std).
POINTS = {
    1632: ((7.4, 0.9, 5e-05, 2, 27476, 204), (35, 1.085)),
    3264: ((10.5, 0.9, 5e-05, 2, 14523, 204), (35.154, 0.7483)),
    4096: ((10, 0.9, 0.0002, 5, 13137, 64), (39.875, 1)),
    8192: ((17, 0.9, 0.0002, 5, 6095, 64), (41.875, 1)),
    13056: ((12.8, 0.9, 2.5e-05, 9, 4710, 204), (45.5, 0.6633)),
    32768: ((21.2, 0.94, 2.5e-05, 16, 2267, 128), (56, 0.4472)),
    49152: ((19.405, 0.951807, 0.0001, 24, 1846, 256), (68, 0.6325)),
    58880: ((23.246, 0.951807, 0.0001, 29, 1785, 230), (80, 0.8307)),
    65536: ((24.699, 0.951807, 0.0001, 31, 1133, 128), (84.5, 0.922)),
    67840: ((24.699, 0.951807, 0.0001, 31, 1133, 424), (85.846, 0.6389)),
}


def numbers(point):
    optimizer, schedule = point.optimizer, point.schedule
    assert (optimizer.name, optimizer.epsilon, schedule.end_lr, schedule.power) == ("lars", 0, 1e-4, 2)
    rates = optimizer.base_lr, optimizer.momentum, optimizer.weight_decay
    return *rates, schedule.warmup_epochs, schedule.decay_steps, point.model.bn_span


def test_reference_points_are_those_published():
    points = get_config("closed").reference_points
    assert set(points) == {str(batch) for batch in POINTS}
    for batch, (expected, (mean, std)) in POINTS.items():
        point = points[str(batch)]
        assert point.batch_size == batch and batch % point.model.bn_span == 0
        assert numbers(point) == expected
        assert 1 <= point.eval_offset_epochs <= 4
        evaluations = range(point.eval_offset_epochs, point.max_epochs + 1, 4)
        assert min(abs(epoch - mean) for epoch in evaluations) <= std
        end = point.schedule.warmup_epochs + point.schedule.decay_steps * batch / 1_281_167
        assert evaluations[-1] == point.max_epochs
        assert end - 0.05 < point.max_epochs < end + 4


def test_closed_as_written_is_the_reference_point_of_its_batch():
    config = get_config("closed")
    assert numbers(config) == POINTS[config.batch_size][0]
    point = config.reference_points[str(config.batch_size)]
    assert (config.eval_offset_epochs, config.max_epochs) == (point.eval_offset_epochs, point.max_epochs)
    assert (config.target, config.eval_every_epochs, config.label_smoothing) == (0.759, 4, 0.1)


@pytest.mark.parametrize(
    ("preset", "model"), [("closed", ResNetConfig.resnet50()), ("mini", ResNetConfig.mini())]
)
def test_models_are_the_named_ones(preset, model):
    config = get_config(preset)
    built = ResNetConfig(**config.model)
    assert dataclasses.replace(built, bn_span=0) == model
    assert config.data.image_size == built.image_size
    assert len(config.data.mean) == len(config.data.std) == built.channels_in


def test_presets_hold_the_same_keys():
    closed, mini = get_config("closed"), get_config("mini")
    assert set(closed) == set(mini)
    assert set(closed.model) == set(mini.model)
    assert math.isclose(mini.schedule.warmup_epochs + mini.schedule.decay_epochs, mini.max_epochs)
