"""Anchors, against the reference's published numbers and what the paper says of them."""

import numpy as np
import pytest

from configs.ssd_resnet34 import get_config
from mlperf_jax.config import resolve
from mlperf_jax.detection.anchors import AnchorConfig, make_anchors
from models.ssd import SSDConfig


def closed(*overrides):
    config = resolve(get_config("closed"), list(overrides))
    model = SSDConfig(**config.model.to_dict())
    numbers = AnchorConfig(model.image_size, config.anchors.steps, config.anchors.scales, model.anchors)
    return model, make_anchors(numbers, model.feature_sizes)


def test_closed_anchors_are_the_references():
    model, anchors = closed()
    assert model.feature_sizes == (38, 19, 10, 5, 3, 1) and anchors.shape == (8732, 4)
    # Its first cell, by hand: step 8 of 300 pixels, sides 21 and sqrt(21 * 45), ratio 2 and 1/2.
    centre, side = 4 / 300, 21 / 300
    shapes = [(side, side), (np.sqrt(21 * 45) / 300,) * 2]
    shapes += [(side * np.sqrt(2), side / np.sqrt(2)), (side / np.sqrt(2), side * np.sqrt(2))]
    first = anchors[: 4 * 38**2].reshape(4, 38, 38, 4)
    np.testing.assert_allclose(first[:, 0, 0], [(centre, centre, *shape) for shape in shapes], rtol=1e-12)
    # x runs fastest.
    np.testing.assert_allclose(first[0, 2, 5, :2], [(5.5 * 8) / 300, (2.5 * 8) / 300], rtol=1e-12)
    # The last map: one cell, whose second square is as large as is allowed.
    np.testing.assert_allclose(anchors[-4:, :2], 0.5)
    np.testing.assert_allclose(anchors[-4, 2:], 261 / 300)
    np.testing.assert_allclose(anchors[-3, 2:], np.sqrt(261 * 315) / 300)
    assert anchors[-2, 2] == 1.0  # 261 * sqrt(2) / 300, cut off
    ratios = np.unique(np.round(anchors[-36 - 4 : -4, 2] / anchors[-36 - 4 : -4, 3], 6))
    np.testing.assert_allclose(ratios, [0.5, 1, 2], rtol=1e-5)


def test_the_variant_of_mlperf_inference():
    model, anchors = closed("--config.variant=1200")
    assert model.image_size == 1200 and model.feature_sizes == (50, 25, 13, 7, 3, 3)
    assert len(anchors) == 15130
    np.testing.assert_allclose(anchors[0], [0.01, 0.01, 0.07, 0.07], rtol=1e-12)
    second = anchors[4 * 50**2]
    np.testing.assert_allclose(second, [0.02, 0.02, 180 / 1200, 180 / 1200], rtol=1e-12)


def test_what_does_not_go_together_is_named():
    with pytest.raises(ValueError, match="2 maps need"):
        make_anchors(AnchorConfig(96, (8, 16), (20, 40), (4, 4)), (12, 6))
    with pytest.raises(ValueError, match="come in pairs"):
        make_anchors(AnchorConfig(96, (8,), (20, 40), (3,)), (12,))
