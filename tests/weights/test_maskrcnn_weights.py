"""Mask R-CNN under its published names; predictions against PyTorch are in models/test_maskrcnn."""

import re

import jax
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.weights.maskrcnn import backbone, from_reference
from tests.weights.test_retinanet_weights import trunk_shapes

torch = pytest.importorskip("torch", reason="the names are those of a PyTorch module")

from models.retinanet import RetinaNetConfig  # noqa: E402
from tests.models.test_maskrcnn import SMALL  # noqa: E402
from tests.models.torch_maskrcnn import random_maskrcnn  # noqa: E402


def published():
    return {name: array.numpy() for name, array in random_maskrcnn(SMALL).state_dict().items()}


# How torchvision calls the same layers, in its older and its newer editions.
OLDER = (
    (r"backbone\.body\.stem\.", "backbone.body."),
    (r"fpn\.fpn_(inner|layer)(\d)", lambda m: f"fpn.{m[1]}_blocks.{int(m[2]) - 1}"),
    (r"roi_heads\.box\.feature_extractor", "roi_heads.box_head"),
    (r"roi_heads\.box\.predictor", "roi_heads.box_predictor"),
    (r"roi_heads\.mask\.feature_extractor", "roi_heads.mask_head"),
    (r"roi_heads\.mask\.predictor", "roi_heads.mask_predictor"),
)
NEWER = (
    *OLDER,
    (r"(fpn\.\w+_blocks\.\d)", r"\1.0"),
    (r"rpn\.head\.conv", "rpn.head.conv.0.0"),
    (r"mask_head\.mask_fcn(\d)", lambda m: f"mask_head.{int(m[1]) - 1}.0"),
)


@pytest.mark.parametrize("names", [OLDER, NEWER], ids=["older", "newer"])
def test_torchvisions_names_lead_to_the_same_layers(names):
    theirs = {}
    for name, array in published().items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        theirs[name] = array
    assert "backbone.fpn.inner_blocks.0" + (".0" if names is NEWER else "") + ".weight" in theirs
    expected, found = from_reference(published(), SMALL), from_reference(theirs, SMALL)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_classifier_becomes_the_trunk():
    random = np.random.default_rng(0)
    config = RetinaNetConfig(width=4, stages=(2, 1, 1), groups=1, inner=1)
    shapes = trunk_shapes(config) | {"fc.weight": (10, 64), "fc.bias": (10,)}
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found = backbone(tensors, SMALL)
    whole = from_reference(published(), SMALL)
    assert jax.tree.map(np.shape, found["params"]) == jax.tree.map(np.shape, whole["params"]["backbone"])
    np.testing.assert_array_equal(
        found["params"]["stem"]["conv"]["kernel"], tensors["conv1.weight"].transpose(2, 3, 1, 0)
    )


def test_what_is_missing_or_left_over_is_named():
    tensors = published()
    del tensors["rpn.head.conv.weight"]
    with pytest.raises(UserError, match=r"no rpn\.head\.conv\.weight"):
        from_reference(tensors, SMALL)
    with pytest.raises(UserError, match=r"roi_heads\.keypoint"):
        from_reference(published() | {"roi_heads.keypoint.weight": np.zeros(3)}, SMALL)
