"""Resampling against PyTorch's (training's) and SciPy's (inference's)."""

import numpy as np
import pytest
from scipy import ndimage

from input_pipelines.volumes import resampling

SHAPES = [((5, 7, 6), (9, 4, 6)), ((8, 8, 3), (3, 17, 5)), ((4, 5, 6), (4, 5, 6)), ((1, 9, 2), (3, 8, 1))]


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_images_and_labels_are_pytorchs(old, new):
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    random = np.random.default_rng(0)
    image, label = random.normal(size=old).astype(np.float32), random.integers(0, 3, old).astype(np.uint8)
    resize = torch.nn.functional.interpolate
    expected = resize(torch.tensor(image)[None, None], size=new, mode="trilinear", align_corners=True)
    np.testing.assert_allclose(resampling.linear(image, new), expected[0, 0], atol=1e-6)
    expected = resize(torch.tensor(label)[None, None], size=new, mode="nearest")
    np.testing.assert_array_equal(resampling.nearest(label, new), expected[0, 0])


@pytest.mark.parametrize("seed", range(6))
def test_served_volumes_are_scipys(seed):
    random = np.random.default_rng(seed)
    old = random.integers(4, 12, 3)
    spacing, wanted = random.uniform(0.5, 3, 3), (1.6, 1.2, 1.2)
    image, label = random.normal(size=old).astype(np.float32), random.integers(0, 3, old).astype(np.uint8)
    shape = resampling.shape_for(old, spacing, wanted, served=True)
    factor = spacing / wanted
    expected = ndimage.zoom(image, factor, order=1, mode="nearest", grid_mode=False)
    assert shape == expected.shape
    np.testing.assert_allclose(resampling.linear(image, shape), expected, atol=1e-5)
    expected = ndimage.zoom(label, factor, order=0, mode="nearest", grid_mode=False)
    assert (resampling.nearest(label, shape, served=True) == expected).mean() > 0.99  # halves go either way
    assert resampling.shape_for((100, 512, 512), (5, 0.78, 0.78), wanted) == (312, 332, 332)
    assert resampling.shape_for((100, 512, 512), (5, 0.78, 0.78), wanted, served=True) == (312, 333, 333)
