"""Mask R-CNN2Go's closed numbers are those of the public recipe that its target is from, and the mini's floor stands."""

import numpy as np

from configs.maskrcnn2go import get_config
from mlperf_jax.training import schedules
from models.maskrcnn2go import MaskRCNN2GoConfig


def test_closed_is_d2gos_recipe():
    """facebookresearch/d2go, MODEL_ZOO.md and configs/keypoint_rcnn_fbnetv3a_dsmask_C4.yaml."""
    config = get_config("closed")
    assert config.target == 0.3556 and config.figure == "OKS_AP"
    assert (config.data.shorter, config.data.longest) == (224, 448)
    assert config.batch_size * config.schedule.steps / 56_599 <= config.max_epochs
    assert config.optimizer.base_lr == 0.16 and config.ema_decay == 0.9998
    assert MaskRCNN2GoConfig(**config.model.to_dict()) == MaskRCNN2GoConfig()


def test_the_minis_target_is_not_below_its_floor():
    """.35, and .20 above the mean pose in the true boxes, which is at most .20 by the choice of its joints."""
    assert get_config("mini").target >= 0.35


def test_the_rate_is_half_a_cosine_under_a_warm_up():
    schedule = schedules.cosine_with_warmup(0.16, 1000, 450_000)
    steps = np.array([0, 1, 500, 1000, 225_000, 449_999, 450_000, 460_000])
    cosine = 0.16 * (1 + np.cos(np.pi * np.minimum(steps / 450_000, 1))) / 2
    warm = np.where(steps < 1000, 0.001 * (1 - steps / 1000) + steps / 1000, 1)
    np.testing.assert_allclose([float(schedule(step)) for step in steps], cosine * warm, rtol=1e-4, atol=1e-9)
